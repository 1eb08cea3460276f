"""Inserts attention modules into any CNN: at the end of every residual branch, or by a pattern of names.

:mod:`ecanet.models.places` finds the places. There are three ways to insert, none of which renames an
existing weight:

* our own blocks have a slot for it, see :class:`ecanet.models.residual.ResidualEnd`;
* timm's blocks run a ``drop_path`` last in the residual branch: the module goes before it;
* anywhere else, the module that precedes the place becomes an instance of a subclass of its own
  class, which runs the attention module after itself and keeps the names of its weights
  (an ``nn.Sequential`` needs no subclass: the attention module is appended to it).

Hooks would be shorter, but are lost or left behind when a module is rebuilt from its weights.
:mod:`ecanet.models.holders` keeps inserted modules in place through conversions of the network.
"""

from __future__ import annotations

import itertools
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ecanet.attention import create_attention, parse_attention
from ecanet.errors import UserError, as_user_error, one_line, shown
from ecanet.models.holders import (
    attention_modules,
    checked_attention,
    guard,
    holders,
    run_after,
)
from ecanet.models.hooks import forward_hooks
from ecanet.models.identity import start_as_identity
from ecanet.models.places import Place, find_places, observe
from ecanet.models.probe import TakesNoImage, run_small_image
from ecanet.models.yolo import is_yolo, keep_in_training, refuse_wrapper

_LEAVE_OUT = "leave replace_attention out"
_CHECK = "run one of your own inputs inside ecanet.models.checked_attention"


def insert_attention(
    model: nn.Module,
    spec: str,
    where: str | None = None,
    identity: bool = False,
    kernel_sizes: Sequence[int] | str | None = None,
) -> nn.Module:
    """Put an attention module at the end of every residual branch of a CNN, in place.

    All other weights keep their names, and the random state is preserved: the same seed gives all other
    weights the same values, whichever module is inserted. An existing attention module is replaced;
    ``"none"`` removes all of them.

    The channels of a place are those of the norm or convolution that it follows. After other layers, they
    are found by running an image of zeros through the model: of 128x64 pixels or, if the model does not take
    that, of its own size. 1-D and 3-D networks get modules for signals and volumes.

    Args:
        model: one of ours, or any CNN: of timm, torchvision, MONAI, Ultralytics or your own.
        spec: attention module, as in :func:`ecanet.create_attention`: ``"eca:kernel_size=9"``.
        where: pattern of module names, matched component by component (``"layer4.*.bn3"``): an
            attention module goes after every module that matches or, if that is a residual block
            of ours, at the end of its branch. By default every residual block gets one. Networks of
            Ultralytics also have the named places ``blocks`` (their default: the end of every C2f, C3k2 and
            the like), ``backbone``, ``neck`` and ``before-detect``, see :mod:`ecanet.models.yolo`.
        identity: initialize the modules so that in evaluation mode the model computes the same as before,
            see :func:`ecanet.models.start_as_identity`.
        kernel_sizes: a kernel size for each stage, ``(3, 5, 5, 7)`` or ``"3557"``; a stage is a
            sequence of places with the same number of channels.

    Returns:
        ``model`` itself.

    Raises:
        UserError: the module is unknown, cannot be built or cannot start as the identity, the pattern
            matches nothing, the model has no known residual block, one of the modules does not run in a
            forward pass, the model is compiled, or an argument would have no effect. The model is then
            unchanged.
    """
    name, _ = parse_spec(spec)
    refuse_wrapper(model)
    if any("_orig_mod" in module._modules for module in model.modules()):
        raise UserError(
            "the model is compiled: insert first, as in torch.compile(insert_attention(model, ...))"
        )
    if name == "none":
        if where is not None or identity or kernel_sizes is not None:
            raise UserError(
                "attention none takes no where, identity or kernel_sizes: they have no effect"
            )
        return remove_attention(model, holders(model))

    if identity and attention_modules(model):
        raise UserError(
            "identity=True needs a model without attention modules, whose output would change"
        )
    places = find_places(model, where)
    modules = _modules_for(model, places, spec, kernel_sizes)
    with _unchanged_on_error(model):
        for place, module in zip(places, modules, strict=True):
            place.attach(module)
        _protect(model)
        _counted(model)
        try:
            _check_all_run(model, spec)
        except TakesNoImage as error:
            if not identity:  # which needs an image itself, and refuses below
                warnings.warn(
                    f"whether all attention modules run was not checked, as {error}", stacklevel=2
                )
        if identity:
            start_as_identity(model)
    return model


def remove_attention(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """Remove attention modules of a model, in place; return the model.

    Args:
        model: with places for attention.
        names: of some of :func:`ecanet.models.holders.holders`.

    Raises:
        UserError: the model has no such place.
    """
    slots = holders(model)
    for name in names:
        if name not in slots:
            raise UserError(f"{type(model).__name__} has no place for attention {shown(name)}")
        slots[name].attention = nn.Identity()
    return _counted(model)


def insert_at(
    model: nn.Module,
    names: Sequence[str],
    spec: str,
    kernel_sizes: Sequence[int] | str | None = None,
) -> nn.Module:
    """Replace each of the named modules, which keep the shape, by an attention module, in place.

    ``"none"`` removes them. A module that the model does not run is removed without a replacement.

    Raises:
        UserError: as for :func:`insert_attention`; or the model has inserted attention modules, or does not
            run with other modules there. The model is then unchanged.
    """
    if attention_modules(model):
        raise UserError("the model has inserted attention modules: replace its own ones first")
    name, _ = parse_spec(spec)
    if name == "none" and kernel_sizes is not None:
        raise UserError("kernel_sizes have no effect without an attention module")
    places = [Place(name, model.get_submodule(name)) for name in names]
    places = observe(model, places, _LEAVE_OUT)
    modules: list[nn.Module] = []
    if name != "none":
        modules = _modules_for(model, places, spec, kernel_sizes)
    try:
        with _unchanged_on_error(model):
            for name in names:
                model.set_submodule(name, nn.Identity())
            for place, module in zip(places, modules, strict=False):
                run_after(model.get_submodule(place.name), module)
            _protect(model)
            _counted(model)
            _check_all_run(model, spec)
    except UserError as error:
        raise UserError(f"attention {spec} in the place of {places[0].name}: {error}") from error
    return model


@contextmanager
def _unchanged_on_error(model: nn.Module) -> Iterator[None]:
    """Restore the modules of a model and their classes if an error occurs inside ``with``."""
    before = [
        (module, type(module), dict(module.__dict__), dict(module._modules))
        for module in model.modules()
        if not isinstance(module, torch.jit.ScriptModule)
    ]
    try:
        yield
    except BaseException:
        for module, cls, attributes, children in before:
            module.__class__ = cls
            module.__dict__.clear()
            module.__dict__.update(attributes)
            module._modules.clear()
            module._modules.update(children)
        raise


def _check_all_run(model: nn.Module, spec: str) -> None:
    """Run a small image inside :func:`checked_attention`.

    Raises:
        TakesNoImage: it does not run.
        UserError: an attention module is missing, did not run, or failed.
    """
    slots = holders(model)
    modules = attention_modules(model)
    running: list[str] = []
    runs: Counter[str] = Counter()

    def note(name: str, ended: bool) -> None:
        running[:] = [] if ended else [name]
        runs[name] += ended

    @contextmanager
    def watch(image: Tensor) -> Iterator[None]:
        runs.clear()
        with (
            checked_attention(model),
            forward_hooks(modules, note),
            forward_hooks({f"{name} slot": slots[name] for name in modules}, count),
        ):
            yield

    def count(name: str, ended: bool) -> None:
        runs[name] += ended

    try:
        run_small_image(model, _CHECK, watch)
    except TakesNoImage as error:
        if running:
            raise UserError(
                f"attention module {spec} fails at {running[0]}: {one_line(error.__cause__)}"
            ) from error
        raise
    twice = next((name for name in modules if runs[name] > max(1, runs[f"{name} slot"])), None)
    if twice is not None:
        raise UserError(
            f"{twice} runs {runs[twice]} times in one forward pass, as the module that it follows runs its "
            "own children: name a layer in it or around it"
        )


def _modules_for(
    model: nn.Module,
    places: list[Place],
    spec: str,
    kernel_sizes: Sequence[int] | str | None,
) -> list[nn.Module]:
    """Build an attention module for each place."""
    _, arguments = parse_spec(spec)
    kernels = _kernel_of_each(places, kernel_sizes, arguments)
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    with torch.random.fork_rng(devices=[]):
        modules = [
            build_attention(spec, place.channels, kernel, place.dims)
            for place, kernel in zip(places, kernels, strict=True)
        ]
    for module in modules:
        module.to(like.device, like.dtype).train(model.training)
    return modules


def _protect(model: nn.Module) -> None:
    """Keep the attention modules of a model through conversions, and where Ultralytics trains it."""
    guard(model)
    if is_yolo(model):
        keep_in_training(model)


def _counted(model: nn.Module) -> nn.Module:
    """Store the number of attention modules, for :func:`ecanet.models.checked_attention`."""
    model.inserted_attention = len(attention_modules(model))  # type: ignore[assignment]
    return model


def parse_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """Return an attention module's name and arguments, as :func:`ecanet.attention.parse_attention`.

    Raises:
        UserError: the module is unknown, or does not have such an argument.
    """
    try:
        return parse_attention(spec)
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from error


def build_attention(
    spec: str, channels: int, kernel_size: int | None = None, dims: int = 2
) -> nn.Module:
    """Build an attention module, as :func:`ecanet.create_attention`.

    Raises:
        UserError: it cannot be built.
    """
    given = {} if kernel_size is None else {"kernel_size": kernel_size}
    with as_user_error(f"attention module {spec} cannot be built for {channels} channels"):
        try:
            return create_attention(spec, channels, dims, **given)
        except (ValueError, TypeError) as error:
            raise UserError(one_line(error, most=None)) from error


def _kernel_of_each(
    places: list[Place], kernel_sizes: Sequence[int] | str | None, arguments: dict[str, Any]
) -> list[int | None]:
    if kernel_sizes is None:
        return [None] * len(places)
    if "kernel_size" in arguments:
        raise UserError("kernel_size in the attention spec and kernel_sizes: give only one")
    kernels = parse_kernel_sizes(kernel_sizes)
    stages = [list(stage) for _, stage in itertools.groupby(places, lambda place: place.channels)]
    if len(kernels) != len(stages):
        widths = ", ".join(str(stage[0].channels) for stage in stages)
        raise UserError(
            f"kernel_sizes has {len(kernels)} kernels, but the model has {len(stages)} stages "
            f"(of {widths} channels): give one for each"
        )
    return [kernel for kernel, stage in zip(kernels, stages, strict=True) for _ in stage]


def parse_kernel_sizes(value: Sequence[int] | str) -> tuple[int, ...]:
    """Return the kernel sizes given by ``"3557"``, ``"3,5,5,11"`` or ``(3, 5, 5, 7)``.

    Raises:
        UserError: a string has anything but digits.
    """
    if not isinstance(value, str):
        return tuple(value)
    parts = value.split(",") if "," in value else list(value)
    if not parts or not all(part.strip().isdecimal() for part in parts):
        raise UserError(f"kernel_sizes {value!r}: write a digit for each stage, as in 3557")
    return tuple(int(part) for part in parts)
