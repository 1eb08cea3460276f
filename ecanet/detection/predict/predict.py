"""Objects in any images: drawn on a copy of each, and written as JSON."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from ecanet.config import EvaluateDetectorSettings, PredictSettings
from ecanet.data.arguments import named_files
from ecanet.data.decode import read_image
from ecanet.data.formats import ENDINGS
from ecanet.detection.predict import animation, video
from ecanet.detection.predict.predictor import Predictor, scaled
from ecanet.errors import UserError
from ecanet.files import write_atomic, write_json
from ecanet.training.launch import launch

log = logging.getLogger(__name__)

T = TypeVar("T")

_MAX_IN_ANIMATION = 16


def predict(
    names: Sequence[str],
    out: Path,
    settings: PredictSettings,
    *,
    max_frames: int | None = None,
    on_unreadable: Callable[[str], None] = lambda line: None,
) -> Iterator[Path]:
    """Yield the path of each drawn image or video once it and its JSON are written.

    An image becomes ``out/NAME.png`` and ``NAME.json``, with the source ``image``, its ``width`` and
    ``height``, and its ``detections``: each with ``name``, ``category_id``, ``score``, ``box`` (left, top,
    right, bottom in pixels) and, from Mask R-CNN, ``mask`` in COCO's run lengths. For videos see
    :func:`ecanet.detection.predict.video.predict_video`.

    Args:
        names: files, folders, glob patterns, ``webcam``.
        out: folder; made if missing.
        settings: weights, threshold, sizes, device.
        max_frames: of a video or webcam.
        on_unreadable: called with a line for each source that cannot be read and is skipped.

    Raises:
        UserError: the settings cannot be used; or, at the end, no source could be read.
    """
    sources = [name if video.is_webcam(name) else str(p) for name in names for p in _files(name)]
    sources = list(dict.fromkeys(sources))
    if max_frames is not None and not any(map(video.is_video, sources)):
        raise UserError("--frames is for videos and webcams: leave it out for images")
    _check_out(out, sources)
    assert settings.weights is not None
    predictor = Predictor(_one_process(settings), Path(settings.weights), settings)
    targets = {s: out / name for s, name in zip(sources, _names(sources), strict=True)}

    def write(source: str) -> Path:
        if video.is_video(source):
            return video.predict_video(predictor, source, targets[source], max_frames)
        return _predict_image(predictor, source, read_image(source), targets[source])

    for _, written in _each_readable(sources, write, on_unreadable):
        yield written


def predict_epochs(
    names: Sequence[str],
    run: Path,
    out: Path,
    settings: PredictSettings,
    *,
    gif: bool,
    on_unreadable: Callable[[str], None] = lambda line: None,
) -> Iterator[Path]:
    """Draw the same images with the weights of each epoch of a training run.

    Unreadable images are skipped, as by :func:`predict`.

    Yields:
        ``out/epoch001/NAME.png`` ... as :func:`predict`; or, with ``gif``, only ``out/progress.gif``, which
        shows each epoch's AP above the images.

    Raises:
        UserError: the run has no weights of single epochs, or no image can be read.
    """
    sources = list(dict.fromkeys(str(path) for name in names for path in _files(name)))
    if any(map(video.is_video, sources)):
        raise UserError("--checkpoints is for images: leave out the videos")
    if gif and len(sources) > _MAX_IN_ANIMATION:
        raise UserError(f"--gif shows up to {_MAX_IN_ANIMATION} images, not {len(sources)}")
    _check_out(out, sources)
    images = dict(_each_readable(sources, read_image, on_unreadable))
    checkpoints = animation.find_checkpoints(run)
    captions = animation.read_captions(run, list(checkpoints))
    fabric = _one_process(settings)
    sheets = []
    for epoch, weights in checkpoints.items():
        predictor = Predictor(fabric, weights, settings)
        if gif:
            log.info(captions[epoch])
            drawn = [_small(predictor, image, len(images)) for image in images.values()]
            sheets.append(animation.tile(drawn))
            continue
        for (source, image), name in zip(images.items(), _names(list(images)), strict=True):
            yield _predict_image(predictor, source, image, out / weights.stem / name)
    if gif:
        animation.write_animation(out / "progress.gif", sheets, list(captions.values()))
        yield out / "progress.gif"


def _each_readable(
    sources: Sequence[str], read: Callable[[str], T], on_unreadable: Callable[[str], None]
) -> Iterator[tuple[str, T]]:
    """Yield each source with ``read(source)``, and skip those for which that raises a UserError.

    Raises:
        UserError: all of them were skipped; if there is only one, its own error.
    """
    skipped = 0
    for source in sources:
        try:
            result = read(source)
        except UserError as error:
            if len(sources) == 1:
                raise
            skipped += 1
            on_unreadable(str(error))
            continue
        yield source, result
    if skipped == len(sources):
        raise UserError(f"none of the {skipped} files could be read")


def _predict_image(predictor: Predictor, source: str, image: Tensor, target: Path) -> Path:
    found = predictor.find(image)
    drawn = predictor.draw(image, found)
    content = {
        "image": source,
        "width": image.shape[2],
        "height": image.shape[1],
        "detections": predictor.describe(found),
    }
    write_json(target.with_name(f"{target.name}.json"), content)
    png = io.BytesIO()
    drawn.save(png, "PNG", compress_level=2)  # the default takes ten times as long
    path = target.with_name(f"{target.name}.png")
    write_atomic(path, png.getbuffer())
    log.info(f"{source}: {predictor.count(found)}")
    return path


def _small(predictor: Predictor, image: Tensor, count: int) -> Image.Image:
    """Return a drawn image of the size that an animation of ``count`` images has room for."""
    found = predictor.find(image)
    size = image.shape[-2:]
    factor = min(1.0, animation.image_side(count) / max(size))
    new = [max(1, round(side * factor)) for side in size]
    return predictor.draw(resize(image, new, antialias=True), scaled(found, size, new))


def _one_process(settings: PredictSettings) -> Fabric:
    return launch(EvaluateDetectorSettings(device=settings.device, precision=settings.precision))


def _files(name: str) -> list[Path]:
    """Return the images and videos of a name; a webcam stays the name it is."""
    if video.is_webcam(name):
        return [Path(name)]
    return named_files(name, (*ENDINGS, *video.ENDINGS))


def _check_out(out: Path, sources: Iterable[str]) -> None:
    """Refuse a folder for results that is a file, or holds sources, which results could overwrite."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: choose a folder")
    if any(Path(source).resolve().parent == out.resolve() for source in sources):
        raise UserError(f"--out {out} holds the images themselves: choose another folder")


def _names(sources: Sequence[str]) -> list[str]:
    """Return a unique file name without ending for each source."""
    names: list[str] = []
    for source in sources:
        stem = Path(source).stem.replace(":", "")
        name, number = stem, 2
        while name in names:
            name, number = f"{stem}-{number}", number + 1
        names.append(name)
    return names
