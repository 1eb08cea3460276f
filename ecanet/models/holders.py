"""Attaches attention modules to the modules of a network, and keeps them through conversions.

Conversions (freezing or synchronizing batch norms, folding them into convolutions, merging branches)
replace or delete modules, and would silently lose an attention module that follows one of them. So the
parent of a module that holds an attention module becomes an instance of a subclass of its own class that

* hands the attention module over to a norm, activation or drop path that replaces the old one;
* refuses to replace or delete any other module that holds one;
* runs ``fuse``, ``reparameterize`` and the like on a copy first, and refuses if that loses an attention
  module, while the network itself is still intact. An attention module that follows the converted module
  itself follows its result.

No weight is renamed. Code that writes directly into ``_modules`` is detected by :func:`checked_attention`.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
from timm.layers import FrozenBatchNormAct2d, freeze_batch_norm_2d, unfreeze_batch_norm_2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FrozenBatchNorm2d

from ecanet.errors import UserError
from ecanet.models.hooks import forward_hooks, run_in_evaluation
from ecanet.models.residual import ResidualEnd

# Methods of timm, Ultralytics, torchvision and RepVGG by which a module converts itself.
_CONVERSIONS = ("fuse", "fuse_model", "reparameterize", "switch_to_deploy")
_FROZEN = (FrozenBatchNorm2d, FrozenBatchNormAct2d)
_NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm, *_FROZEN)

_ADVICE = (
    'convert before inserting, or insert at a place that remains, as where="stages.*.*.attn" for RepVGG and '
    'MobileOne; insert_attention(model, "none") removes all'
)


class BeforeDropPath(nn.Module):
    """An attention module before the drop_path that ends the residual branch of a timm block."""

    def __init__(self, attention: nn.Module, drop_path: nn.Module | None) -> None:
        super().__init__()
        self.attention = attention
        self.drop_path = nn.Identity() if drop_path is None else drop_path

    def forward(self, x: Tensor) -> Tensor:
        return self.drop_path(self.attention(x))


class Derived:
    """Base of classes created at run time: copies and pickles refer to their origin."""

    _made_from: tuple[type, tuple[type, ...]]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return (_rebuild, self._made_from, *super().__reduce_ex__(protocol)[2:])


def _scripted_as(simple: Callable[..., Tensor]) -> Callable[[Any], Any]:
    """Make TorchScript, which knows no variable arguments, compile ``simple`` in place of a method."""

    def wrap(method: Any) -> Any:
        method.__wrapped__ = simple  # whose source inspect returns
        return method

    return wrap


def _attend_to_output(self: Any, x: Tensor) -> Tensor:
    return self.attention(self.own_forward(x))


class Attended(Derived):
    """Runs ``self.attention`` after the forward pass of the class."""

    attention: nn.Module

    @_scripted_as(_attend_to_output)
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.attention(super().forward(*args, **kwargs))  # type: ignore[misc]

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "forward":  # a replacement, such as Ultralytics' forward_fuse
            value = functools.partial(_then_attention, self, value)
        super().__setattr__(name, value)


class _Guard(Derived):
    """Keeps the attention modules held by its children."""

    def add_module(self, name: str, module: nn.Module | None) -> None:
        super().add_module(name, _kept(self, name, module))  # type: ignore[misc]

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get("_modules", {}):
            value = _kept(self, name, value)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if _holds_one(self.__dict__["_modules"].get(name)):
            raise UserError(
                f"without its {name} {_name(self)} loses an attention module: {_ADVICE}"
            )
        super().__delattr__(name)


def _then_attention(module: Any, forward: Callable[..., Tensor], *args: Any, **kw: Any) -> Tensor:
    return module.attention(forward(*args, **kw))


@functools.cache
def _derived(base: type, mixins: tuple[type, ...]) -> Any:
    """Return the subclass of ``mixins`` and ``base``."""
    has_attention = Attended in mixins
    namespace: dict[str, Any] = {
        "_made_from": (base, mixins),
        "__qualname__": f"{base.__qualname__}{'WithAttention' if has_attention else ''}",
        # torch.fx recognizes leaves by the module of their class, and must not trace into a batch norm.
        "__module__": base.__module__,
        # TorchScript reads the constants of the first class that has annotations.
        "__annotations__": next(filter(None, map(inspect.get_annotations, base.__mro__))),
    }
    for name in ("forward", "factors"):  # for TorchScript, which does not know super()
        method = getattr(base, name, None)
        if isinstance(method, FunctionType):
            namespace[f"own_{name}"] = own = FunctionType(
                method.__code__, method.__globals__, f"own_{name}", method.__defaults__,
                method.__closure__,
            )  # fmt: skip
            own.__kwdefaults__ = method.__kwdefaults__
    if _Guard in mixins:
        for name in _CONVERSIONS:
            if callable(getattr(base, name, None)):
                namespace[name] = _tested_on_copy(getattr(base, name))
    return type(namespace["__qualname__"].rpartition(".")[2], (*mixins, base), namespace)


def _rebuild(base: type, mixins: tuple[type, ...]) -> nn.Module:
    cls = _derived(base, mixins)
    return cls.__new__(cls)


def add_mixin(module: nn.Module, mixin: type) -> None:
    """Add ``mixin`` to a module's class."""
    if not isinstance(module, mixin):
        _, mixins = type(module).__dict__.get("_made_from", (type(module), ()))
        module.__class__ = _derived(origin(module), (mixin, *mixins))


def _tested_on_copy(convert: Callable[..., Any]) -> Callable[..., Any]:
    """Return the method, which refuses if it would lose an attention module, as tested on a copy."""

    @functools.wraps(convert)
    def tested(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        quiet = {"verbose": False} if "verbose" in inspect.signature(convert).parameters else {}
        with _without_own(self) as own:
            trial = copy.deepcopy(self)
            try:
                converted = convert(trial, *args, **{**kwargs, **quiet})
            except UserError:
                left = -1
            else:
                result = converted if isinstance(converted, nn.Module) else trial
                left = len(attention_modules(result))
            if left < len(attention_modules(self)):
                raise UserError(
                    f"{convert.__name__}() of {_name(self)} loses an attention module: {_ADVICE}"
                )
            converted = convert(self, *args, **kwargs)
        if own is not None and isinstance(converted, nn.Module) and converted is not self:
            run_after(converted, own)
        return converted

    return tested


@contextmanager
def _without_own(module: Any) -> Iterator[nn.Module | None]:
    """Remove the attention module that follows ``module`` itself inside ``with``, and yield it."""
    is_sequence = isinstance(module, nn.Sequential)
    if not (_holds_one(module) and (is_sequence or isinstance(module, Attended))):
        yield None
        return
    own = module._modules.pop("attention")
    if not is_sequence:
        module._modules["attention"] = nn.Identity()
    try:
        yield own
    finally:
        module._modules["attention"] = own


def _kept(parent: Any, name: str, new: Any) -> Any:
    """Return the new child ``name``, with the attention module of the old one; refuse one that cannot."""
    old = parent._modules.get(name)
    if new is old or not _holds_one(old):
        return new
    attention: Any = old.attention
    if holds_attention(new) and new.attention is attention:
        return new  # what a conversion of the old one returned
    if isinstance(new, nn.Module) and any(module is old for module in new.modules()):
        return new  # a wrapper, such as FSDP
    if isinstance(old, BeforeDropPath):
        return BeforeDropPath(attention, new)
    if (
        isinstance(new, nn.Module)
        and not holds_attention(new)
        and isinstance(old, Attended)
        and (isinstance(old, _NORMS) or not _has_weights(old))
    ):
        # Converting to SyncBatchNorm also converts children.
        attention = new._modules.pop("attention", attention)
        if isinstance(new, _FROZEN):
            attention = freeze_batch_norm_2d(attention)
        elif isinstance(old, _FROZEN):
            attention = unfreeze_batch_norm_2d(attention)
        run_after(new, attention)
        return new
    raise UserError(
        f"the {name} of {_name(parent)} holds an attention module, but its replacement "
        f"({type(new).__name__}) cannot hold one: {_ADVICE}"
    )


def _has_weights(holder: Any) -> bool:
    """Whether a holder has weights other than those of its attention module."""
    return any(not name.startswith("attention.") for name, _ in holder.named_parameters())


def origin(module: Any) -> type:
    """Return a module's class, without what this file or another has added to it."""
    return type(module).__dict__.get("_made_from", (type(module),))[0]


def _name(module: Any) -> str:
    return origin(module).__name__


def run_after(module: Any, attention: nn.Module) -> None:
    """Run ``attention`` after ``module``, in place, without renaming weights.

    Raises:
        UserError: ``module`` has no room for it, see :func:`has_room`.
    """
    if not has_room(module):
        raise UserError(
            f"an attention module cannot follow a {_name(module)}, which runs its own children in a loop, "
            "has an attribute named attention, or is TorchScript: name a layer in it or around it"
        )
    if not holds_attention(module):
        if isinstance(module, nn.Sequential):
            module.add_module("attention", attention)
            module._attention_at_end = True  # type: ignore[assignment]
            return
        add_mixin(module, Attended)
    module.attention = attention


def has_room(module: Any) -> bool:
    """Whether an attention module can be added to a module as its child ``attention``."""
    if holds_attention(module):
        return True
    is_loop = isinstance(module, (nn.ModuleList, nn.ModuleDict)) or (
        isinstance(module, nn.Sequential) and type(module).forward is not nn.Sequential.forward
    )
    return not (
        is_loop or hasattr(module, "attention") or isinstance(module, torch.jit.ScriptModule)
    )


def guard(model: nn.Module) -> None:
    """Protect all inserted attention modules through conversions, see the module's docstring."""
    for module in list(model.modules()):
        converts = any(callable(getattr(module, name, None)) for name in _CONVERSIONS)
        if any(
            _holds_one(child) and not isinstance(child, ResidualEnd) for child in module.children()
        ) or (converts and attention_modules(module)):
            add_mixin(module, _Guard)


def holds_attention(module: Any) -> bool:
    """Whether a module has a place for an attention module, empty or not."""
    return isinstance(module, (ResidualEnd, BeforeDropPath, Attended)) or (
        # A network may have a layer of this name.
        "attention" in getattr(module, "_modules", ()) and hasattr(module, "_attention_at_end")
    )


def _holds_one(module: Any) -> bool:
    return holds_attention(module) and not isinstance(module.attention, nn.Identity)


def holders(model: nn.Module) -> dict[str, Any]:
    """Return the modules with a slot for attention, by the name of their ``attention`` child."""
    return {
        f"{name}.attention".lstrip("."): module
        for name, module in model.named_modules()
        if holds_attention(module)
    }


def attention_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return a model's attention modules by name: those of our blocks and inserted ones."""
    return {
        name: holder.attention
        for name, holder in holders(model).items()
        if not isinstance(holder.attention, nn.Identity)
    }


@contextmanager
def checked_attention(model: nn.Module) -> Iterator[dict[str, nn.Module]]:
    """Check that all inserted attention modules run inside ``with``, in at least one forward pass.

    Yields:
        :func:`attention_modules` of the model.

    Raises:
        UserError: an inserted attention module is missing or did not run.
    """
    modules = attention_modules(model)
    inserted = getattr(model, "inserted_attention", 0)
    if len(modules) < inserted:
        raise UserError(
            f"only {len(modules)} of the {inserted} attention modules inserted into {_name(model)} are left: "
            f"{_ADVICE}"
        )
    idle = dict(modules)
    with forward_hooks(modules, lambda name, ended: ended and idle.pop(name, None)):
        yield modules
    if idle:
        raise UserError(
            f"{len(idle)} of the {len(modules)} attention modules of {_name(model)} do not run "
            f"({next(iter(idle))} first): {_ADVICE}"
        )


def check_attention(model: nn.Module, image_size: int, in_chans: int = 3) -> int:
    """Run an image of zeros through a model in evaluation mode, inside :func:`checked_attention`.

    The model, which takes (N, in_chans, H, W), is unchanged.

    Returns:
        The number of attention modules, all of which ran.

    Raises:
        UserError: an attention module is missing or did not run.
    """
    like = next(model.parameters())
    image = torch.zeros(1, in_chans, image_size, image_size, device=like.device, dtype=like.dtype)
    with checked_attention(model) as modules:
        run_in_evaluation(model, image)
    return len(modules)
