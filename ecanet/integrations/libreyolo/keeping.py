"""Refuses where LibreYOLO would lose inserted attention modules.

Its training trains the network that it is given, so that modules last through it. Only where the number of
classes changes do some families build another network, and weights of other modules are dropped in loading.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from libreyolo.models.base.model import BaseModel
from torch import nn

from ecanet.errors import UserError
from ecanet.models.holders import attention_modules


def keep(network: nn.Module) -> None:
    """Make the attention modules of a network last, or refuse."""
    _watch()


@functools.cache
def _watch() -> None:
    kind: Any = BaseModel
    kind.__setattr__ = _keep_network
    kind._load_state_dict_logged = _loads_all(kind._load_state_dict_logged)


def _keep_network(self: Any, name: str, value: Any) -> None:
    before = self.__dict__.get("model") if name == "model" else None
    if (
        isinstance(before, nn.Module)
        and isinstance(value, nn.Module)
        and attention_modules(before)
        and not attention_modules(value)
    ):
        raise UserError(
            f"{type(self).__name__} builds another network here, without the inserted attention modules: "
            "make it with the data's number of classes, as in nb_classes=20, and insert them then"
        )
    object.__setattr__(self, name, value)


def _loads_all(load: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(load)
    def loading(self: Any, state_dict: dict[str, Any], source: str) -> None:
        known = self.model.state_dict()
        lost = [name for name in state_dict if ".attention." in name and name not in known]
        if lost:
            raise UserError(
                f"{source} has weights of attention modules ({lost[0]} first), which would be lost: insert "
                "the modules first"
            )
        load(self, state_dict, source)

    return loading
