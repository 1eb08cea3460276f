"""Objects found in people's own pictures: drawn into a copy of each, and written as JSON beside it."""

from __future__ import annotations

import glob
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from ecanet.config import EvaluateDetectorSettings, PredictSettings
from ecanet.data.decode import decode_image, naming_what_cannot_be_read, read_file
from ecanet.data.folder import ENDINGS
from ecanet.detection.predict import animation, video
from ecanet.detection.predict.predictor import Predictor, scaled
from ecanet.errors import UserError
from ecanet.files import write_atomic, write_json
from ecanet.training.launch import launch

_MOST_IN_ANIMATION = 16


def predict(
    names: Sequence[str],
    out: Path,
    settings: PredictSettings,
    *,
    most_frames: int | None = None,
    say: Callable[[str], None] = lambda line: None,
    on_unreadable: Callable[[str], None] = lambda line: None,
) -> Iterator[Path]:
    """Yield each drawn picture or video when it and its JSON are written.

    A picture becomes ``out/NAME.png`` and ``NAME.json``, with the picture's ``image``, ``width`` and
    ``height`` and its ``detections``: each with its ``name``, ``category_id``, ``score``, ``box`` (left,
    top, right, bottom in pixels) and, from Mask R-CNN, ``mask`` in COCO's run lengths. Videos:
    :func:`ecanet.detection.predict.video.predict_video`.

    Args:
        names: files, folders, glob patterns, ``webcam``.
        out: folder; made if missing.
        settings: of the prediction.
        most_frames: of a video or webcam.
        say: called with what was found in each.
        on_unreadable: called with a line for each source that cannot be read; the others are done.

    Raises:
        UserError: what is asked for cannot be done; or, at the end, no source at all could be read.
    """
    sources = [name if video.is_webcam(name) else str(p) for name in names for p in _files(name)]
    sources = list(dict.fromkeys(sources))
    if most_frames is not None and not any(map(video.is_video, sources)):
        raise UserError("--frames is of videos and webcams: leave it out for pictures")
    _check_out(out, sources)
    assert settings.weights is not None
    predictor = Predictor(_one_process(settings), Path(settings.weights), settings, say)
    unreadable = _Unreadable(len(sources), on_unreadable)
    for source, name in zip(sources, _names(sources), strict=True):
        try:
            if video.is_video(source):
                written = video.predict_video(predictor, source, out / name, most_frames, say)
            else:
                picture = read_picture(Path(source))
                written = _predict_picture(predictor, source, picture, out / name, say)
        except UserError as error:
            unreadable.add(error)
            continue
        yield written
    unreadable.refuse_if_all()


def predict_epochs(
    names: Sequence[str],
    run: Path,
    out: Path,
    settings: PredictSettings,
    *,
    gif: bool,
    say: Callable[[str], None] = lambda line: None,
    on_unreadable: Callable[[str], None] = lambda line: None,
) -> Iterator[Path]:
    """Draw the same pictures with the weights of each epoch of a training run.

    Pictures that cannot be read are left out, as :func:`predict` does.

    Yields:
        ``out/epoch001/NAME.png`` ... as :func:`predict` does; or, with ``gif``, ``out/progress.gif``
        alone, in which each epoch's AP stands above the pictures.

    Raises:
        UserError: the run holds no weights of single epochs, or no picture can be read.
    """
    sources = list(dict.fromkeys(str(path) for name in names for path in _files(name)))
    if any(map(video.is_video, sources)):
        raise UserError("--checkpoints is for pictures: leave videos out")
    if gif and len(sources) > _MOST_IN_ANIMATION:
        raise UserError(f"--gif shows up to {_MOST_IN_ANIMATION} pictures, not {len(sources)}")
    _check_out(out, sources)
    unreadable = _Unreadable(len(sources), on_unreadable)
    pictures: dict[str, Tensor] = {}
    for source in sources:
        try:
            pictures[source] = read_picture(Path(source))
        except UserError as error:
            unreadable.add(error)
    unreadable.refuse_if_all()
    sources, images = list(pictures), list(pictures.values())
    checkpoints = animation.find_checkpoints(run)
    captions = animation.read_captions(run, list(checkpoints))
    fabric = _one_process(settings)
    sheets = []
    for epoch, weights in checkpoints.items():
        predictor = Predictor(fabric, weights, settings, say)
        if gif:
            say(captions[epoch])
            sheets.append(
                animation.tile([_small(predictor, image, len(images)) for image in images])
            )
            continue
        for source, name, image in zip(sources, _names(sources), images, strict=True):
            yield _predict_picture(predictor, source, image, out / weights.stem / name, say)
    if gif:
        animation.write_animation(out / "progress.gif", sheets, list(captions.values()))
        yield out / "progress.gif"


class _Unreadable:
    """Sources that cannot be read: named when they come up, and no reason to stop before the last."""

    def __init__(self, sources: int, say: Callable[[str], None]) -> None:
        self.sources, self.say = sources, say
        self.count = 0

    def add(self, error: UserError) -> None:
        if self.sources == 1:
            raise error
        self.count += 1
        self.say(str(error))

    def refuse_if_all(self) -> None:
        """Raise a UserError if there was nothing else."""
        if self.count == self.sources:
            raise UserError(f"none of the {self.sources} files could be read")


def _predict_picture(
    predictor: Predictor, source: str, image: Tensor, target: Path, say: Callable[[str], None]
) -> Path:
    found = predictor.find(image)
    drawn = predictor.draw(image, found)
    content = {
        "image": source,
        "width": image.shape[2],
        "height": image.shape[1],
        "detections": predictor.describe(found),
    }
    write_json(target.with_name(f"{target.name}.json"), content)
    picture = target.with_name(f"{target.name}.png")
    write_png(picture, drawn)
    say(f"{source}: {predictor.count(found)}")
    return picture


def _small(predictor: Predictor, image: Tensor, pictures: int) -> Image.Image:
    """Return a drawn picture of the size that an animation of so many has room for."""
    found = predictor.find(image)
    size = image.shape[-2:]
    factor = min(1.0, animation.room(pictures) / max(size))
    new = [max(1, round(side * factor)) for side in size]
    return predictor.draw(resize(image, new, antialias=True), scaled(found, size, new))


def _one_process(settings: PredictSettings) -> Fabric:
    return launch(EvaluateDetectorSettings(device=settings.device, precision=settings.precision))


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


def _files(name: str) -> list[Path]:
    """Return the files that a name stands for: itself, the pictures of a folder, what a glob matches.

    Raises:
        UserError: it stands for nothing.
    """
    path = Path(name).expanduser()
    with naming_what_cannot_be_read(path):
        if video.is_webcam(name) or path.is_file():
            return [path]
        if path.is_dir():
            endings = (*ENDINGS, *video.ENDINGS)
            files = sorted(p for p in path.iterdir() if p.suffix.lower() in endings)
        else:
            matches = map(Path, glob.glob(str(path), recursive=True))
            files = sorted(p for p in matches if p.is_file())
    if not files:
        raise UserError(f"there is no picture {'in the folder ' if path.is_dir() else ''}{name}")
    return files


def _check_out(out: Path, sources: Iterable[str]) -> None:
    """Refuse a folder for results that holds sources: one could overwrite another.

    Raises:
        UserError: it does, or it is a file.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: choose a folder")
    if any(Path(source).resolve().parent == out.resolve() for source in sources):
        raise UserError(f"--out {out} holds the pictures themselves: choose another folder")


def _names(sources: Sequence[str]) -> list[str]:
    """Return a file name without ending for each source, no two alike."""
    names: list[str] = []
    for source in sources:
        stem = Path(source).stem.replace(":", "")
        name, number = stem, 2
        while name in names:
            name, number = f"{stem}-{number}", number + 1
        names.append(name)
    return names
