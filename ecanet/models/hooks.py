"""Hooks around forward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def run_in_evaluation(model: nn.Module, image: Tensor) -> Any:
    """Return the output for ``image`` in evaluation mode, without gradients; the model is unchanged."""
    modes = {module: module.training for module in model.modules()}
    try:
        return model.eval()(image)
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def forward_hooks(
    modules: Mapping[str, nn.Module], note: Callable[[str, bool], object]
) -> Iterator[None]:
    """Call ``note(name, False)`` before and ``note(name, True)`` after the forward pass of each module.

    Args:
        modules: by name.
        note: called inside ``with`` alone.
    """

    def run(name: str, ended: bool, *call: object) -> None:
        note(name, ended)  # and None: what a hook returns takes the place of its module's output

    hooks = [m.register_forward_pre_hook(partial(run, n, False)) for n, m in modules.items()]
    hooks += [m.register_forward_hook(partial(run, n, True)) for n, m in modules.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
