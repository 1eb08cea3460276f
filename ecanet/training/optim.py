"""From settings to an optimizer, by way of timm, and the learning rate as a function of the epoch."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from typing import Any

import torch
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from torch import Tensor, nn

from ecanet.config import Optimizer, Schedule
from ecanet.errors import counted
from ecanet.training.transfer import lr_scales

log = logging.getLogger(__name__)

_NAMES = {("sgd", True): "sgd", ("sgd", False): "momentum"}

# An epoch of so few steps is hardly an epoch, and one of so many is enough.
_FEW_STEPS, _ENOUGH_STEPS = 2, 10


def build_optimizer(
    model: nn.Module, settings: Optimizer, device: torch.device
) -> torch.optim.Optimizer:
    """Return the optimizer of the parameters that are trained; batch norms and biases are not decayed.

    Each group has its learning rate relative to the run's as ``lr_scale``.

    Args:
        model: on any device.
        settings: with a learning rate.
        device: that it will be trained on.
    """
    # Without momentum there is nothing for Nesterov's to look ahead along.
    nesterov = settings.nesterov and settings.momentum > 0
    name = _NAMES.get((settings.name, nesterov), settings.name)
    extra: dict[str, Any] = {"momentum": settings.momentum} if settings.name == "sgd" else {}
    if device.type == "cuda" and name in ("adam", "adamw"):
        # It counts its steps on the device. SGD's is left out: a first step that float16 skips would leave it
        # momentum that nothing was written to.
        extra["fused"] = True
    groups = _parameter_groups(model, settings)
    return create_optimizer_v2(
        model, opt=name, lr=settings.lr, weight_decay=0.0, param_group_fn=lambda _: groups, **extra
    )


def _parameter_groups(model: nn.Module, settings: Optimizer) -> list[dict[str, Any]]:
    """Return groups of parameters with the same decay and rate, with ``lr`` and ``lr_scale`` of each."""
    assert settings.lr is not None
    scales = lr_scales(model, settings.layer_decay, settings.new_lr_scale)
    undecayed: set[str] = getattr(model, "no_weight_decay", set)()
    groups = []
    for group in param_groups_weight_decay(
        model, settings.weight_decay, no_weight_decay_list=undecayed
    ):
        of_scale: dict[float, list[Tensor]] = defaultdict(list)
        for parameter in group["params"]:
            of_scale[scales.get(parameter, 1.0)].append(parameter)
        groups += [
            group | {"params": params, "lr_scale": scale, "lr": settings.lr * scale}
            for scale, params in of_scale.items()
        ]
    return groups


def scaled_lr(lr: float, batch_size: int, base: int | None) -> float:
    """Return a learning rate that is meant for batches of ``base`` images, for ``batch_size``."""
    if base is None or base == batch_size:
        return lr
    scaled = lr * batch_size / base
    log.info(
        "learning rate %g: %g for a batch of %d, times %d/%d", scaled, lr, base, batch_size, base
    )
    return scaled


def lr_factor(schedule: Schedule, epoch: float, epochs: int, warmup_from: float = 0.01) -> float:
    """Return the share of the peak learning rate at ``epoch`` (fractional, 0 to ``epochs``).

    A warm-up begins with ``warmup_from`` of the peak.

    cosine: Loshchilov and Hutter, SGDR, ICLR 2017 (arXiv 1608.03983), Eq. 5, one cycle to zero.
    onecycle: Smith and Topin, Super-Convergence (arXiv 1708.07120), cosine-shaped, from 1/25 of the
    peak over 30 % of the run and down to zero. step: He et al., CVPR 2016, and ECA-Net, Sec. 4.1, where
    exponential stands as well.
    """
    if schedule.name == "constant":
        return 1.0
    if schedule.name == "onecycle":
        rise = 0.3 * epochs
        if epoch < rise:
            return _cosine(1 / 25, 1.0, epoch / rise)
        return _cosine(1.0, 0.0, (epoch - rise) / (epochs - rise))
    # A warm-up longer than the run would never reach the peak.
    warmup = min(schedule.warmup_epochs, epochs / 2)
    if epoch < warmup:
        return warmup_from + (1 - warmup_from) * epoch / warmup
    if schedule.name == "cosine":
        return _cosine(1.0, 0.0, (epoch - warmup) / (epochs - warmup))
    if schedule.name == "exponential":
        return 0.98 ** int(epoch)
    return math.prod(0.1 for milestone in schedule.milestones if epoch >= milestone)


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(share, 1.0))) / 2


def few_steps(images: int, batch_size: int, epochs: int) -> str | None:
    """Return a line if an epoch has very few steps, else None.

    Args:
        images: of the training split.
        batch_size: over all devices.
        epochs: of each run.
    """
    steps = images // batch_size
    if steps > _FEW_STEPS:
        return None
    better = 2 ** max(1, (images // _ENOUGH_STEPS).bit_length() - 1)
    text = (
        f"an epoch has only {counted(steps, 'step')}: {images:,} training images in batches of {batch_size}; "
        f"the weights are updated {counted(steps * epochs, 'time')} in {counted(epochs, 'epoch')}"
    )
    if better < batch_size:
        text += f"; --batch-size {better} gives {counted(images // better, 'step')}"
    return text
