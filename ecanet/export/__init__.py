"""Models as files that run without ecanet: ONNX, and PyTorch's own exported programs."""

from ecanet.export.run import export_model

__all__ = ["export_model"]
