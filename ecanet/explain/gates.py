"""By what attention modules multiply each channel, image by image, and how much of that the image decides.

The factor of a channel on an image is the gate where a module has one for each channel (ECA, SE and all
others of :class:`ecanet.attention.PooledGate`). Of any other module it is the one by which its input comes
closest to its output, in least squares over the pixels: ``sum(x y) / sum(x x)``. What it then leaves is
measured as well: the share of the output's energy that factors by channel do not give, which is 0 for a
gate of channels and not for one of pixels. A channel that is 0 at every pixel of an image has no factor
there, and that image is left out of the channel's mean and variance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ecanet.attention import PooledGate
from ecanet.attention.gate import as_maps, channel_means, channel_moments
from ecanet.models.holders import checked_attention

ROUNDING = 1e-6
"""Deviations of a factor from its mean that are rounding and count as none, relative to the mean."""
MOST_CLASSES = 64
"""Classes of which means and variances are kept; the first that come."""


class Factors(NamedTuple):
    """What an attention module did to a batch."""

    channels: Tensor
    """float64 (N, C) on the CPU; NaN for a channel that is 0 everywhere."""
    left: float
    """Sum over the batch of the squared output that these factors do not give."""
    energy: float
    """Sum of the squared output."""


def channel_factors(module: nn.Module, x: Tensor, y: Tensor) -> Factors:
    """Return by what a module multiplies, from its input and output, (N, C, ...) both."""
    x, y = x.float(), y.float()
    if isinstance(module, PooledGate) and type(module).forward is PooledGate.forward:
        maps = x if x.ndim == 4 else as_maps(x)
        moments = channel_moments(maps) if module.takes_variance else (channel_means(maps),)
        return Factors(module.factors(*moments).double().cpu(), 0.0, 1.0)
    xx, xy, yy = ((a * b).flatten(2).sum(2).double().cpu() for a, b in ((x, x), (x, y), (y, y)))
    found = torch.where(xx > 0, xy / xx, torch.nan)
    left = torch.where(xx > 0, yy - xy * found, yy).clamp_min(0)
    return Factors(found, float(left.sum()), float(yy.sum()))


def pixel_factors(x: Tensor, y: Tensor) -> Tensor:
    """Return by what a module multiplies each pixel, in least squares over the channels: float32 (N, H, W).

    It is 1 where all channels are 0.
    """
    x, y = x.float(), y.float()
    xx, xy = (x * x).sum(1), (x * y).sum(1)
    return torch.where(xx > 0, xy / xx, 1.0)


@contextmanager
def hooked(model: nn.Module, measure: Any) -> Iterator[dict[str, Any]]:
    """Measure every attention module in each forward pass inside ``with``.

    Args:
        model: with attention modules.
        measure: called with a module, its input and its output.

    Yields:
        What the last pass measured, by the modules' names.

    Raises:
        UserError: an attention module did not run.
    """
    found: dict[str, Any] = {}

    def note(name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        found[name] = measure(module, args[0], output)

    with checked_attention(model) as modules, ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_hook(partial(note, name)).remove)
        yield found


class Layer:
    """Means and variances of the factors of one attention module, gathered batch by batch.

    Their size is that of channels times classes, whatever the number of images.
    """

    def __init__(self, name: str, channels: int) -> None:
        self.name, self.channels = name, channels
        # Number, sum and sum of squares: of all images in row 0, and of a class in each other row.
        self._sums = torch.zeros(3, 1 + MOST_CLASSES, channels, dtype=torch.float64)
        self._left = self._energy = 0.0

    def add(self, found: Factors, rows: Tensor) -> None:
        """Add a batch; ``rows``, (N,), has the class of each image as a number from 1, or 0 for no class."""
        there = found.channels.isfinite()
        values = found.channels.where(there, 0.0)
        parts = torch.stack([there.double(), values, values * values])
        self._sums[:, 0] += parts.sum(1)
        classed = rows > 0
        self._sums.index_add_(1, rows[classed], parts[:, classed])
        self._left += found.left
        self._energy += found.energy

    def moments(self, row: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Return number, mean and variance over the images of each channel's factor, float64 (C,) each.

        They are of all images, or of the class in another row; NaN where there is no factor. Deviations
        within :data:`ROUNDING` are none.
        """
        count, total, squares = self._sums[:, row]
        mean = total / count
        variance = (squares / count - mean**2).clamp_min(0)
        return count, mean, _beyond_rounding(variance, mean)

    def spread(self) -> tuple[float, float, float]:
        """Return the factors' mean over images and channels, and the two parts of their variance.

        The first part is the variance over the images, averaged over the channels; the second that of the
        channels' means. Their sum is the variance over all. A channel counts as often as it has a factor.
        """
        count, mean, variance = (values[self._sums[0, 0] > 0] for values in self.moments())
        if not len(count):
            return float("nan"), 0.0, 0.0
        share = count / count.sum()
        middle = (share * mean).sum()
        between = _beyond_rounding((mean - middle) ** 2, middle)
        return float(middle), float((share * variance).sum()), float((share * between).sum())

    @property
    def index(self) -> float:
        """The share of the factors' variance that is between images: does the gate look at the image?

        0 for a gate that is constant over images, also if its channels differ, and for one without any
        variance; 1 if all channels have the same factor, which the image decides.
        """
        _, images, channels = self.spread()
        return images / (images + channels) if images > 0 else 0.0

    @property
    def unexplained(self) -> float:
        """The share of the output's energy that factors by channel do not give."""
        share = self._left / self._energy if self._energy else 0.0
        return share if share > ROUNDING else 0.0


def _beyond_rounding(variance: Tensor, mean: Tensor) -> Tensor:
    return torch.where(variance > (ROUNDING * mean) ** 2, variance, 0.0)


class Gates:
    """The factors of all attention modules of a network, by layer, channel and class.

    Args:
        classes: the numbers of those that are kept apart; by default the first :data:`MOST_CLASSES` that
            come.
    """

    def __init__(self, classes: Sequence[int] | None = None) -> None:
        self.layers: dict[str, Layer] = {}
        self.rows = {} if classes is None else {c: 1 + i for i, c in enumerate(classes)}
        self.images: dict[int, int] = {}
        """Of each class, the number of images."""
        self._open = classes is None

    def add(self, found: dict[str, Factors], classes: Tensor) -> None:
        """Add a batch: what was measured in each layer, and the number of each image's class, (N,)."""
        numbers = classes.tolist()
        for number in numbers:
            self.images[number] = self.images.get(number, 0) + 1
            if self._open and number not in self.rows and len(self.rows) < MOST_CLASSES:
                self.rows[number] = 1 + len(self.rows)
        rows = torch.tensor([self.rows.get(number, 0) for number in numbers])
        for name, factors in found.items():
            if name not in self.layers:
                self.layers[name] = Layer(name, factors.channels.shape[1])
            self.layers[name].add(factors, rows)
