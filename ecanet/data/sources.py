"""Data sets known by name: scikit-learn's digits, and those of torchvision, which downloads them once."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock

from ecanet.activity import Activity, activity
from ecanet.aliases import TORCHVISION
from ecanet.data.cache import cache_folder
from ecanet.data.dataset import Split, hold_out, tensor_hash
from ecanet.data.splits import TEST, Images, Listing
from ecanet.data.stream import ImageList
from ecanet.errors import UserError, did_you_mean, one_line

SILENCE = 60.0
"""Seconds without a byte after which a download is given up."""


class _Arguments(NamedTuple):
    """How a data set of torchvision is asked for a split: the argument, and its value for each."""

    argument: str = "split"
    train: Any = "train"
    val: Any = None
    test: Any = "test"

    def splits(self) -> dict[str, dict[str, Any]]:
        values = {"train": self.train, "val": self.val, "test": self.test}
        if not self.argument:  # a data set without splits
            return {"train": {}}
        return {split: {self.argument: v} for split, v in values.items() if v is not None}


_BOOLEAN = _Arguments("train", train=True, test=False)
_THREE = _Arguments(val="val")
_WHOLE = _Arguments("")
_KNOWN = {
    "CIFAR10": _BOOLEAN, "CIFAR100": _BOOLEAN, "FashionMNIST": _BOOLEAN, "MNIST": _BOOLEAN,
    "USPS": _BOOLEAN, "SVHN": _Arguments(), "STL10": _Arguments(), "EuroSAT": _WHOLE,
    "Country211": _Arguments(val="valid"), "DTD": _THREE, "FGVCAircraft": _THREE,
    "Flowers102": _THREE, "Food101": _Arguments(), "GTSRB": _Arguments(),
    "Imagenette": _Arguments(val="val", test=None),
    "OxfordIIITPet": _Arguments(train="trainval"), "RenderedSST2": _THREE,
    "StanfordCars": _Arguments(), "SUN397": _WHOLE,
}  # fmt: skip
# Where torchvision's words would hide that these are digits, which are not mirrored, or there are no words.
_NUMBERED = {"MNIST": 10, "USPS": 10, "SVHN": 10, "GTSRB": 43}


def list_digits() -> Listing:
    """scikit-learn's 1,797 handwritten digits, 8x8, of one channel; a fixed fifth of each class is test.

    Values 0..16 become round(v * 255 / 16).
    """
    from sklearn.datasets import load_digits  # a second of imports that other sources do not need

    digits = load_digits()
    images = torch.from_numpy(digits.images).mul(255 / 16).round_().to(torch.uint8)[:, None]
    labels = torch.from_numpy(digits.target).long()
    classes = [str(name) for name in digits.target_names]
    whole = Split(images, labels, [f"digits/{index}" for index in range(len(labels))])
    train, test = hold_out(labels, TEST, classes)
    splits: dict[str, Images] = {
        "train": whole.subset(train.tolist()),
        "test": whole.subset(test.tolist()),
    }
    return Listing("digits", "digits", classes, splits, content=tensor_hash(images, labels))


def list_torchvision(data: str, downloads: Path | None = None) -> Listing:
    """Return a classification data set of torchvision, downloaded if it is not there.

    Args:
        data: ``torchvision/NAME``, or cifar10 or cifar100.
        downloads: folder of the archives; by default ``downloads`` in the cache.

    Raises:
        UserError: the name is unknown, or the data cannot be had.
    """
    from torchvision import datasets  # seconds of imports that other sources do not need

    asked = data.removeprefix(TORCHVISION)
    name = next((known for known in _KNOWN if known.lower() == asked.lower()), None)
    if name is None:
        raise UserError(f"Unknown data {data!r}.{did_you_mean(asked, _KNOWN)}")
    source = getattr(datasets, name)
    folder = (downloads or cache_folder() / "downloads").expanduser()
    try:
        found = {
            split: _open_or_download(functools.partial(source, folder, **arguments), name, folder)
            for split, arguments in _KNOWN[name].splits().items()
        }
    except (OSError, EOFError, RuntimeError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        archive = ""
        if hasattr(source, "filename") and hasattr(source, "url"):
            archive = f"Put {source.filename} from {source.url} into {folder}, or give "
        raise UserError(
            f"{data} cannot be loaded: {one_line(reason).rstrip('.')}. {archive or 'Give '}a "
            f"folder of images "
            "in place of the name."
        ) from None
    classes = _class_names(name, found["train"])
    splits = {split: _images(part, split, folder, classes) for split, part in found.items()}
    tensors = [
        tensor for images in splits.values() if isinstance(images, Split)
        for tensor in (images.images, images.labels)
    ]  # fmt: skip
    return Listing(
        data, asked, classes, splits, content=tensor_hash(*tensors), labels_apart=not tensors
    )


def _open_or_download(open_it: Any, name: str, folder: Path) -> Any:
    try:
        return open_it()
    except RuntimeError:  # torchvision's word for files that are missing or damaged
        folder.mkdir(parents=True, exist_ok=True)
    # Several processes may get here together: one downloads, the others then find it done.
    lock = FileLock(folder / f".{name}.lock")
    with (
        lock,
        _socket_timeout(SILENCE),
        activity(f"downloading {name}", 100, "%") as shown,
        contextlib.redirect_stderr(_Bar(shown)),
    ):
        return open_it(download=True)


class _Bar(io.StringIO):
    """Takes the place of standard error for torchvision's progress bar, which has no switch."""

    def __init__(self, shown: Activity) -> None:
        super().__init__()
        self.shown = shown

    def write(self, text: str) -> int:
        if found := re.search(r"(\d+)%", text):
            self.shown.done = float(found[1])
        return len(text)


def _class_names(name: str, part: Any) -> list[str]:
    if name in _NUMBERED:
        return [str(number) for number in range(_NUMBERED[name])]
    return [entry if isinstance(entry, str) else entry[0] for entry in part.classes]


def _images(part: Any, split: str, folder: Path, classes: list[str]) -> Images:
    """Return the images of one of torchvision's data sets, which keep them under different names."""
    if hasattr(part, "data"):
        array = part.data if torch.is_tensor(part.data) else torch.from_numpy(np.asarray(part.data))
        array = array[:, None] if array.ndim == 3 else array
        if array.shape[1] not in (1, 3):  # (N, H, W, C)
            array = array.permute(0, 3, 1, 2)
        labels = torch.as_tensor(part.targets if hasattr(part, "targets") else part.labels).long()
        files = [f"{split}/{index}" for index in range(len(labels))]
        return Split(array.contiguous(), labels, files)
    if samples := getattr(part, "samples", getattr(part, "_samples", None)):
        paths, found = zip(*samples, strict=True)
    else:
        paths = part._image_files if hasattr(part, "_image_files") else part._images
        found = part._labels
    names = [Path(path).relative_to(folder).as_posix() for path in paths]
    return ImageList(folder, names, [int(label) for label in found], classes)


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Make torchvision's downloads give up on a silent server; they set no timeout of their own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
