"""Objects found in people's own pictures: drawn into a copy of each, and written as JSON beside it."""

from __future__ import annotations

import glob
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from ecanet.config import PredictSettings
from ecanet.data.decode import decode_image, read_file
from ecanet.data.folder import ENDINGS
from ecanet.detection.drawing import draw_detections
from ecanet.detection.evaluation import encode_masks
from ecanet.detection.inference import detect, open_detector
from ecanet.errors import UserError
from ecanet.record import write_atomic, write_json

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
        if settings.top < 1:
            raise UserError(f"--top {settings.top}: give a whole number from 1")
        self.fabric, self.settings = fabric, settings
        self.detector = open_detector(fabric, weights, settings, say)
        # Here and not afterwards: what is not asked for needs no mask.
        scorer = getattr(self.detector, "roi_heads", self.detector)
        scorer.score_thresh, scorer.detections_per_img = settings.threshold, settings.top

    def find(self, image: Tensor) -> dict[str, Tensor]:
        """Return the detections in a uint8 image (3, H, W), on the CPU, masks as booleans."""
        size = image.shape[-2:]
        factor = (_MOST_PIXELS / (size[0] * size[1])) ** 0.5
        if factor < 1:
            image = resize(image, [max(1, int(side * factor)) for side in size], antialias=True)
        found = detect(self.fabric, self.detector, [image])[0]
        found = {name: tensor.cpu() for name, tensor in found.items()}
        if factor < 1:
            high, wide = (a / b for a, b in zip(size, image.shape[-2:], strict=True))
            found["boxes"] *= torch.tensor([wide, high, wide, high])
        if "masks" in found:
            masks = [_at_size(mask, size) > 0.5 for mask in found["masks"]]
            found["masks"] = torch.stack(masks) if masks else torch.zeros(0, 1, *size).bool()
        return found

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


def predict_pictures(
    predictor: Predictor,
    paths: Sequence[Path],
    out: Path,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[Path]:
    """Yield each drawn picture ``out/NAME.png`` when it and ``NAME.json`` are written.

    The JSON has the picture's ``image``, ``width`` and ``height`` and its ``detections``: each with its
    ``name``, ``category_id``, ``score``, ``box`` (left, top, right, bottom in pixels) and, from Mask
    R-CNN, ``mask`` in COCO's run lengths.

    Raises:
        UserError: at the end, if pictures could not be read; the others are done.
    """
    unreadable = []
    for path, name in zip(paths, _names(paths), strict=True):
        try:
            image = read_picture(path)
        except UserError as error:
            unreadable.append(str(error))
            continue
        found = predictor.find(image)
        drawn = predictor.draw(image, found)
        write_json(
            out / f"{name}.json",
            {
                "image": str(path),
                "width": image.shape[2],
                "height": image.shape[1],
                "detections": predictor.describe(found),
            },
        )
        write_png(out / f"{name}.png", drawn)
        say(f"{path}: {predictor.count(found)}")
        yield out / f"{name}.png"
    if unreadable:
        rest = f" ({len(unreadable)} of {len(paths)} pictures; the others are done)"
        raise UserError("; ".join(unreadable[:3]) + (rest if len(paths) > 1 else ""))


def read_picture(path: Path) -> Tensor:
    """Return a picture as uint8 RGB (3, H, W), turned as its EXIF orientation says.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return decode_image(read_file(path))
    except ValueError as error:
        raise UserError(f"{path} is no picture that can be read: {error}") from None


def write_png(path: Path, picture: Image.Image) -> None:
    """Write a picture without loss, atomically."""
    content = io.BytesIO()
    picture.save(content, "PNG", compress_level=2)  # the default takes ten times as long
    write_atomic(path, content.getbuffer())


def find_files(names: Iterable[str], endings: Sequence[str] = ENDINGS) -> list[Path]:
    """Return the files that names stand for: files, the pictures of folders, and what globs match.

    Raises:
        UserError: a name stands for nothing.
    """
    found: list[Path] = []
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir():
            files = sorted(p for p in path.iterdir() if p.suffix.lower() in endings)
            if not files:
                raise UserError(f"there is no picture in the folder {name}")
        elif path.exists():
            files = [path]
        else:
            files = sorted(Path(p) for p in glob.glob(str(path), recursive=True))
            files = [p for p in files if p.is_file()]
            if not files:
                raise UserError(f"there is no picture {name}")
        found += files
    return list(dict.fromkeys(found))


def check_out(out: Path, paths: Iterable[Path]) -> None:
    """Refuse a folder for results that holds pictures to be read, where one could overwrite another.

    Raises:
        UserError: it does, or it is a file.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: choose a folder")
    if any(path.resolve().parent == out.resolve() for path in paths):
        raise UserError(f"--out {out} holds the pictures themselves: choose another folder")


def _names(paths: Sequence[Path]) -> list[str]:
    """Return a file name without ending for each path, no two alike."""
    names: list[str] = []
    for path in paths:
        name, number = path.stem, 2
        while name in names:
            name, number = f"{path.stem}-{number}", number + 1
        names.append(name)
    return names


def _at_size(mask: Tensor, size: Sequence[int]) -> Tensor:
    """Return a (1, h, w) mask of 0..1 at (1, *size)."""
    if mask.shape[-2:] == tuple(size):
        return mask
    return F.interpolate(mask[None], tuple(size), mode="bilinear")[0]
