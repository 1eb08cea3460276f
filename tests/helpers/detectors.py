"""A small detector whose detections are many."""

from __future__ import annotations

from typing import Any

import torch

from ecanet.detection import create_detector


def small_detector(
    kind: str, *, seed: int = 0, std: float = 1.0, random_norms: bool = False, **options: Any
) -> Any:
    """Return a detector in evaluation mode, with ECA-ResNet-18, three classes and images of 64 to 96.

    Args:
        std: standard deviation of the class layer's weights: large for high scores.
        random_norms: give the batch norms statistics that differ from their initial ones.
        options: of :func:`create_detector`, in place of these.
    """
    torch.manual_seed(seed)
    defaults = {"num_classes": 3, "width": 32, "min_size": 64, "max_size": 96}
    detector = create_detector(kind, "eca_resnet18", **{**defaults, **options})  # type: ignore[arg-type]
    for name, buffer in detector.named_buffers():
        if random_norms and "running" in name:
            buffer.uniform_(0.5, 1.5)
    logits = (
        detector.head.classification_head.cls_logits
        if kind == "retinanet"
        else detector.roi_heads.box_predictor.cls_score
    )
    torch.nn.init.normal_(logits.weight, std=std)
    torch.nn.init.zeros_(logits.bias)
    return detector.eval()


def outputs(detector: Any) -> dict[str, torch.Tensor]:
    """Return the detections in an image of noise."""
    torch.manual_seed(1)
    with torch.no_grad():
        return detector([torch.rand(3, 64, 80)])[0]
