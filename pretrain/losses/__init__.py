"""Losses of pretraining: one file per kind, pure functions from embeddings to scalars."""
