"""What histology data are: tiles, stains, nucleus masks, phantom tissue, encoders, run folders and metrics.

`histo` is the foundation of nucleate. It imports nothing of `translate`, `pretrain` or `downstream`.
"""
