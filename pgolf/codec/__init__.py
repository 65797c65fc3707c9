"""Coding quantized weights into bytes: the entropy coder and the container `model.pgz`."""
