"""A detector with its inference settings, applied to one image at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from ecanet.config import PredictSettings
from ecanet.detection.evaluation import encode_masks
from ecanet.detection.inference import detect, open_detector
from ecanet.detection.predict.drawing import draw_detections

# Masks are as large as the image, with 4 bytes per pixel: larger images are downscaled first.
_MAX_PIXELS = 2**23


class Predictor:
    """A detector with its threshold, maximum number of objects and colors.

    Args:
        fabric: launched.
        weights: file of a detector.
        settings: threshold, maximum number of objects, colors and sizes.

    Raises:
        UserError: the file cannot be read or holds no detector.
    """

    def __init__(self, fabric: Fabric, weights: Path, settings: PredictSettings) -> None:
        self.fabric, self.settings = fabric, settings
        self.detector = open_detector(fabric, weights, settings)
        # Before inference, which then computes no masks for the rest.
        scorer = getattr(self.detector, "roi_heads", self.detector)
        scorer.score_thresh, scorer.detections_per_img = settings.threshold, settings.top

    def find(self, image: Tensor) -> dict[str, Tensor]:
        """Return the detections in a uint8 image (3, H, W), on the CPU, with boolean masks."""
        size = image.shape[-2:]
        factor = min(1.0, (_MAX_PIXELS / (size[0] * size[1])) ** 0.5)
        seen = [max(1, int(side * factor)) for side in size]
        if factor < 1:
            image = resize(image, seen, antialias=True)
        found = detect(self.fabric, self.detector, [image])[0]
        return scaled({name: tensor.cpu() for name, tensor in found.items()}, seen, size)

    def draw(self, image: Tensor, found: dict[str, Tensor]) -> Image.Image:
        """Return the image with its detections drawn on it."""
        return draw_detections(
            image, found, self.detector.class_names, color_by=self.settings.color_by
        )

    def describe(self, found: dict[str, Tensor]) -> list[dict[str, Any]]:
        """Return a dict of plain values for each detection, by descending score."""
        masks = encode_masks(found["masks"]) if "masks" in found else None
        labels, scores, boxes = (found[name].tolist() for name in ("labels", "scores", "boxes"))
        return [
            {
                "name": self.detector.class_names[label - 1],
                "category_id": self.detector.category_ids[label - 1],
                "score": round(score, 4),
                "box": [round(value, 2) for value in box],
                **({"mask": masks[n]} if masks else {}),
            }
            for n, (label, score, box) in enumerate(zip(labels, scores, boxes, strict=True))
        ]

    def count(self, found: dict[str, Tensor]) -> str:
        """Return the number of objects of each class as text: ``2 dog, 1 person``."""
        names = Counter(self.detector.class_names[label - 1] for label in found["labels"].tolist())
        return ", ".join(f"{number} {name}" for name, number in names.most_common()) or "nothing"


def scaled(found: dict[str, Tensor], old: Sequence[int], new: Sequence[int]) -> dict[str, Tensor]:
    """Rescale detections in an image of size ``old`` (H, W) to its size ``new``.

    Masks become booleans.
    """
    high, wide = (b / a for a, b in zip(old, new, strict=True))
    out = {**found, "boxes": found["boxes"] * torch.tensor([wide, high, wide, high])}
    if "masks" in found:
        # One by one: all of them as floats may not fit into memory.
        masks = [_resized(mask, new) > 0.5 for mask in found["masks"]]
        out["masks"] = torch.stack(masks) if masks else torch.zeros(0, 1, *new).bool()
    return out


def _resized(mask: Tensor, size: Sequence[int]) -> Tensor:
    if mask.shape[-2:] == tuple(size):
        return mask
    return F.interpolate(mask[None].float(), tuple(size), mode="bilinear")[0]
