"""Parameters and multiply-adds, counted."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(model: nn.Module) -> int:
    """Return the number of values in all parameters, each counted once; buffers are not included."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, image_size: int, in_chans: int = 3) -> int:
    """Return the multiply-adds of one image's forward pass.

    Counted are convolutions and matrix products (linear layers and scaled dot-product attention
    included), in any dimension, as torch's own counter sees them. Norms, activations, poolings, the
    products of a gate with its input and additions are not: they cost time, but few operations.
    Published "FLOPs" are often this figure, and often twice it, or in units of 2^30.

    The image, zeros of (1, in_chans, image_size, image_size), is run on the model's device, in
    evaluation mode; the model is left as it was.
    """
    like = next(model.parameters())
    image = torch.zeros(1, in_chans, image_size, image_size, device=like.device, dtype=like.dtype)
    modes = {module: module.training for module in model.modules()}
    counter = FlopCounterMode(display=False)
    try:
        model.eval()
        with torch.no_grad(), counter:
            model(image)
    finally:
        for module, training in modes.items():
            module.training = training
    # The counter gives operations: a multiplication and an addition each.
    return counter.get_total_flops() // 2
