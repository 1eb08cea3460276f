"""``ecanet detect predict``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ecanet.cli.options import SettingsParser, pick
from ecanet.cli.output import fail, result, show
from ecanet.config import PredictSettings
from ecanet.errors import UserError
from ecanet.inputs import check_image_names, check_weights


@dataclass
class _Command:
    """The images, and where the results are written."""

    images: list[str] = field(default_factory=list)
    """Images, folders of images, patterns such as 'photos/*.jpg', videos, or webcam (webcam:1 for the
    second)."""
    out: str = "predictions"
    """Folder for the images with the objects drawn in, and a JSON file for each."""
    frames: int | None = None
    """Maximum number of frames to read. By default all of a video; a webcam is read until Ctrl-C."""
    checkpoints: str | None = None
    """Training run whose weights after each epoch are used in turn, in place of `weights`. It must have been
    trained with --keep-epochs."""
    gif: bool = False
    """With `checkpoints`, write one animation of all images, progress.gif, with the AP of each epoch."""


def parser() -> SettingsParser:
    """Return the command's parser."""
    return SettingsParser(
        "ecanet detect predict",
        "Find objects in images and videos, and draw their boxes, masks, names and scores on copies of them.",
        _Command,
        PredictSettings,
        positional="images",
    )


def run(arguments: list[str]) -> int:
    """Find objects in images and draw them; print the path of each drawn image.

    Returns 1 if some images could not be read; if none could, that is an error.
    """
    flags = parser().parse(arguments)
    command, settings = pick(_Command, flags), pick(PredictSettings, flags)
    if not command.images:
        raise UserError("which images? ecanet detect predict IMAGES --weights FILE")
    if bool(settings.weights) == bool(command.checkpoints):
        raise UserError("which weights? give --weights FILE or --checkpoints RUN")
    if command.gif and not command.checkpoints:
        raise UserError("--gif shows the epochs of a run: give --checkpoints RUN")

    check_image_names(command.images)
    check_weights(settings.weights)

    from ecanet.detection.predict.predict import predict, predict_epochs

    out = Path(command.out)
    unreadable = []

    def skip(line: str) -> None:
        unreadable.append(line)
        fail(line)

    if command.checkpoints:
        run_folder = Path(command.checkpoints)
        written = predict_epochs(
            command.images, run_folder, out, settings, gif=command.gif, on_unreadable=skip
        )
    else:
        written = predict(
            command.images, out, settings, max_frames=command.frames, on_unreadable=skip
        )
    files = []
    for path in written:
        show(path)
        files.append(path)
    result({"files": files, "unreadable": unreadable})
    return 1 if unreadable else 0
