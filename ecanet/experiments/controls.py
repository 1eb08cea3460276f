"""Settles the controls of a comparison: how long, or how wide, the plain network is for a module's cost."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ecanet.config import ClassificationSettings, OutsideSettings
from ecanet.errors import UserError
from ecanet.experiments.costs import measure
from ecanet.experiments.plans.compare import with_attention
from ecanet.experiments.plans.controls import (
    NAMES,
    PLAIN,
    WITHIN,
    Control,
    Resource,
    is_control,
    modules_of,
    parse_control,
)
from ecanet.models.counts import count_macs, count_parameters
from ecanet.models.width import channels_for, stage_channels, without_values
from ecanet.record import Cost
from ecanet.training.classification import build_model

log = logging.getLogger(__name__)

# Repeats of the measurement where the length of a training follows from it.
_REPEATS = 15


def measure_and_match(
    settings: Any, arms: Sequence[str], data: Any
) -> tuple[list[Cost], dict[str, Control]]:
    """Measure what each arm costs under resolved settings, and settle its controls.

    Returns:
        The costs in the order of ``arms``, and the controls by name.

    Raises:
        UserError: a module fails in the network; or no control has its cost: it costs no more than the plain
            network, or that network cannot be widened.
    """
    wanted = {name: parse_control(name) for name in arms if is_control(name)}
    wide = {
        name: _widened(settings, arms, data, *of) for name, of in wanted.items() if of[0] != "time"
    }
    timed = [name for name in wanted if name not in wide]
    costs = measure(
        settings,
        [arm for arm in arms if arm not in timed],
        data,
        controls=wide,
        repeats=_REPEATS if timed else 5,
    )
    if isinstance(settings, OutsideSettings):
        return costs, {}
    by_arm = {cost.attention: cost for cost in costs}
    controls = dict(wide)
    for name in timed:
        controls[name] = _longer(settings, arms, data, by_arm, wanted[name][1])
        # It is the plain network.
        by_arm[name] = replace(by_arm[PLAIN], attention=name)
    return [by_arm[arm] for arm in arms], {name: controls[name] for name in wanted}


def _longer(
    settings: Any, arms: Sequence[str], data: Any, costs: dict[str, Cost], named: str | None
) -> Control:
    seconds = {arm: 1 / costs[arm].train.median for arm in [PLAIN, *modules_of(arms)]}
    module, ratio = _target("time", seconds, named)
    length = settings.epoch_length * ratio
    steps = settings.epochs * (_images(data, settings) // settings.batch_size)
    # The run is of whole steps.
    reached = round(steps * length) / round(steps * settings.epoch_length)
    return _checked(Control("time", module, ratio, reached, epoch_length=length))


def _images(data: Any, settings: Any) -> int:
    if isinstance(settings, ClassificationSettings):
        return len(data.train)
    return len(data.folders[0]) * settings.repeats


def _widened(
    settings: Any, arms: Sequence[str], data: Any, resource: Resource, named: str | None
) -> Control:
    """Widen the plain network to the multiply-adds or parameters of a module."""
    advice = "take control:time"
    if not isinstance(settings, ClassificationSettings):
        raise UserError(f"control:{resource}: detectors are not widened; {advice}")
    if settings.starts_from_weights:
        raise UserError(
            f"control:{resource} is a wider network, for which there are no weights to start from; {advice}"
        )

    def count(model: nn.Module) -> int:
        if resource == "parameters":
            return count_parameters(model)
        return count_macs(model, data.image_size, data.channels)

    def build(arm: str, channels: Sequence[int] | None = None) -> nn.Module:
        own = with_attention(settings, arm)
        if channels is not None:
            own = replace(own, channels=list(channels))
        return without_values(functools.partial(build_model, own, data, load=False))

    with torch.random.fork_rng(devices=[]):
        plain = build(PLAIN)
        if stage_channels(plain) is None:
            raise UserError(
                f"control:{resource}: {settings.model} cannot be widened, as ecanet's own models and timm's "
                f"ResNets can; {advice}"
            )
        amounts = {arm: count(build(arm)) for arm in modules_of(arms)} | {PLAIN: count(plain)}
        module, ratio = _target(resource, amounts, named)
        channels = channels_for(plain, amounts[module], lambda widths: count(build(PLAIN, widths)))
        reached = count(build(PLAIN, channels)) / amounts[PLAIN]
    return _checked(Control(resource, module, ratio, reached, channels=channels))


def _target(resource: Resource, amounts: dict[str, Any], named: str | None) -> tuple[str, float]:
    """Return the module whose cost a control gets, and that cost relative to the plain network's."""
    module = named or max((arm for arm in amounts if arm != PLAIN), key=lambda arm: amounts[arm])
    ratio = amounts[module] / amounts[PLAIN]
    if ratio <= 1 + WITHIN:
        raise UserError(
            f"control:{resource}: {module} takes {100 * (ratio - 1):.1f} % more {NAMES[resource]} than "
            f"{PLAIN}, so {PLAIN} itself is its control within {100 * WITHIN:g} %; "
            + ("leave the control out" if resource == "time" else "take control:time")
        )
    return module, ratio


def _checked(control: Control) -> Control:
    off = abs(control.reached / control.cost - 1)
    if off > WITHIN:
        raise UserError(
            f"control:{control.resource}: no {PLAIN} has the {NAMES[control.resource]} of {control.module} "
            f"within {100 * WITHIN:g} %, the nearest is off by {100 * off:.1f} %: "
            + ("train for more epochs" if control.resource == "time" else "take control:time")
        )
    return control
