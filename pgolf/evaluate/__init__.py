"""Scoring: bits per byte, sliding windows, test-time training, the validity audit."""
