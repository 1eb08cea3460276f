"""Which images a network is explained on."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ecanet.config import EvaluateSettings, Looking
from ecanet.data.arguments import named_files
from ecanet.data.folder import WHOLE, find_images, find_splits, image_list
from ecanet.data.hub import is_hub_folder
from ecanet.data.listing import list_evaluated
from ecanet.data.stream import ImageList
from ecanet.errors import UserError, counted, prefixed
from ecanet.training.classifier import Classifier
from ecanet.training.evaluate import divided_as_trained, label_numbers
from ecanet.training.run_folder import kept_settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """Images, and what is known of their classes."""

    images: ImageList
    source: str
    """Where they are from, in words."""
    numbers: list[int] | None
    """The network's number of each class of the images; None where their classes are not known."""


def sample_images(settings: Looking, weights: str, classifier: Classifier) -> Sample:
    """List the images of ``settings``, by default those that the run of the weights was tested on.

    Of a folder with a folder for each of the network's classes these are known; a folder with splits gives
    its val or test; of any other folder all images are taken, at any depth.

    Raises:
        UserError: there are none, or the weights belong to no run and no images are named.
    """
    if settings.images is None:
        sample = _own(weights, classifier)
    else:
        sample = _named(settings.images, classifier)
    count = len(sample.images)
    if settings.limit is None or settings.limit >= count:
        return replace(sample, source=f"{counted(count, 'image')} of {sample.source}")
    # Evenly over the list, which is ordered by class.
    places = np.linspace(0, count - 1, settings.limit).round().astype(int).tolist()
    source = f"{settings.limit:,} of the {counted(count, 'image')} of {sample.source}"
    return replace(sample, images=sample.images.subset(places), source=source)


def _own(weights: str, classifier: Classifier) -> Sample:
    data = kept_settings(Path(weights).parent).get("data")
    if not isinstance(data, str):
        raise UserError(f"which images? {weights} is not in a run's folder: give --images DIR")
    settings = divided_as_trained(EvaluateSettings(weights=weights), data)
    with prefixed("the images that the run was tested on cannot be loaded, so give --images DIR: "):
        try:
            split, images = list_evaluated(data, replace(settings, split="test"))
        except UserError:  # what has no test split may have val, or is gone
            split, images = list_evaluated(data, settings)
    name = data.rstrip("/").rpartition("/")[2]
    return Sample(images, f"{split}, {name}", _numbers(images, classifier))


def _named(name: str, classifier: Classifier) -> Sample:
    root = Path(name).expanduser()
    if not root.is_dir() or is_hub_folder(root) or WHOLE not in find_splits(root).values():
        split, images = list_evaluated(name, EvaluateSettings())
        return Sample(images, f"{split}, {name}", _numbers(images, classifier))
    files = [str(file.relative_to(root)) for file in named_files(name, subfolders=True)]
    try:
        found, left_out = find_images(root, WHOLE)
        images = image_list(root, found, left_out, list(found))
        return Sample(images, name, _numbers(images, classifier))
    except UserError as error:
        log.info("the true classes are unknown, so the predicted ones are used: %s", error)
    return Sample(ImageList(root, files, [0] * len(files), ["image"]), name, None)


def _numbers(images: ImageList, classifier: Classifier) -> list[int]:
    return label_numbers(images, classifier.metadata, classifier.outputs)[0]
