"""Preprocessing of a classifier's images, and its class names: both are stored with its weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ecanet.data.augment import normalize
from ecanet.data.decode import Pixels, Window, as_channels, fit_square
from ecanet.errors import UserError, shown

# Mean and standard deviation of ImageNet's training images, in 0..1 (the usual constants).
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INTERPOLATIONS = ("bilinear", "bicubic")
# Limits in pixels of the sides of a model's images, and of the resized images they are cropped from.
LARGEST, LARGEST_RESIZE = 4096, 8192
MOST_WINDOW = 1e12
# Keys in the metadata of a weight file; the last two are timm's, from the JSON of a Hub folder.
PREPROCESSING, CLASSES = "preprocessing", "classes"
TIMM_CONFIG, TIMM_LABELS = "pretrained_cfg", "label_names"


@dataclass(frozen=True)
class Preprocessing:
    """The evaluation transform, from a decoded image to a model's input, in training and afterwards.

    Raises:
        UserError: a value has the wrong type or is out of range.
    """

    size: int
    """Side in pixels of the center crop."""
    resize: int
    """Pixels that the short side is first resized to, at least ``size``."""
    mean: tuple[float, ...] = MEAN
    """Of each channel, in 0..1: one for grey images, three for color."""
    std: tuple[float, ...] = STD
    """Standard deviation of each channel, in 0..1."""
    interpolation: str = "bilinear"
    """bilinear or bicubic, antialiased."""
    squash: bool = False
    """Resize both sides to ``resize`` rather than the short one: timm's crop mode ``squash``."""
    window: Window | None = None
    """The values of deep pixels that are black and white: :func:`ecanet.data.decode.decode_image`."""

    def __post_init__(self) -> None:
        for name, least, most in (("size", 1, LARGEST), ("resize", self.size, LARGEST_RESIZE)):
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise UserError(
                    f"preprocessing: {name} is {shown(value)}, not from {least} to {most}"
                )
        for name, low in (("mean", -1e6), ("std", 1e-6)):
            values = getattr(self, name)
            is_list = isinstance(values, (list, tuple)) and len(values) in (1, 3)
            if not is_list or not all(type(v) in (int, float) and low <= v <= 1e6 for v in values):
                above = " above 0" if name == "std" else ""
                raise UserError(
                    f"preprocessing: {name} is {shown(values)}, not one or three numbers{above}"
                )
            object.__setattr__(self, name, tuple(map(float, values)))
        if len(self.mean) != len(self.std):
            raise UserError("preprocessing: mean and std are of different lengths")
        if self.interpolation not in INTERPOLATIONS:
            raise UserError(
                f"preprocessing: interpolation is {shown(self.interpolation)}, not "
                f"{' or '.join(INTERPOLATIONS)}"
            )
        if type(self.squash) is not bool:
            raise UserError(f"preprocessing: squash is {shown(self.squash)}, not true or false")
        if self.window is not None:
            is_pair = isinstance(self.window, (list, tuple)) and len(self.window) == 2
            if not is_pair or not all(
                type(v) in (int, float) and abs(v) <= MOST_WINDOW for v in self.window
            ):
                raise UserError(f"preprocessing: window is {shown(self.window)}, not two numbers")
            low, high = map(float, self.window)
            if low >= high:
                raise UserError(
                    f"preprocessing: window is {low:g} to {high:g}: the first must be smaller"
                )
            object.__setattr__(self, "window", (low, high))

    @classmethod
    def of_crop(cls, size: int, crop_share: float, **others: Any) -> Preprocessing:
        """Return one whose crop is ``crop_share`` of the resized short side.

        Raises:
            UserError: a value is out of range.
        """
        cls(size, size)  # checks the size before it is divided
        if not isinstance(crop_share, (int, float)) or not 0 < crop_share <= 1:
            raise UserError(f"--crop-share {crop_share}: give a number above 0 and up to 1")
        return cls(size, int(min(size / crop_share, LARGEST_RESIZE + 1)), **others)

    def with_crop(self, size: int, crop_share: float) -> Preprocessing:
        """Return it with another crop, as by :meth:`of_crop`.

        Raises:
            UserError: a value is out of range.
        """
        crop = self.of_crop(size, crop_share)
        return replace(self, size=crop.size, resize=crop.resize)

    @property
    def crop_share(self) -> float:
        """Share of the resized short side that is cropped; :meth:`of_crop` inverts it exactly."""
        share = self.size / self.resize
        return share if int(self.size / share) == self.resize else math.nextafter(share, 0)

    @property
    def channels(self) -> int:
        return len(self.mean)

    @property
    def pixels(self) -> Pixels:
        return Pixels(self.channels, self.window)

    def __call__(self, image: Tensor) -> Tensor:
        """Transform an image, uint8 (1 or 3, H, W), to uint8 (channels, size, size).

        It is decoded with :attr:`window`.
        """
        image = as_channels(image, self.channels)
        return fit_square(image, self.size, self.resize, self.interpolation, squash=self.squash)

    def statistics(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation, float32 (channels,), on a device."""
        return torch.tensor(self.mean, device=device), torch.tensor(self.std, device=device)

    def batch(self, images: Sequence[Tensor]) -> Tensor:
        """Return a model's input, float32 (N, C, S, S), for images, uint8 (1 or 3, H, W) each."""
        return normalize(torch.stack([self(image) for image in images]), *self.statistics(), False)

    def for_channels(self, channels: int) -> Preprocessing:
        """Return it for images of ``channels`` channels, with the channels' mean for grey.

        Raises:
            UserError: the number is neither 1 nor 3.
        """
        if channels == self.channels:
            return self
        if channels not in (1, 3):
            raise UserError(f"the model takes images of {channels} channels, and files have 1 or 3")
        mean, std = ((sum(values) / len(values),) * channels for values in (self.mean, self.std))
        return replace(self, mean=mean, std=std)

    def __str__(self) -> str:
        mean, std = (" ".join(f"{v:.4g}" for v in values) for values in (self.mean, self.std))
        side = "both sides" if self.squash else "the short side"
        window = f", window {self.window[0]:g} to {self.window[1]:g}" if self.window else ""
        return (
            f"{side} to {self.resize} pixels ({self.interpolation}), center crop of {self.size}, mean "
            f"{mean}, deviation {std}{window}"
        )

    # ---- in files

    def to_timm(self) -> dict[str, Any]:
        """Return the keys of timm's ``pretrained_cfg``, with those of its tests removed."""
        return {
            "input_size": [self.channels, self.size, self.size],
            "mean": list(self.mean),
            "std": list(self.std),
            "crop_pct": self.crop_share,
            "crop_mode": "squash" if self.squash else "center",
            "interpolation": self.interpolation,
            "test_input_size": None,
            "test_crop_pct": None,
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Preprocessing | None:
        """Return the preprocessing of a weight file, ours or of a Hub folder, or None if it has none.

        Raises:
            UserError: it is invalid.
        """
        if PREPROCESSING in metadata:
            values = _parsed(metadata, PREPROCESSING)
            known = cls.__dataclass_fields__.keys() - {"window"}
            if not isinstance(values, dict) or values.keys() - {"window"} != known:
                raise UserError(
                    f"preprocessing: needs {', '.join(sorted(known))}; window is optional, and "
                    f"nothing else is allowed"
                )
            return cls(**values)
        if TIMM_CONFIG in metadata:
            return cls.from_timm(_parsed(metadata, TIMM_CONFIG))
        return None

    @classmethod
    def from_timm(cls, config: Any) -> Preprocessing | None:
        """Read timm's ``pretrained_cfg``; None if it has no size.

        Raises:
            UserError: it is invalid.
        """
        if not isinstance(config, Mapping) or not config.get("input_size"):
            return None
        sizes = config["input_size"]
        is_list = isinstance(sizes, (list, tuple)) and len(sizes) == 3
        if not is_list or sizes[1] != sizes[2] or type(sizes[0]) is not int:
            raise UserError(f"preprocessing: input_size is {shown(sizes)}, not [3, S, S]")
        mode = config.get("crop_mode") or "center"
        if mode not in ("center", "squash"):
            raise UserError(f"preprocessing: crop_mode is {shown(mode)}, not center or squash")
        found = cls.of_crop(
            sizes[1],
            config.get("crop_pct") or 0.875,
            mean=config.get("mean") or MEAN,
            std=config.get("std") or STD,
            interpolation=config.get("interpolation") or "bilinear",
            squash=mode == "squash",
        )
        return found.for_channels(sizes[0])


def class_names(metadata: Mapping[str, str], count: int) -> list[str] | None:
    """Return the names of a model's ``count`` classes in a weight file, or None if it has none.

    Raises:
        UserError: they are no names, or another number of them.
    """
    key = CLASSES if CLASSES in metadata else TIMM_LABELS
    try:
        names = json.loads(metadata.get(key, "null"))
    except (ValueError, RecursionError):
        names = None
    if isinstance(names, dict):  # timm's form with gaps: number to name
        names = [names.get(str(number), "") for number in range(count)]
    if not isinstance(names, list) or count == 0:
        return None  # other programs store a number under this key, or nothing
    if not all(isinstance(name, str) for name in names):
        raise UserError(f"the weights name their classes {shown(names)}: these are not names")
    if len(names) != count:
        raise UserError(f"the weights name {len(names)} classes, and have {count}")
    return names


def describe(preprocessing: Preprocessing | None, classes: Sequence[str] | None) -> dict[str, str]:
    """Return the metadata for the preprocessing and the class names."""
    metadata: dict[str, str] = {}
    if preprocessing is not None:
        values = asdict(preprocessing)
        if preprocessing.window is None:
            del values["window"]  # earlier versions do not know it
        metadata[PREPROCESSING] = json.dumps(values)
    if classes is not None:
        metadata[CLASSES] = json.dumps(list(classes))
    return metadata


def _parsed(metadata: Mapping[str, str], key: str) -> Any:
    try:
        return json.loads(metadata[key])
    except (ValueError, RecursionError):
        raise UserError(f"{key}: {shown(metadata[key])} is no JSON") from None
