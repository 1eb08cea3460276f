"""``ecanet predict``."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecanet.cli.options import SettingsParser, pick
from ecanet.cli.output import fail, result, show, wants_json
from ecanet.config import ClassifySettings
from ecanet.errors import UserError, counted
from ecanet.inputs import RUNS, check_image_names
from ecanet.inputs import check_weights as check_weight_file

if TYPE_CHECKING:
    from ecanet.training.predict import Prediction


@dataclass
class _Command:
    """The images, and where the results are written in addition to the terminal."""

    images: list[str] = field(default_factory=list)
    """Images, folders of images (including subfolders), or patterns such as 'photos/*.jpg'."""
    csv: str | None = None
    """File for a CSV table, one row per image, with its classes and their probabilities."""
    html: str | None = None
    """File for a web page with the results and a thumbnail for the first 500 images. It works offline."""


def parser() -> SettingsParser:
    """Return the command's parser."""
    return SettingsParser(
        "ecanet predict",
        "Classify your own images with trained weights. Images are prepared as in training.",
        _Command,
        ClassifySettings,
        positional="images",
    )


def run(arguments: list[str]) -> int:
    """Classify images; print for each its path, its class and the probability.

    Returns 1 if some images could not be read; if none could, that is an error.
    """
    flags = parser().parse(arguments)
    command, settings = pick(_Command, flags), pick(ClassifySettings, flags)
    if not command.images:
        raise UserError("which images? ecanet predict IMAGES --weights FILE")

    if settings.weights or settings.pretrained:
        check_image_names(command.images)
    check_weight_file(settings.weights, RUNS)

    from ecanet.experiments.predict import check_weights, image_files, nothing_read

    check_weights(settings)
    files, faults = image_files(command.images)
    if not files and len(faults) == 1:
        raise nothing_read(faults)
    for line in faults:
        fail(line)
    if not files:
        raise nothing_read(faults)
    outputs = [Path(name) for name in (command.csv, command.html) if name]
    _check_outputs(outputs, files)

    from ecanet.experiments.report.predictions import MOST_SHOWN, csv_file, html_file
    from ecanet.experiments.study.winner import find_weights
    from ecanet.training.predict import Prediction, predict_images

    settings.weights = find_weights(settings.weights)
    source = settings.weights or f"pretrained {settings.model}"
    about: dict[str, Any] = {"weights": source}
    answered = 0
    images = []
    with ExitStack() as stack:
        sinks = []
        if command.csv:
            sinks.append(stack.enter_context(csv_file(Path(command.csv))))
        if command.html:
            sinks.append(stack.enter_context(html_file(Path(command.html), about)))
        for line in faults:
            for add in sinks:
                add(Prediction("", [], fault=line))
        thumbnails = MOST_SHOWN if command.html else 0
        for found in predict_images(files, settings, thumbnails=thumbnails):
            for add in sinks:
                add(found)
            if found.fault is None:
                answered += 1
                name, probability = found.classes[0]
                show(f"{found.image}: {name} {100 * probability:.1f} %")
                if wants_json():
                    images.append({"image": found.image, "classes": _classes(found)})
                continue
            faults.append(found.fault)
            if len(files) > 1:
                fail(found.fault)
        if not answered:
            raise nothing_read(faults)
    result({**about, "images": images, "unreadable": faults})
    if faults:
        fail(
            f"{counted(len(faults), 'name')} could not be read; {counted(answered, 'image')} predicted"
        )
    return 1 if faults else 0


def _classes(found: Prediction) -> list[dict[str, Any]]:
    return [{"name": name, "probability": round(p, 6)} for name, p in found.classes]


def _check_outputs(outputs: list[Path], files: list[str]) -> None:
    """Refuse files for results that are folders, one another, or the images themselves."""
    places = [path.resolve() for path in outputs]
    if len(set(places)) < len(places):
        raise UserError("--csv and --html name the same file: choose another for each")
    images = {Path(file).resolve() for file in files} if outputs else set()
    for path, place in zip(outputs, places, strict=True):
        if path.is_dir():
            raise UserError(f"{path} is a folder: name a file for the results")
        if place in images:
            raise UserError(f"{path} is one of the images: choose another file for the results")
