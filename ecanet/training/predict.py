"""The classes of any images, by a trained classifier."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from torch import Tensor
from torch.utils.data import Dataset

from ecanet.config import ClassifySettings, EvaluateSettings
from ecanet.data.preprocessing import Preprocessing
from ecanet.data.stream import ImageList, Position, ShardedBatchSampler, make_loader, stack
from ecanet.data.thumbnails import thumbnail
from ecanet.errors import UserError
from ecanet.training.classifier import place_classifier, read_classifier
from ecanet.training.launch import launch, loader_workers

THUMBNAIL = 192
"""Long side of a thumbnail in pixels."""

_Classes: TypeAlias = list[tuple[str, float]]


@dataclass(frozen=True)
class Prediction:
    """What a classifier answered for one image, or why there is no answer."""

    image: str
    classes: _Classes
    """Names and probabilities of the most probable classes, in descending order; none for ``fault``."""
    fault: str | None = None
    """Why the image cannot be read, as a line with its name."""
    thumbnail: str | None = None
    """As a ``data:`` address, where one was requested."""


def predict_images(
    files: Sequence[str], settings: ClassifySettings, *, thumbnails: int = 0
) -> Iterator[Prediction]:
    """Yield a prediction for each of the image files, in their order. One batch at a time is in memory.

    Images are prepared as by ``ecanet evaluate``.

    Args:
        thumbnails: of how many images, the first ones, a thumbnail is made.

    Raises:
        UserError: the settings name no usable classifier.
    """
    machine = EvaluateSettings(
        device=settings.device, precision=settings.precision, workers=settings.workers
    )
    fabric = launch(machine, join=False)
    classifier = place_classifier(fabric, *read_classifier(settings), settings)
    names = classifier.names()
    dataset = _Files(files, classifier.preprocessing, thumbnails)
    order = ShardedBatchSampler(len(files), settings.batch_size, shuffle=False)
    # A single batch gains nothing from processes that read ahead.
    workers = min(loader_workers(machine), order.steps - 1)
    pin = fabric.device.type == "cuda"
    for batch in make_loader(dataset, order, workers, pin, _collate):
        answers: Iterator[_Classes] = iter(())
        if batch.images is not None:
            logits = classifier.logits(
                fabric, batch.images.to(fabric.device, non_blocking=True), settings
            )
            answers = iter(_answers(logits, names, settings.top))
        for index, fault, shown in batch.about:
            classes: _Classes = [] if fault else next(answers)
            if classes and classes[0][1] != classes[0][1]:
                fault, classes = f"{files[index]}: the model's output for it is not finite", []
            yield Prediction(files[index], classes, fault, None if fault else shown)


def _answers(logits: Tensor, names: Sequence[str], top: int) -> list[_Classes]:
    best = logits.softmax(1).topk(min(top, logits.shape[1]), dim=1)
    return [
        [(names[label], value) for label, value in zip(labels, values, strict=True)]
        for labels, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


@dataclass
class _Read:
    """A batch: uint8 images (N, C, S, S) that could be read, and for each file index, fault, thumbnail."""

    images: Tensor | None
    about: list[tuple[int, str | None, str | None]]

    def pin_memory(self) -> _Read:
        return _Read(None if self.images is None else self.images.pin_memory(), self.about)


_Sample = tuple[int, Tensor | str, str | None]


class _Files(Dataset[_Sample]):
    """Reads, decodes and transforms files; what cannot be read becomes a line that says why."""

    def __init__(self, files: Sequence[str], transform: Preprocessing, thumbnails: int) -> None:
        self.images = ImageList(Path(), list(files), [], [], window=transform.window)
        self.transform, self.thumbnails = transform, thumbnails

    def __getitem__(self, position: Position) -> _Sample:
        index = position[1]
        try:
            image = self.images.image(index)
        except ValueError as error:
            return index, f"{self.images.files[index]} cannot be read as an image: {error}", None
        except UserError as error:
            return index, str(error), None
        shown = thumbnail(image, THUMBNAIL) if index < self.thumbnails else None
        return index, self.transform(image), shown


def _collate(samples: list[_Sample]) -> _Read:
    images = [image for _, image, _ in samples if isinstance(image, Tensor)]
    about = [
        (index, None if isinstance(found, Tensor) else found, shown)
        for index, found, shown in samples
    ]
    return _Read(stack(images) if images else None, about)
