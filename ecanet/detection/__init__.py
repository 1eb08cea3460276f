"""Object detection and instance segmentation with attention backbones, on COCO and data like it."""

from ecanet.detection.detectors import create_detector
from ecanet.detection.weights import load_backbone, load_detector, load_into_detector, save_detector

__all__ = [
    "create_detector",
    "load_backbone",
    "load_detector",
    "load_into_detector",
    "save_detector",
]
