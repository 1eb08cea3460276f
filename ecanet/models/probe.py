"""Small images, signals and volumes that a network takes, to find out what arrives where in it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ecanet.errors import UserError, one_line
from ecanet.models.hooks import run_in_evaluation
from ecanet.models.libreyolo import IMAGE_SIZE, is_libreyolo

# By axes of space; the first one that the network takes. Images and volumes are taller than wide, which
# distinguishes (N, C, H, W) from (N, H, W, C). The last resort of volumes is the usual size of videos.
_SIZES: dict[int, list[tuple[int, ...]]] = {
    1: [(128,), (1024,), (16384,)],
    2: [(128, 64)],
    3: [(16, 64, 32), (32, 128, 64), (16, 224, 224)],
}


class TakesNoImage(UserError):
    """A network does not run with an image of zeros."""


def small_image(model: nn.Module, advice: str) -> Tensor:
    """Return an image of zeros that the model takes, (1, C, H, W): 128x64, else of the network's own size.

    For a network whose first convolution is 1-D or 3-D, it is a signal (1, C, L) or a volume (1, C, D, H, W).

    Args:
        model: any network of images, signals or volumes.
        advice: the end of the message, on what to do instead.

    Raises:
        UserError: the model has no convolution.
        TakesNoImage: it takes none of the sizes.
    """
    return run_small_image(model, advice, lambda image: nullcontext())


def run_small_image(
    model: nn.Module, advice: str, watch: Callable[[Tensor], AbstractContextManager[Any]]
) -> Tensor:
    """Run :func:`small_image` through the model inside ``watch(image)``, and return it.

    If the model does not take the first size, ``watch`` is called again for the next.
    """
    first = _first_convolution(model)
    # timm's models have in_chans; layers before the first convolution may add channels.
    channels = 3 if is_libreyolo(model) else getattr(model, "in_chans", first.in_channels)
    weight = first.weight
    reason: Exception | None = None
    dims = len(first.kernel_size)
    sizes = [*_SIZES[dims], *([_own_size(model)] if dims == 2 else [])]
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
    tried = " or ".join("x".join(map(str, size)) for size in sizes)
    kind = {1: "signal", 2: "image", 3: "volume"}[dims]
    raise TakesNoImage(
        f"{type(model).__name__} does not take a {tried} {kind} of zeros "
        f"({one_line(reason, 120)}): {advice}"
    ) from reason


def space_dims(model: nn.Module) -> int:
    """Return the axes of space of a network's input, 1, 2 or 3: those of its first convolution.

    Raises:
        UserError: it has no convolution.
    """
    return len(_first_convolution(model).kernel_size)


def _first_convolution(model: nn.Module) -> Any:
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    first = next((module for module in model.modules() if isinstance(module, kinds)), None)
    if first is None:
        raise UserError(
            f"{type(model).__name__} has no convolution: attention modules are for CNNs"
        )
    return first


def _own_size(model: Any) -> tuple[int, int]:
    """Return the size of images that a network of timm names as its own; for others the usual one."""
    if is_libreyolo(model):
        return IMAGE_SIZE, IMAGE_SIZE
    config = getattr(model, "pretrained_cfg", None) or {}
    _, height, width = config.get("input_size") or (3, 224, 224)
    return height, width
