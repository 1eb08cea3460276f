"""What an explanation says, as plain numbers: all that its page shows but the pictures."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from ecanet.explain.gates import Gates, Layer

FEWEST = 3
"""Images from which a mean difference of scores has an interval."""


@dataclass
class LayerNumbers:
    """The factors of one attention module over the images; see :class:`ecanet.explain.gates.Layer`."""

    name: str
    channels: int
    factor: float | None
    """Mean over images and channels; None where every channel is 0."""
    sd_images: float
    """Standard deviation over the images, of a channel."""
    sd_channels: float
    """Standard deviation of the channels' means."""
    index: float
    unexplained: float
    curves: dict[str, list[float | None]]
    """Of the last layer of a stage: by class, each channel's mean; of other layers nothing."""


@dataclass
class Attention:
    """The attention modules of one network."""

    module: str
    place: int
    """In the study, the baseline at 0."""
    run: str
    images: int
    by: Literal["true", "predicted"]
    """The class by which images are told apart."""
    classes: dict[str, int]
    """Those that are drawn, and the number of their images."""
    layers: list[LayerNumbers]

    @property
    def constant(self) -> list[LayerNumbers]:
        """The layers that ``ecanet fold`` takes by default."""
        return [one for one in self.layers if max(one.index, one.unexplained) <= 0.01]


@dataclass
class Look:
    """Where one network looks: an entry for each image."""

    module: str
    place: int
    run: str
    predicted: list[str]
    probability: list[float]
    """Of the class that is looked for."""
    insertion: list[float]
    deletion: list[float]


@dataclass
class Pair:
    """Where a network with attention looks, beside the baseline."""

    images: list[str]
    classes: list[str]
    """What is looked for in each image: its true class, or where that is unknown the predicted one."""
    own: Look
    base: Look | None
    """None where there is no baseline."""

    def difference(
        self, score: Literal["insertion", "deletion"]
    ) -> tuple[float, float, float] | None:
        """Return the mean of own minus base over the images, and its 95 % t-interval; None of too few."""
        if self.base is None or len(self.images) < FEWEST:
            return None
        each = np.subtract(getattr(self.own, score), getattr(self.base, score))
        if not np.ptp(each):
            return float(each[0]), float(each[0]), float(each[0])
        low, high = stats.ttest_1samp(each, 0).confidence_interval(0.95)
        return float(each.mean()), float(low), float(high)


@dataclass
class Explanation:
    """What the attention of a study's or run's networks does."""

    source: str
    """The images, in words."""
    attention: list[Attention]
    pairs: list[Pair]
    notes: list[str]


def describe_gates(
    gates: Gates, names: Sequence[str], drawn: Sequence[int]
) -> tuple[dict[str, int], list[LayerNumbers]]:
    """Return the classes that are drawn with their images, and the numbers of each layer.

    Args:
        gates: as measured.
        names: of the network's classes.
        drawn: numbers of classes; of none, the four that have the most images.
    """
    known = [number for number in gates.rows if gates.images.get(number)]
    shown = list(drawn) or sorted(known, key=lambda number: -gates.images[number])[:4]
    layers = list(gates.layers.values())
    # A stage is a sequence of layers with as many channels.
    stages = [list(stage) for _, stage in itertools.groupby(layers, lambda layer: layer.channels)]
    ends = {stage[-1].name for stage in stages}
    found = []
    for layer in layers:
        factor, images, channels = layer.spread()
        curves = {names[n]: _means(layer, gates.rows[n]) for n in shown if n in gates.rows}
        found.append(
            LayerNumbers(
                layer.name,
                layer.channels,
                factor if np.isfinite(factor) else None,
                images**0.5,
                channels**0.5,
                layer.index,
                layer.unexplained,
                curves if layer.name in ends else {},
            )
        )
    return {names[n]: gates.images.get(n, 0) for n in shown}, found


def _means(layer: Layer, row: int) -> list[float | None]:
    _, mean, _ = layer.moments(row)
    return [float(f"{value:.5g}") if np.isfinite(value) else None for value in mean.tolist()]


def gate_rows(
    gates: Gates, names: Sequence[str], classes: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yield mean and standard deviation of each channel's factor, over all images and those of classes."""
    rows = {"all": 0} | {names[n]: row for n, row in gates.rows.items() if names[n] in classes}
    for layer in gates.layers.values():
        for name, row in rows.items():
            count, mean, variance = (values.tolist() for values in layer.moments(row))
            for channel in range(layer.channels):
                if count[channel]:
                    yield {
                        "layer": layer.name,
                        "class": name,
                        "channel": channel,
                        "images": int(count[channel]),
                        "mean": mean[channel],
                        "sd": variance[channel] ** 0.5,
                    }
