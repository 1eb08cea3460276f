"""Models as files that run without ecanet: ONNX, and PyTorch's own exported programs."""

from ecanet.export.export import export_model

__all__ = ["export_model"]
