"""Checks whether a model can be trained on single images."""

from __future__ import annotations

import copy

import torch
from torch import nn

from ecanet.errors import UserError
from ecanet.models.holders import attention_modules
from ecanet.models.hooks import forward_hooks


def check_batch_norms(model: nn.Module, images: int, image_size: int, in_chans: int = 3) -> None:
    """Refuse a batch of one image for a model in which a batch norm then has one value per channel.

    SRM has such a norm, as have Gather-Excite on small maps and some layers after global pooling. A copy
    on the meta device is run, so nothing is computed.

    Args:
        model: takes (N, in_chans, H, W).
        images: images of a training step that a batch norm computes its statistics of: those of one
            device, or of all with synchronized batch norms.
        image_size: side of the training images in pixels.

    Raises:
        UserError: the training step would fail.
    """
    if images > 1:
        return
    outline = copy.deepcopy(model).to("meta").train()
    running: list[str] = []

    def note(name: str, ended: bool) -> None:
        running[:] = [] if ended else [name]

    try:
        with torch.no_grad(), forward_hooks(attention_modules(outline), note):
            outline(torch.zeros(1, in_chans, image_size, image_size, device="meta"))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            return
        where = attention_modules(model)[running[0]] if running else model
        raise UserError(
            f"one image per step is too few for {type(where).__name__}, whose batch norm needs several "
            "values per channel: give a --batch-size of at least 2 for each device"
        ) from None
    except Exception:  # models that depend on values do not run on the meta device
        return
