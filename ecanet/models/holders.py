"""What holds an attention module in a network, and keeps it there when the network is converted.

Conversions (freezing or synchronising batch norms, folding them into convolutions, merging branches)
put other modules in the place of those they know, or delete them. An attention module that came after
one of these would be gone without a word. So a module in whose children an attention module is held
becomes an instance of a subclass of its own class that

* gives the attention module to a norm, an activation or a drop path that takes the old one's place;
* refuses to replace or delete anything else that holds one;
* runs ``fuse``, ``reparameterize`` and ``switch_to_deploy`` on a copy first, and refuses what loses an
  attention module there, while the network itself is still whole.

No weight is renamed. What writes into ``_modules`` past all this is found by :func:`checked_attention`.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.layers import FrozenBatchNormAct2d, freeze_batch_norm_2d, unfreeze_batch_norm_2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FrozenBatchNorm2d

from ecanet.errors import UserError
from ecanet.models.residual import AttentionSlot

# What timm, Ultralytics and the authors of RepVGG call a conversion that a module does to itself.
_CONVERSIONS = ("fuse", "reparameterize", "switch_to_deploy")
_FROZEN = (FrozenBatchNorm2d, FrozenBatchNormAct2d)
_NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm, *_FROZEN)

_WAY_ON = (
    'convert before inserting, or insert where it stays, as in where="stages.*.*.attn" for RepVGG and '
    'MobileOne; insert_attention(model, "none") takes all out'
)


class BeforeDropPath(nn.Module):
    """An attention module in front of what a timm block ran last in its residual branch."""

    def __init__(self, attention: nn.Module, drop_path: nn.Module | None) -> None:
        super().__init__()
        self.attention = attention
        self.drop_path = nn.Identity() if drop_path is None else drop_path

    def forward(self, x: Tensor) -> Tensor:
        return self.drop_path(self.attention(x))


class _Derived:
    """A class made at run time alone: copies and pickles name what it was made from."""

    _made_from: tuple[type, tuple[type, ...]]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return (_rebuild, self._made_from, *super().__reduce_ex__(protocol)[2:])


class _Attended(_Derived):
    """Runs ``self.attention`` after what the class does."""

    attention: nn.Module

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.attention(super().forward(*args, **kwargs))  # type: ignore[misc]

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "forward":  # another way to compute the same, as Ultralytics' forward_fuse
            value = functools.partial(_then_attention, self, value)
        super().__setattr__(name, value)


class _Guard(_Derived):
    """Keeps the attention modules that its children hold."""

    def add_module(self, name: str, module: nn.Module | None) -> None:
        super().add_module(name, _kept(self, name, module))  # type: ignore[misc]

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get("_modules", {}):
            value = _kept(self, name, value)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if _holds_one(self.__dict__["_modules"].get(name)):
            raise UserError(
                f"without its {name} {_name(self)} loses an attention module: {_WAY_ON}"
            )
        super().__delattr__(name)


def _then_attention(module: Any, forward: Callable[..., Tensor], *args: Any, **kw: Any) -> Tensor:
    return module.attention(forward(*args, **kw))


@functools.cache
def _derived(origin: type, mixins: tuple[type, ...]) -> Any:
    """Return the subclass of ``origin`` that ``mixins`` come before."""
    has_attention = _Attended in mixins
    namespace: dict[str, Any] = {
        "_made_from": (origin, mixins),
        "__qualname__": f"{origin.__qualname__}{'WithAttention' if has_attention else ''}",
        # torch.fx takes a module for a leaf by its class's home, and must not trace into a batch norm.
        "__module__": origin.__module__,
    }
    if _Guard in mixins:
        for name in _CONVERSIONS:
            if callable(getattr(origin, name, None)):
                namespace[name] = _rehearsed(getattr(origin, name))
    return type(namespace["__qualname__"].rpartition(".")[2], (*mixins, origin), namespace)


def _rebuild(origin: type, mixins: tuple[type, ...]) -> nn.Module:
    cls = _derived(origin, mixins)
    return cls.__new__(cls)


def _give(module: nn.Module, mixin: type) -> None:
    """Make a module an instance of its class with ``mixin`` in front."""
    if not isinstance(module, mixin):
        origin, mixins = type(module).__dict__.get("_made_from", (type(module), ()))
        module.__class__ = _derived(origin, (mixin, *mixins))


def _rehearsed(convert: Callable[..., Any]) -> Callable[..., Any]:
    """Return the method, made to refuse where a copy loses an attention module by it."""

    @functools.wraps(convert)
    def rehearsed(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        rehearsal = copy.deepcopy(self)
        try:
            converted = convert(rehearsal, *args, **kwargs)
        except UserError:
            left = -1
        else:
            left = len(
                attention_modules(converted if isinstance(converted, nn.Module) else rehearsal)
            )
        if left < len(attention_modules(self)):
            raise UserError(
                f"{convert.__name__}() of {_name(self)} loses an attention module: {_WAY_ON}"
            )
        return convert(self, *args, **kwargs)

    return rehearsed


def _kept(parent: Any, name: str, new: Any) -> Any:
    """Return what is to become the child ``name``: ``new``, holding what the old child holds."""
    old = parent._modules.get(name)
    if new is old or not _holds_one(old):
        return new
    attention: Any = old.attention
    if isinstance(new, nn.Module) and any(module is old for module in new.modules()):
        return new  # a wrapper, as FSDP's
    if isinstance(old, BeforeDropPath):
        return BeforeDropPath(attention, new)
    if (
        isinstance(new, nn.Module)
        and not holds_attention(new)
        and isinstance(old, _Attended)
        and (isinstance(old, _NORMS) or not _has_weights(old))
    ):
        # Synchronising a batch norm converts its children too.
        attention = new._modules.get("attention", attention)
        if isinstance(new, _FROZEN):
            attention = freeze_batch_norm_2d(attention)
        elif isinstance(old, _FROZEN):
            attention = unfreeze_batch_norm_2d(attention)
        run_after(new, attention)
        return new
    raise UserError(
        f"the {name} of {_name(parent)} holds an attention module, and what is put in its place "
        f"({type(new).__name__}) does not: {_WAY_ON}"
    )


def _has_weights(holder: Any) -> bool:
    """Whether a holder has weights beside those of its attention module."""
    return any(not name.startswith("attention.") for name, _ in holder.named_parameters())


def _name(module: Any) -> str:
    return type(module).__dict__.get("_made_from", (type(module),))[0].__name__


def run_after(module: Any, attention: nn.Module) -> None:
    """Let ``attention`` run after ``module``, in place; no name of a weight changes."""
    if not holds_attention(module):
        if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
            module.add_module("attention", attention)
            return
        _give(module, _Attended)
    module.attention = attention


def guard(model: nn.Module) -> None:
    """Let all modules in which attention was inserted keep it through conversions, see above."""
    for module in list(model.modules()):
        converts = any(callable(getattr(module, name, None)) for name in _CONVERSIONS)
        if any(
            _holds_one(child) and not isinstance(child, AttentionSlot)
            for child in module.children()
        ) or (converts and attention_modules(module)):
            _give(module, _Guard)


def holds_attention(module: Any) -> bool:
    """Whether a module has a place for an attention module, empty or not."""
    return isinstance(module, (AttentionSlot, BeforeDropPath, _Attended)) or (
        isinstance(module, nn.Sequential) and "attention" in module._modules
    )


def _holds_one(module: Any) -> bool:
    return holds_attention(module) and not isinstance(module.attention, nn.Identity)


def holders(model: nn.Module) -> dict[str, Any]:
    """Return what has an ``attention`` child, by that child's name."""
    return {
        f"{name}.attention".lstrip("."): module
        for name, module in model.named_modules()
        if holds_attention(module)
    }


def attention_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the attention modules of a model, those of its blocks and those inserted, by name."""
    return {
        name: holder.attention
        for name, holder in holders(model).items()
        if not isinstance(holder.attention, nn.Identity)
    }


@contextmanager
def checked_attention(model: nn.Module) -> Iterator[dict[str, nn.Module]]:
    """Hold what runs inside ``with``, one forward pass at least, against what was inserted.

    Gives :func:`attention_modules` of the model.

    Raises:
        UserError: fewer attention modules are there than were inserted, or one of them did not run.
    """
    modules = attention_modules(model)
    inserted = getattr(model, "inserted_attention", 0)
    if len(modules) < inserted:
        raise UserError(
            f"{len(modules)} of the {inserted} attention modules that were inserted into "
            f"{_name(model)} are left: {_WAY_ON}"
        )
    idle = dict(modules)

    def note(name: str, *call: Any) -> None:
        idle.pop(name, None)

    hooks = [
        module.register_forward_hook(functools.partial(note, name))
        for name, module in modules.items()
    ]
    try:
        yield modules
    finally:
        for hook in hooks:
            hook.remove()
    if idle:
        raise UserError(
            f"{len(idle)} of the {len(modules)} attention modules of {_name(model)} do not run "
            f"({next(iter(idle))} first): {_WAY_ON}"
        )


def check_attention(model: nn.Module, image_size: int, in_chans: int = 3) -> int:
    """Run one image of zeros through a model, in evaluation mode, as :func:`checked_attention`.

    The model, which takes (N, in_chans, H, W), is left as it was.

    Returns:
        How many attention modules it has, all of which have run.

    Raises:
        UserError: one is lost or does not run.
    """
    modes = {module: module.training for module in model.modules()}
    like = next(model.parameters())
    image = torch.zeros(1, in_chans, image_size, image_size, device=like.device, dtype=like.dtype)
    model.eval()
    try:
        with torch.no_grad(), checked_attention(model) as modules:
            model(image)
    finally:
        for module, training in modes.items():
            module.training = training
    return len(modules)
