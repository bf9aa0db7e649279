"""The arithmetic of quantization: scales and zero points, ranges, rounding of weights. NumPy only."""
