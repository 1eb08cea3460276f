"""A trained network on its images: its gates and its answers in one pass over them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from ecanet.config import EvaluateSettings, Looking
from ecanet.data.stream import ImageDataset, ImageList
from ecanet.errors import UserError
from ecanet.explain.gates import Gates, channel_factors, hooked
from ecanet.explain.images import Sample
from ecanet.models.holders import attention_modules
from ecanet.training.classifier import Classifier, place_classifier, read_classifier
from ecanet.training.evaluate import evaluate_batches
from ecanet.training.launch import launch, sharded_loader

log = logging.getLogger(__name__)

FEW_IMAGES = 100
"""Fewer show too little of how much gates depend on the image."""


@dataclass
class Network:
    """A trained classifier on its device."""

    classifier: Classifier
    fabric: Fabric
    settings: EvaluateSettings
    names: list[str]
    """Of its classes."""

    def list(self, sample: Sample) -> ImageList:
        """Return a sample's images, to be decoded as the network has learned them."""
        return replace(sample.images, window=self.classifier.preprocessing.window)


@dataclass
class Answers:
    """What a network answers for the images of a sample that can be decoded."""

    predicted: Tensor
    """int64 (N,)."""
    labels: Tensor | None
    """int64 (N,), the network's numbers; None where the true classes are not known."""
    gates: Gates | None
    """None if they were not measured."""

    @property
    def right(self) -> Tensor | None:
        return None if self.labels is None else self.predicted == self.labels

    @property
    def accuracy(self) -> float | None:
        return None if self.right is None else float(self.right.double().mean())


def open_network(weights: str, settings: Looking) -> Network:
    """Read a classifier's weights, and place it on the device.

    Raises:
        UserError: they cannot be read, or belong to no classifier.
    """
    own = EvaluateSettings(
        weights=weights,
        plugin=settings.plugin,
        device=settings.device,
        workers=settings.workers,
        batch_size=settings.batch_size,
        corrupt="skip",
    )
    fabric = launch(own, join=False)
    classifier = place_classifier(fabric, *read_classifier(own), own)
    return Network(classifier, fabric, own, classifier.names())


def look_at(network: Network, sample: Sample, classes: Sequence[int] | None = None) -> Answers:
    """Run a network over a sample, and measure its gates if it has any; one batch at a time is in memory.

    Gates are kept by the true class of the images where it is known, and else by the predicted one.

    Args:
        network: with attention modules or without.
        sample: of images.
        classes: as in :class:`ecanet.explain.gates.Gates`.

    Raises:
        UserError: none of the images can be decoded.
    """
    gates = Gates(classes) if attention_modules(network.classifier.model) else None
    predicted: list[Tensor] = []
    labels: list[Tensor] = []
    context: Any = hooked(network.classifier.model, channel_factors) if gates else nullcontext({})
    with context as found:

        def keep(readable: Tensor, logits: Tensor, true: Tensor) -> None:
            predicted.append(logits.argmax(1).cpu())
            labels.append(true.cpu())
            if gates is not None:
                gates.add(found, predicted[-1] if sample.numbers is None else labels[-1])

        dataset = ImageDataset(
            network.list(sample), network.classifier.preprocessing, 0, network.settings.corrupt
        )
        evaluate_batches(
            network.fabric,
            network.classifier.model,
            sharded_loader(network.fabric, network.settings, dataset, len(dataset)),
            network.classifier.preprocessing,
            channels_last=network.settings.channels_last,
            label_of=sample.numbers,
            keep=keep,
        )
    true = None if sample.numbers is None else torch.cat(labels)
    return Answers(torch.cat(predicted), true, gates)


def gates_of(answers: Answers, sample: Sample) -> Gates:
    """Return the gates, which were measured on images enough to show whether they depend on them.

    Raises:
        UserError: there was one image.
    """
    assert answers.gates is not None
    count = len(answers.predicted)
    if count < 2:
        raise UserError(
            f"{sample.source}: one image cannot show whether gates depend on it: give more"
        )
    if count < FEW_IMAGES:
        log.warning(
            f"{count} images are few to judge by how much gates depend on the image: "
            f"give {FEW_IMAGES} or more"
        )
    return answers.gates
