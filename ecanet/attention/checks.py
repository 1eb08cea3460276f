"""Argument checks shared by the modules. Every message is one line that names the argument."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Proxy


def positive(name: str, value: int) -> int:
    """Return ``value`` if it is a whole number of at least 1.

    Raises:
        TypeError: it is no int.
        ValueError: it is below 1.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return value


def odd(name: str, value: int) -> int:
    """Return ``value`` if it is a positive odd int: a kernel size with a center.

    Raises:
        TypeError: it is no int.
        ValueError: it is even or below 1.
    """
    if positive(name, value) % 2 == 0:
        raise ValueError(f"{name} must be odd, got {value}")
    return value


def hidden_channels(
    channels: int, reduction: int | None, *, default: int = 16, minimum: int = 4, least: int = 1
) -> int:
    """Return the width of a bottleneck between two layers of ``channels``.

    None gives ``max(minimum, channels // default)``: the papers' value for the widths in the papers, and
    more than a single unit in narrow networks for CIFAR. An int gives exactly ``channels // reduction``.

    Raises:
        TypeError: an argument is no int.
        ValueError: fewer than ``least`` channels would remain.
    """
    positive("channels", channels)
    if reduction is None:
        return max(minimum, channels // default)
    hidden = channels // positive("reduction", reduction)
    if hidden < least:
        raise ValueError(
            f"reduction={reduction} leaves {hidden} of {channels} channels, at least {least} needed;"
            f" the largest that works is {channels // least}"
        )
    return hidden


def even_groups(channels: int, most: int) -> int:
    """Return the largest power of two up to ``most`` that divides ``channels`` into groups of at least 2.

    Return 1 if there is none. A group of one channel has nothing to compare.
    """
    groups = most
    while groups > 1 and (channels % groups or channels // groups < 2):
        groups //= 2
    return groups


def divides(name: str, groups: int, channels: int) -> int:
    """Return ``groups`` if it divides ``channels``.

    Raises:
        TypeError: an argument is no int.
        ValueError: it does not divide.
    """
    if positive("channels", channels) % positive(name, groups):
        raise ValueError(f"{name}={groups} does not divide {channels} channels")
    return groups


def known_dims(dims: int) -> int:
    """Return ``dims``, the number of axes of space, if it is 1, 2 or 3.

    Raises:
        TypeError: it is no int.
        ValueError: it is another number.
    """
    if positive("dims", dims) > 3:
        raise ValueError(f"dims must be 1, 2 or 3, got {dims}")
    return dims


def check_maps(x: Tensor, dims: int = 2) -> None:
    """Refuse what is no batch of feature maps with ``dims`` axes of space, such as a single image.

    Raises:
        ValueError: ``x`` has another number of dimensions.
    """
    if is_symbolic(x):
        return
    if x.ndim != dims + 2:
        axes = ["L", "H, W", "D, H, W"][dims - 1]
        raise ValueError(
            f"this attention module is for feature maps (N, C, {axes}), got {x.ndim} dimensions: "
            f"{list(x.shape)}"
        )


def is_symbolic(x: Tensor) -> bool:
    """Whether ``x`` stands for any tensor while torch.fx traces, and no code may depend on its shape."""
    if not torch.jit.is_scripting():
        return isinstance(x, Proxy)
    return False
