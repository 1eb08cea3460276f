"""A detector with what is asked of it, at work on single pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
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
from ecanet.errors import UserError, at_least

# A detector's masks are as large as the picture, 4 bytes a pixel each: larger pictures are reduced for it.
_MOST_PIXELS = 2**23


class Predictor:
    """A detector with what is asked of it: threshold, number of objects, colours.

    Args:
        fabric: launched.
        weights: file of a detector.
        settings: of the prediction.
        say: called with each line of news.

    Raises:
        UserError: a setting is out of range, or the file is of no detector.
    """

    def __init__(
        self,
        fabric: Fabric,
        weights: Path,
        settings: PredictSettings,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        if not 0 <= settings.threshold <= 1:
            raise UserError(f"--threshold {settings.threshold}: give a number from 0 to 1")
        at_least(1, top=settings.top)
        self.fabric, self.settings = fabric, settings
        self.detector = open_detector(fabric, weights, settings, say)
        # Here and not afterwards: what is not asked for needs no mask.
        scorer = getattr(self.detector, "roi_heads", self.detector)
        scorer.score_thresh, scorer.detections_per_img = settings.threshold, settings.top

    def find(self, image: Tensor) -> dict[str, Tensor]:
        """Return the detections in a uint8 image (3, H, W), on the CPU, masks as booleans."""
        size = image.shape[-2:]
        factor = min(1.0, (_MOST_PIXELS / (size[0] * size[1])) ** 0.5)
        seen = [max(1, int(side * factor)) for side in size]
        if factor < 1:
            image = resize(image, seen, antialias=True)
        found = detect(self.fabric, self.detector, [image])[0]
        return scaled({name: tensor.cpu() for name, tensor in found.items()}, seen, size)

    def draw(self, image: Tensor, found: dict[str, Tensor]) -> Image.Image:
        """Return the picture with its detections."""
        return draw_detections(
            image, found, self.detector.class_names, color_by=self.settings.color_by
        )

    def describe(self, found: dict[str, Tensor]) -> list[dict[str, Any]]:
        """Return plain values for JSON: a dict for each detection, the surest first."""
        masks = encode_masks(found["masks"]) if "masks" in found else None
        return [
            {
                "name": self.detector.class_names[label - 1],
                "category_id": self.detector.category_ids[label - 1],
                "score": round(score, 4),
                "box": [round(value, 2) for value in box],
                **({"mask": masks[n]} if masks else {}),
            }
            for n, (label, score, box) in enumerate(
                zip(
                    found["labels"].tolist(),
                    found["scores"].tolist(),
                    found["boxes"].tolist(),
                    strict=True,
                )
            )
        ]

    def count(self, found: dict[str, Tensor]) -> str:
        """Return what was found in words: ``2 dog, 1 person``."""
        names = Counter(self.detector.class_names[label - 1] for label in found["labels"].tolist())
        return ", ".join(f"{number} {name}" for name, number in names.most_common()) or "nothing"


def scaled(found: dict[str, Tensor], old: Sequence[int], new: Sequence[int]) -> dict[str, Tensor]:
    """Return detections in an image of size ``old`` (H, W) as those in the same at size ``new``.

    Masks become booleans.
    """
    high, wide = (b / a for a, b in zip(old, new, strict=True))
    out = {**found, "boxes": found["boxes"] * torch.tensor([wide, high, wide, high])}
    if "masks" in found:
        # One by one: as floats all together may not fit into memory.
        masks = [_resized(mask, new) > 0.5 for mask in found["masks"]]
        out["masks"] = torch.stack(masks) if masks else torch.zeros(0, 1, *new).bool()
    return out


def _resized(mask: Tensor, size: Sequence[int]) -> Tensor:
    if mask.shape[-2:] == tuple(size):
        return mask
    return F.interpolate(mask[None].float(), tuple(size), mode="bilinear")[0]
