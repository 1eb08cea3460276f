"""Keeps inserted attention modules where Ultralytics would lose them.

Its training does not train the network it is called on: it builds a new one from the YAML, and copies weights
by name. `YOLO.train` of a network with attention modules therefore runs a trainer of ours; what would still
lose the modules is refused. The network itself sees to that, in whatever process it is loaded.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

from torch import nn
from ultralytics.engine.model import Model
from ultralytics.nn.tasks import BaseModel

from ecanet.errors import UserError, as_user_error
from ecanet.models.holders import (
    Derived,
    add_mixin,
    attention_modules,
    checked_attention,
    guard,
    run_after,
)
from ecanet.models.hooks import run_in_evaluation
from ecanet.models.insert import insert_attention
from ecanet.models.probe import small_image


class Kept(Derived):
    """A network of Ultralytics whose attention modules last through its training."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        _watch()  # in the process that loads it
        super().__setstate__(state)  # type: ignore[misc]


class KeepingTrainer:
    """A trainer of Ultralytics that builds networks with the attention modules of another network."""

    source: nn.Module
    """Whose modules they are, if the weights to start from have none."""

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> nn.Module:
        source = weights if weights is not None and attention_modules(weights) else self.source
        network = super().get_model(cfg=cfg, weights=_without(weights), verbose=verbose)  # type: ignore[misc]
        transplant(source, network)
        return network


def keep(network: nn.Module) -> None:
    """Make the attention modules of a network last through Ultralytics' training, in place."""
    _watch()
    add_mixin(network, Kept)


def keeping_trainer(trainer: type, source: nn.Module) -> type:
    """Return a subclass of a trainer of Ultralytics, for any task, whose networks have attention modules.

    ``YOLO.train`` takes it for networks that have some; ``YOLO.train(trainer=...)`` may be given it.

    Args:
        trainer: such as ``ultralytics.models.yolo.detect.DetectionTrainer``.
        source: a network with attention modules, of the same YAML. They are copied with their weights.
    """
    if issubclass(trainer, KeepingTrainer):
        return trainer
    name = f"{trainer.__name__}WithAttention"
    return type(name, (KeepingTrainer, trainer), {"source": source})


def transplant(source: nn.Module, network: nn.Module) -> None:
    """Copy the attention modules of a network, with their weights, into another one, in place.

    Raises:
        UserError: they do not fit.
    """
    with as_user_error("the attention modules do not fit into the network that is trained"):
        for name, module in attention_modules(source).items():
            place = network.get_submodule(name.removesuffix(".attention"))
            run_after(place, copy.deepcopy(module).requires_grad_(True).train(place.training))
        guard(network)
        keep(network)
        network.inserted_attention = len(attention_modules(network))  # type: ignore[assignment]
        with checked_attention(network):
            run_in_evaluation(network, small_image(network, "insert anew"))


def _without(weights: Any) -> Any:
    if weights is None or not attention_modules(weights):
        return weights
    return insert_attention(copy.deepcopy(weights), "none")


@functools.cache
def _watch() -> None:
    """Make methods of Ultralytics keep attention modules, or refuse."""
    Model.train = _keeps(Model.train)  # type: ignore[method-assign]
    Model.tune = _refuses(Model.tune)  # type: ignore[method-assign]
    BaseModel.load = _loads_all(BaseModel.load)  # type: ignore[method-assign]


def _keeps(train: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(train)
    def keeping(self: Any, trainer: Any = None, **kwargs: Any) -> Any:
        if isinstance(self.model, nn.Module) and attention_modules(self.model):
            if kwargs.get("pretrained", self.overrides.get("pretrained", True)) is not True:
                raise UserError(
                    "a network with inserted attention modules is trained on from its weights: leave "
                    "pretrained out, and load weights before inserting, as in YOLO(YAML).load(FILE)"
                )
            trainer = keeping_trainer(trainer or self.task_map[self.task]["trainer"], self.model)
            if (
                not self.ckpt
            ):  # otherwise a network built from a YAML is built again, with other weights
                self.ckpt = {"model": self.model}
        return train(self, trainer, **kwargs)

    return keeping


def _refuses(tune: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(tune)
    def refusing(self: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.model, nn.Module) and attention_modules(self.model):
            raise UserError(
                "tune() trains the network of the file, without the inserted attention modules: call train() "
                "with settings of your own"
            )
        return tune(self, *args, **kwargs)

    return refusing


def _loads_all(load: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(load)
    def loading(self: Any, weights: Any, *args: Any, **kwargs: Any) -> Any:
        given = weights
        if isinstance(weights, dict):
            given = weights.get("ema") or weights.get("model")
        if isinstance(given, nn.Module):
            lost = attention_modules(given).keys() - attention_modules(self).keys()
            if lost:
                raise UserError(
                    f"the weights are of a network with attention modules ({min(lost)} first), which would "
                    "be lost: take that network itself, as in YOLO(FILE).train(...), or insert first"
                )
        return load(self, weights, *args, **kwargs)

    return loading
