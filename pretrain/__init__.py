"""Learns encoders from unlabelled tiles, seeded by a translator or from scratch.

Charter: objectives (instance, contrastive, stain-invariant) over the tiles, stains and encoder files of `histo`; may
import `histo` and `translate`. Hands its result on as an encoder file.
"""
