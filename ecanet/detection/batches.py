"""Images of any size with their objects: changed at random, and put together for a step."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from ecanet.data.stream import Position, derived_seed
from ecanet.detection.dataset import CocoFolder


@dataclass(frozen=True)
class DetectionBatch:
    """Images of a step and their objects, in few tensors, which travel faster than many."""

    pixels: Tensor
    """uint8: the values of all images (3, H, W), one image behind the other."""
    sizes: list[tuple[int, int]]
    """Height and width of each image."""
    image_ids: list[int]
    counts: list[int]
    """Objects of each image."""
    boxes: Tensor
    """float32 (objects of all images, 4), as x1, y1, x2, y2."""
    labels: Tensor
    """int64 (objects of all images,)."""
    masks: Tensor | None
    """uint8: the values of all masks (H, W), one behind the other."""
    corrupt: list[str] = field(default_factory=list)

    def pin_memory(self) -> DetectionBatch:
        return dataclasses.replace(
            self,
            pixels=self.pixels.pin_memory(),
            boxes=self.boxes.pin_memory(),
            labels=self.labels.pin_memory(),
            masks=None if self.masks is None else self.masks.pin_memory(),
        )

    def images(self, device: torch.device) -> list[Tensor]:
        """Return float images (3, H, W) of 0..1 on the device."""
        pixels = self.pixels.to(device, non_blocking=True)
        lengths = [3 * height * width for height, width in self.sizes]
        parts = zip(pixels.split(lengths), self.sizes, strict=True)
        return [part.view(3, *size).float() / 255 for part, size in parts]

    def targets(self, device: torch.device) -> list[dict[str, Tensor]]:
        """Return what a detector is trained on, a dict an image, on the device."""
        boxes = self.boxes.to(device, non_blocking=True).split(self.counts)
        labels = self.labels.to(device, non_blocking=True).split(self.counts)
        targets = [{"boxes": b, "labels": n} for b, n in zip(boxes, labels, strict=True)]
        if self.masks is not None:
            places = list(zip(self.counts, self.sizes, strict=True))
            lengths = [count * height * width for count, (height, width) in places]
            masks = self.masks.to(device, non_blocking=True).split(lengths)
            for target, part, (count, size) in zip(targets, masks, places, strict=True):
                target["masks"] = part.view(count, *size)
        return targets


def collate(samples: list[tuple[Tensor, dict[str, Any]]]) -> DetectionBatch:
    """Put images and targets, as :meth:`CocoFolder.target` returns them, together."""
    images, targets = zip(*samples, strict=True)
    has_masks = all("masks" in target for target in targets)
    return DetectionBatch(
        pixels=torch.cat([image.flatten() for image in images]),
        sizes=[tuple(image.shape[1:]) for image in images],
        image_ids=[target["image_id"] for target in targets],
        counts=[len(target["boxes"]) for target in targets],
        boxes=torch.cat([target["boxes"] for target in targets]),
        labels=torch.cat([target["labels"] for target in targets]),
        masks=torch.cat([t["masks"].flatten() for t in targets]) if has_masks else None,
    )


class TrainingImages(Dataset[tuple[Tensor, dict[str, Any]]]):
    """Images flipped and resized at random, with their objects but crowds; by (epoch, index).

    Args:
        folder: what to read.
        masks: give masks too.
        flip: mirror left and right with probability 1/2.
        min_size: short sides in pixels, of which each image gets one.
        max_size: limit of the long side.
        seed: of what is drawn, with the epoch and the index.

    An index beyond the images begins with the first again, and draws anew.
    """

    def __init__(
        self,
        folder: CocoFolder,
        *,
        masks: bool,
        flip: bool,
        min_size: Sequence[int],
        max_size: int,
        seed: int,
    ) -> None:
        self.folder, self.masks, self.seed = folder, masks, seed
        # Without antialiasing: as torchvision's detectors resize what they evaluate.
        resize = v2.RandomShortestSize(list(min_size), max_size, antialias=False)
        self.transform = v2.Compose([*([v2.RandomHorizontalFlip()] if flip else []), resize])

    def __getitem__(self, position: Position) -> tuple[Tensor, dict[str, Any]]:
        epoch, index = position
        number = index % len(self.folder)
        image, target = self.folder.image(number), self.folder.target(number, self.masks)
        single = ~target["iscrowd"]
        objects: dict[str, Any] = {
            "boxes": tv_tensors.BoundingBoxes(
                target["boxes"][single],
                format="XYXY",
                canvas_size=tuple(image.shape[1:]),
            ),
            "labels": target["labels"][single],
        }
        if self.masks:
            objects["masks"] = tv_tensors.Mask(target["masks"][single])
        torch.default_generator.manual_seed(derived_seed("augment", self.seed, epoch, index))
        changed, objects = self.transform(tv_tensors.Image(image), objects)
        # What a smaller image has left no pixel of cannot be learned.
        corners = objects["boxes"].as_subclass(Tensor)
        seen = (corners[:, 2:] - corners[:, :2] >= 1).all(dim=1)
        plain = {name: value.as_subclass(Tensor)[seen] for name, value in objects.items()}
        return changed.as_subclass(Tensor), {**plain, "image_id": target["image_id"]}


def shape_groups(folder: CocoFolder, repeats: int) -> list[int]:
    """Return 0 for wide images and 1 for tall ones, so that batches of one kind waste no padding."""
    groups = [int(image["height"] > image["width"]) for image in folder.images]
    return list(itertools.chain.from_iterable(itertools.repeat(groups, repeats)))
