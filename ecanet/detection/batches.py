"""Batches of images of any size with their objects, randomly augmented."""

from __future__ import annotations

import dataclasses
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
    """Images of a step and their objects, in few tensors, which are faster to transfer than many."""

    pixels: Tensor
    """uint8: the values of all images (3, H, W), concatenated."""
    sizes: list[tuple[int, int]]
    """Height and width of each image."""
    image_ids: list[int]
    counts: list[int]
    """Number of objects of each image."""
    boxes: Tensor
    """float32 (objects of all images, 4), as x1, y1, x2, y2."""
    labels: Tensor
    """int64 (objects of all images,)."""
    masks: Tensor | None
    """uint8: the values of all masks (H, W), concatenated."""
    corrupt: list[str] = field(default_factory=list)

    def pin_memory(self) -> DetectionBatch:
        """Return the batch with its tensors in pinned memory."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        pinned: dict[str, Any] = {name: tensor.pin_memory() for name, tensor in tensors.items()}
        return dataclasses.replace(self, **pinned)

    def images(self, device: torch.device) -> list[Tensor]:
        """Return float images (3, H, W) in 0..1 on the device."""
        pixels = self.pixels.to(device, non_blocking=True)
        lengths = [3 * height * width for height, width in self.sizes]
        parts = zip(pixels.split(lengths), self.sizes, strict=True)
        return [part.view(3, *size).float() / 255 for part, size in parts]

    def targets(self, device: torch.device) -> list[dict[str, Tensor]]:
        """Return the targets of a detector, a dict per image, on the device."""
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
    """Return a batch of images with targets as :meth:`CocoFolder.target` returns them."""
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
    """Randomly flipped and resized images with their objects, without crowds; indexed by (epoch, index).

    Args:
        folder: the images.
        masks: include masks.
        flip: flip horizontally with probability 1/2.
        min_size: short sides in pixels, one of which is drawn for each image.
        max_size: limit of the long side.
        seed: of the augmentation, with the epoch and the index.

    Indices beyond the number of images start with the first again, with another augmentation.
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
        # Without antialiasing, as torchvision's detectors resize in evaluation.
        resize = v2.RandomShortestSize(list(min_size), max_size, antialias=False)
        self.transform = v2.Compose([*([v2.RandomHorizontalFlip()] if flip else []), resize])

    def __getitem__(self, position: Position) -> tuple[Tensor, dict[str, Any]]:
        epoch, index = position
        number = index % len(self.folder)
        image, target = self.folder.image(number), self.folder.target(number, self.masks)
        single = ~target["iscrowd"]
        objects: dict[str, Any] = {
            "boxes": tv_tensors.BoundingBoxes(
                target["boxes"][single], format="XYXY", canvas_size=tuple(image.shape[1:])
            ),
            "labels": target["labels"][single],
        }
        if self.masks:
            objects["masks"] = tv_tensors.Mask(target["masks"][single])
        torch.default_generator.manual_seed(derived_seed("augment", self.seed, epoch, index))
        changed, objects = self.transform(tv_tensors.Image(image), objects)
        # Objects of less than a pixel in the resized image cannot be learned.
        corners = objects["boxes"].as_subclass(Tensor)
        seen = (corners[:, 2:] - corners[:, :2] >= 1).all(dim=1)
        plain = {name: value.as_subclass(Tensor)[seen] for name, value in objects.items()}
        return changed.as_subclass(Tensor), {**plain, "image_id": target["image_id"]}


def shape_groups(folder: CocoFolder, repeats: int) -> list[int]:
    """Return 0 for wide images and 1 for tall ones: batches of one kind need less padding."""
    return [int(image["height"] > image["width"]) for image in folder.images] * repeats
