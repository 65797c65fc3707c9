"""Scoring a model in bits per byte: sliding windows, test-time training, an online mixture."""
