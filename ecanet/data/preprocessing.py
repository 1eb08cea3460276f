"""How images are prepared for a classifier, and its classes' names: both travel with its weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ecanet.data.augment import normalize
from ecanet.data.decode import fit_square
from ecanet.errors import UserError

# Mean and standard deviation of ImageNet's training images, in 0..1 (the usual constants).
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INTERPOLATIONS = ("bilinear", "bicubic")
# Sides in pixels: of the images a model gets, and of what they are cut from.
LARGEST, LARGEST_RESIZE = 4096, 8192
# Names in the metadata of a weight file. The last two are the JSON of a Hub folder, in timm's words.
PREPROCESSING, CLASSES, TIMM_CONFIG, TIMM_LABELS = (
    "preprocessing",
    "classes",
    "pretrained_cfg",
    "label_names",
)
# ITU-R 601 in 16 bits, as PIL computes it: a grey pixel keeps its value.
_LUMA = (19595, 38470, 7471)


@dataclass(frozen=True)
class Preprocessing:
    """From a decoded image to what the model gets: the evaluation of training, and of everything after it.

    Raises:
        UserError: a value is of another type or out of its range.
    """

    size: int
    """Side in pixels of the square that is cut from the centre."""
    resize: int
    """Pixels that the short side is brought to before, at least ``size``."""
    mean: tuple[float, ...] = MEAN
    """Of each channel, in 0..1; one for grey images, three for colour."""
    std: tuple[float, ...] = STD
    """Standard deviation of each channel, in 0..1."""
    interpolation: str = "bilinear"
    """bilinear or bicubic, antialiased."""
    squash: bool = False
    """Bring both sides to ``resize``, in place of the short one: timm's crop mode of that name."""

    def __post_init__(self) -> None:
        for name, least, most in (("size", 1, LARGEST), ("resize", self.size, LARGEST_RESIZE)):
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise UserError(
                    f"preprocessing: {name} is {_short(value)}, not from {least} to {most}"
                )
        for name, low in (("mean", -1e6), ("std", 1e-6)):
            values = getattr(self, name)
            is_list = isinstance(values, (list, tuple)) and len(values) in (1, 3)
            if not is_list or not all(type(v) in (int, float) and low <= v <= 1e6 for v in values):
                above = " above 0" if name == "std" else ""
                raise UserError(
                    f"preprocessing: {name} is {_short(values)}, not one or three numbers{above}"
                )
            object.__setattr__(self, name, tuple(map(float, values)))
        if len(self.mean) != len(self.std):
            raise UserError("preprocessing: mean and std are of different lengths")
        if self.interpolation not in INTERPOLATIONS:
            raise UserError(
                f"preprocessing: interpolation is {_short(self.interpolation)}, not "
                f"{' or '.join(INTERPOLATIONS)}"
            )
        if type(self.squash) is not bool:
            raise UserError(f"preprocessing: squash is {_short(self.squash)}, not true or false")

    @classmethod
    def of_crop(cls, size: int, crop_share: float, **others: Any) -> Preprocessing:
        """Return one whose crop takes ``crop_share`` of the resized short side.

        Raises:
            UserError: a value is out of its range.
        """
        cls(size, size)  # a size that cannot be is not divided
        if not isinstance(crop_share, (int, float)) or not 0 < crop_share <= 1:
            raise UserError(f"--crop_share {crop_share}: give a number above 0 and up to 1")
        return cls(size, int(min(size / crop_share, LARGEST_RESIZE + 1)), **others)

    @property
    def crop_share(self) -> float:
        """Share of the resized short side that the crop takes; :meth:`of_crop` undoes it exactly."""
        share = self.size / self.resize
        return share if int(self.size / share) == self.resize else math.nextafter(share, 0)

    @property
    def channels(self) -> int:
        return len(self.mean)

    def __call__(self, image: Tensor) -> Tensor:
        """Bring an image, uint8 (1 or 3, H, W), to uint8 (channels, size, size)."""
        if len(image) == 1:
            image = image.expand(self.channels, -1, -1)
        elif self.channels == 1:
            weights = torch.tensor(_LUMA, dtype=torch.int32)[:, None, None]
            image = (((image * weights).sum(0, keepdim=True) + 0x8000) >> 16).to(torch.uint8)
        return fit_square(image, self.size, self.resize, self.interpolation, squash=self.squash)

    def statistics(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Return mean and deviation, float32 (channels,), on a device."""
        return torch.tensor(self.mean, device=device), torch.tensor(self.std, device=device)

    def batch(self, images: Sequence[Tensor]) -> Tensor:
        """Return images, uint8 (1 or 3, H, W) each, as the model gets them: float32 (N, C, S, S)."""
        return normalize(torch.stack([self(image) for image in images]), *self.statistics(), False)

    def for_channels(self, channels: int) -> Preprocessing:
        """Return it for images of so many channels: grey gets the channels' mean.

        Raises:
            UserError: images have one channel or three.
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
        return (
            f"{side} to {self.resize} pixels ({self.interpolation}), the {self.size} at the centre, mean "
            f"{mean}, deviation {std}"
        )

    # ---- in files

    def to_json(self) -> str:
        """Return what :meth:`from_metadata` reads under ``preprocessing``."""
        return json.dumps(asdict(self))

    def to_timm(self) -> dict[str, Any]:
        """Return the keys of timm's ``pretrained_cfg``; those of its tests are taken out."""
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
        """Return what a weight file says, of ours or a Hub folder; None if it says nothing.

        Raises:
            UserError: it says what cannot be.
        """
        if PREPROCESSING in metadata:
            values = _parsed(metadata, PREPROCESSING)
            known = cls.__dataclass_fields__.keys()
            if not isinstance(values, dict) or values.keys() != known:
                raise UserError(f"preprocessing: needs {', '.join(known)} and nothing else")
            return cls(**values)
        if TIMM_CONFIG in metadata:
            return cls.from_timm(_parsed(metadata, TIMM_CONFIG))
        return None

    @classmethod
    def from_timm(cls, config: Any) -> Preprocessing | None:
        """Read timm's ``pretrained_cfg``; None if it has no size.

        Raises:
            UserError: it says what cannot be.
        """
        if not isinstance(config, Mapping) or not config.get("input_size"):
            return None
        sizes = config["input_size"]
        if (
            not isinstance(sizes, (list, tuple))
            or len(sizes) != 3
            or sizes[1] != sizes[2]
            or type(sizes[0]) is not int
        ):
            raise UserError(f"preprocessing: input_size is {_short(sizes)}, not [3, S, S]")
        mode = config.get("crop_mode") or "center"
        if mode not in ("center", "squash"):
            raise UserError(f"preprocessing: crop_mode is {_short(mode)}, not center or squash")
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
    """Return the names of a model's ``count`` classes that a weight file tells; None if it tells none.

    Raises:
        UserError: they are no names, or not so many.
    """
    key = CLASSES if CLASSES in metadata else TIMM_LABELS
    try:
        names = json.loads(metadata.get(key, "null"))
    except (ValueError, RecursionError):
        names = None
    if isinstance(names, dict):  # timm's for gaps in the numbers: number to name
        names = [names.get(str(number), "") for number in range(count)]
    if not isinstance(names, list) or count == 0:
        return None  # other programs keep a number under this key, or nothing
    if not all(isinstance(name, str) for name in names):
        raise UserError(f"the weights name their classes {_short(names)}: these are no names")
    if len(names) != count:
        raise UserError(f"the weights name {len(names)} classes and tell {count} apart")
    return names


def describe(preprocessing: Preprocessing | None, classes: Sequence[str] | None) -> dict[str, str]:
    """Return the metadata that say how images are prepared and what the classes are called."""
    said: dict[str, str] = {}
    if preprocessing is not None:
        said[PREPROCESSING] = preprocessing.to_json()
    if classes is not None:
        said[CLASSES] = json.dumps(list(classes))
    return said


def _parsed(metadata: Mapping[str, str], key: str) -> Any:
    try:
        return json.loads(metadata[key])
    except (ValueError, RecursionError):
        raise UserError(f"{key}: {_short(metadata[key])} is no JSON") from None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
