"""Whether a model can be trained on a single image at a time."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from ecanet.errors import UserError
from ecanet.models.holders import attention_modules


def check_batch_norms(model: nn.Module, images: int, image_size: int, in_chans: int = 3) -> None:
    """Refuse a batch of one image for a model in which a batch norm sees one value a channel then.

    Such a norm stands in SRM, in Gather-Excite on small maps, and behind a global pooling. A copy
    without values is run, so nothing is computed.

    Args:
        model: takes (N, in_chans, H, W).
        images: that a training step has on each device.
        image_size: side of the training images in pixels.

    Raises:
        UserError: the step would fail.
    """
    if images > 1:
        return
    outline = copy.deepcopy(model).to("meta").train()
    running: list[str] = []
    for name, module in attention_modules(outline).items():
        module.register_forward_pre_hook(lambda *call, name=name: running.append(name))
        module.register_forward_hook(lambda *call: running.clear())
    try:
        with torch.no_grad():
            outline(torch.zeros(1, in_chans, image_size, image_size, device="meta"))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            return
        where: Any = model
        if running:
            where = attention_modules(model)[running[0]]
        raise UserError(
            f"one image a step is too few for {type(where).__name__}, whose batch norm needs several "
            "values a channel: give a --batch_size of at least 2 for each device"
        ) from None
    except Exception:  # what depends on values cannot be run without them
        return
