"""Classifies, segments and aggregates slides with frozen or fine-tuned encoders, and evaluates them.

Charter: may import `histo` only; what the other packages learned arrives as an encoder file or an instance file.
"""
