"""Small images that a network takes, to find out what arrives where in it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ecanet.errors import UserError, one_line
from ecanet.models.hooks import run_in_evaluation

# Taller than wide, which distinguishes (N, C, H, W) from (N, H, W, C).
_SMALL = (128, 64)


class TakesNoImage(UserError):
    """A network does not run with an image of zeros."""


def small_image(model: nn.Module, advice: str) -> Tensor:
    """Return an image of zeros that the model takes, (1, C, H, W): 128x64, else of the network's own size.

    Args:
        model: any network of images.
        advice: the end of the message, on what to do instead.

    Raises:
        UserError: the model has no convolution.
        TakesNoImage: it takes neither size.
    """
    return run_small_image(model, advice, lambda image: nullcontext())


def run_small_image(
    model: nn.Module, advice: str, watch: Callable[[Tensor], AbstractContextManager[Any]]
) -> Tensor:
    """Run :func:`small_image` through the model inside ``watch(image)``, and return it.

    If the model does not take the first size, ``watch`` is called again for the second.
    """
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None:
        raise UserError(
            f"{type(model).__name__} has no convolution: attention modules are for CNNs"
        )
    # timm's models have in_chans; layers before the first convolution may add channels.
    channels = getattr(model, "in_chans", first.in_channels)
    weight = first.weight
    reason: Exception | None = None
    sizes = [_SMALL, _own_size(model)]
    for size in sizes:
        image = torch.zeros(1, channels, *size, device=weight.device, dtype=weight.dtype)
        try:
            with watch(image):
                run_in_evaluation(model, image)
        except UserError:
            raise
        except Exception as error:
            reason = error
        else:
            return image
    tried = " or ".join(f"{height}x{width}" for height, width in sizes)
    raise TakesNoImage(
        f"{type(model).__name__} does not take a {tried} image of zeros "
        f"({one_line(reason, 120)}): {advice}"
    ) from reason


def _own_size(model: Any) -> tuple[int, int]:
    """Return the size of images that a network of timm names as its own; for others the usual one."""
    config = getattr(model, "pretrained_cfg", None) or {}
    _, height, width = config.get("input_size") or (3, 224, 224)
    return height, width
