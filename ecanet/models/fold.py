"""Folds attention modules into the layers before them, where each multiplies a channel by a constant.

A norm or convolution whose output goes into such a module alone takes the constants into its weight and
bias; the module is then removed, and nothing is left of its cost. ASR (arXiv 2304.06345) does the same with
modules that are trained to be constant.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ecanet.models.holders import attention_modules, holders
from ecanet.models.identity import agree, arrivals, outputs_of
from ecanet.models.insert import remove_attention
from ecanet.models.probe import small_image
from ecanet.models.residual import ResidualEnd


class _Constant(nn.Module):
    """Multiplies each channel by a constant."""

    def __init__(self, factors: Tensor) -> None:
        super().__init__()
        self.factors = factors

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factors.to(x).view(-1, *[1] * (x.ndim - 2))


def fold_constants(model: nn.Module, constants: Mapping[str, Tensor]) -> list[str]:
    """Replace attention modules by constant factors, merged into the layers before them, in place.

    In evaluation mode the model then computes what it does with :class:`_Constant` in their places, up to
    rounding: what is merged is checked on an image of noise.

    Args:
        model: with attention modules.
        constants: the factors of the channels, (C,), by the names of
            :func:`ecanet.models.holders.attention_modules`.

    Returns:
        The names of those that are kept as they are, as no norm or convolution has its output read by them
        alone.

    Raises:
        UserError: the model cannot be run on a small image.
    """
    slots = holders(model)
    modules = {name: attention_modules(model)[name] for name in constants}
    if not modules:
        return []
    image = small_image(model, "such a model cannot be folded")
    _, layers = arrivals(model, modules, image)
    image = torch.randn(image.shape, generator=torch.Generator().manual_seed(0)).to(image)
    kept = [name for name in constants if name not in layers]
    for name in (name for name in constants if name in layers):
        slot, layer = slots[name], layers[name]
        certain = isinstance(slot, ResidualEnd) and slot.last_norm() is layer
        if not certain:
            slot.attention = _Constant(constants[name])
            expected = outputs_of(model, image)
        before = copy.deepcopy(layer.state_dict())
        slot.attention = nn.Identity()
        _multiply(layer, constants[name])
        if not certain and not agree(outputs_of(model, image), expected):
            # The layer's output is used elsewhere too, or its weight is computed from others.
            slot.attention = modules[name]
            layer.load_state_dict(before)
            kept.append(name)
    remove_attention(model, [name for name in constants if name not in kept])
    return kept


def _multiply(layer: nn.Module, factors: Tensor) -> None:
    """Multiply each output channel of a norm or convolution by its factor."""
    with torch.no_grad():
        for values in (layer.weight, layer.bias):
            if isinstance(values, Tensor):
                factor = factors.to(values.device, torch.promote_types(values.dtype, factors.dtype))
                values.copy_(values * factor.view(-1, *[1] * (values.ndim - 1)))
