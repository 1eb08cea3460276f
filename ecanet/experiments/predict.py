"""The classes of your own images, by trained classifiers; what needs torch is imported when it is used."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ecanet.config import ClassifySettings
from ecanet.errors import UserError
from ecanet.frames import frame
from ecanet.recipe_file import with_settings

if TYPE_CHECKING:
    import pandas as pd

    from ecanet.training.predict import Prediction
else:
    Prediction = "Prediction"


class PredictedImages(list[Prediction]):
    """What a classifier answered for each image, in their order; in a notebook it is shown as a table."""

    def to_frame(self) -> pd.DataFrame:
        """Return a pandas DataFrame with a row for each image.

        Columns: image, class, probability (0..1), those of the next classes, and why an image cannot be read.

        Raises:
            UserError: pandas is not installed.
        """
        return frame([_row(found) for found in self])

    def _repr_html_(self) -> str:
        html: str = self.to_frame()._repr_html_()
        return html


def predict(
    images: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    settings: ClassifySettings | None = None,
    **keywords: Any,
) -> PredictedImages:
    """Classify images of your own with trained weights, prepared as in training.

    Example::

        for found in ecanet.predict("new_photos", weights="study"):
            name, probability = found.classes[0]
            print(found.image, name, probability)

    Args:
        images: a file, a folder with its subfolders, or a pattern such as ``"photos/*.jpg"``; or several.
        settings: which weights, how many classes per image, and how they are computed.
        keywords: settings by name: the flags of ``ecanet predict``, such as ``weights="run"`` and ``top=3``.

    Returns:
        A list of :class:`ecanet.training.predict.Prediction`. One that could not be read has its ``fault``.

    Raises:
        UserError: the settings cannot be used, or no image can be read.
    """
    (settings,) = with_settings(keywords, settings or ClassifySettings())
    check_weights(settings)
    names = [images] if isinstance(images, (str, os.PathLike)) else list(images)
    if not names:
        raise UserError("which images? The list is empty")
    files, faults = image_files([os.fspath(name) for name in names])
    if not files:
        raise _all_unread(faults)

    from ecanet.experiments.study.winner import find_weights
    from ecanet.training.predict import Prediction, predict_images

    settings = replace(settings, weights=find_weights(settings.weights))
    found = PredictedImages(Prediction("", [], fault=line) for line in faults)
    found += predict_images(files, settings)
    if all(one.fault for one in found):
        raise _all_unread([one.fault for one in found if one.fault])
    return found


def check_weights(settings: ClassifySettings) -> None:
    """Refuse settings that name no weights.

    Raises:
        UserError: they name none.
    """
    if not settings.weights and not settings.pretrained:
        raise UserError("which weights? Give --weights FILE, or --pretrained with --model NAME")


def image_files(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the image files of several names, each once, and a line for each name that has none."""
    from ecanet.data.arguments import named_files

    files: list[str] = []
    faults: list[str] = []
    for name in names:
        try:
            files += map(str, named_files(name, subfolders=True))
        except UserError as error:
            faults.append(str(error))
    return list(dict.fromkeys(files)), faults


def _all_unread(faults: Sequence[str]) -> UserError:
    # No lines were printed before it, as the command does: it names the first reason itself.
    first = f"; the first: {faults[0]}" if len(faults) > 1 else ""
    return UserError(f"{nothing_read(faults)}{first}")


def nothing_read(faults: Sequence[str]) -> UserError:
    """Return the error where every image has a fault."""
    return UserError(faults[0] if len(faults) == 1 else f"none of the {len(faults)} could be read")


def _row(found: Prediction) -> dict[str, Any]:
    row: dict[str, Any] = {"image": found.image}
    for number, (name, probability) in enumerate(found.classes):
        suffix = f"_{number + 1}" if number else ""
        row |= {f"class{suffix}": name, f"probability{suffix}": probability}
    return row | ({"fault": found.fault} if found.fault else {})
