"""Learns mask ⇄ tissue from unpaired tiles, and hands on what it learned as files.

May import `histo` only. `translate/train.py` is the entry point.
"""
