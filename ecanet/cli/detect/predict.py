"""``ecanet detect predict``."""

from __future__ import annotations

from dataclasses import dataclass, field

from ecanet.cli.options import SettingsParser, pick
from ecanet.cli.output import fail, say, show
from ecanet.config import PredictSettings
from ecanet.errors import UserError


@dataclass
class _Command:
    """What to look at, and where the results go."""

    images: list[str] = field(default_factory=list)
    """Pictures, folders of pictures, patterns such as 'photos/*.jpg', videos, or webcam (webcam:1 is the
    second). They stand without their flag."""
    out: str = "predictions"
    """Folder for the drawn pictures, and a JSON beside each."""
    frames: int | None = None
    """Most frames of a video or webcam; a webcam is else read until Ctrl-C."""
    checkpoints: str | None = None
    """A training run with the weights of its epochs, in place of --weights: look with each of them."""
    gif: bool = False
    """With --checkpoints: one animation of all pictures, progress.gif, with the AP of each epoch."""


def run(arguments: list[str]) -> int:
    """Find objects in pictures, draw them; print the path of each drawn picture.

    Returns 1 if some of them could not be read; if none could, that is an error.
    """
    parser = SettingsParser(
        "ecanet detect predict",
        "Find objects in pictures and videos, and draw their boxes, masks, names and scores into copies.",
        _Command,
        PredictSettings,
        positional="images",
    )
    flags = parser.parse(arguments)
    command, settings = pick(_Command, flags), pick(PredictSettings, flags)
    if not command.images:
        raise UserError("which pictures? ecanet detect predict IMAGES --weights FILE")
    if bool(settings.weights) == bool(command.checkpoints):
        raise UserError("which weights? Give --weights FILE, or --checkpoints RUN")
    if command.gif and not command.checkpoints:
        raise UserError("--gif shows the epochs of a run: give --checkpoints RUN")

    from pathlib import Path

    from ecanet.detection.predict.predict import predict, predict_epochs

    out = Path(command.out)
    unreadable = []

    def leave_out(line: str) -> None:
        unreadable.append(line)
        fail(line)

    if command.checkpoints:
        written = predict_epochs(
            command.images,
            Path(command.checkpoints),
            out,
            settings,
            gif=command.gif,
            say=say,
            on_unreadable=leave_out,
        )
    else:
        written = predict(
            command.images,
            out,
            settings,
            most_frames=command.frames,
            say=say,
            on_unreadable=leave_out,
        )
    for path in written:
        show(path)
    return 1 if unreadable else 0
