"""Quantizing weights: grids, calibration, error feedback, allocation of bits."""
