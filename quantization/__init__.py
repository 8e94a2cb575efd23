"""Quantization: calibration, and the quantized form of a deployment module."""

if not __name__.startswith("tinyvit_edge."):
    raise ImportError("import tinyvit_edge.quantization, not quantization")
