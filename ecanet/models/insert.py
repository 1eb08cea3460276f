"""Inserts attention modules into any CNN: at the end of every residual branch, or by a pattern of names.

There are three ways to insert, none of which renames an existing weight:

* our own blocks have a slot for it, see :class:`ecanet.models.residual.ResidualEnd`;
* timm's blocks run a ``drop_path`` last in the residual branch: the module goes before it;
* anywhere else, the module that precedes the place becomes an instance of a subclass of its own
  class, which runs the attention module after itself and keeps the names of its weights
  (an ``nn.Sequential`` needs no subclass: the attention module is appended to it).

Hooks would be shorter, but are lost or left behind when a module is rebuilt from its weights.
:mod:`ecanet.models.holders` keeps inserted modules in place through conversions of the network.
"""

from __future__ import annotations

import copy
import fnmatch
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models import convnext, efficientnet, mnasnet, mobilenetv2, mobilenetv3, regnet
from torchvision.models import resnet as torchvision_resnet
from torchvision.ops import FrozenBatchNorm2d

from ecanet.attention import create_attention, parse_attention
from ecanet.errors import UserError, as_user_error, one_line, shown
from ecanet.models.holders import (
    BeforeDropPath,
    attention_modules,
    checked_attention,
    guard,
    holders,
    run_after,
)
from ecanet.models.hooks import run_in_evaluation
from ecanet.models.identity import WITHOUT_IDENTITY, identity_factor, start_as_identity
from ecanet.models.probe import small_image
from ecanet.models.residual import ResidualEnd

# torchvision's residual blocks: the module that ends the branch, and the flag for whether the block has
# an addition at all.
_TORCHVISION: dict[type[nn.Module], tuple[str, str | None]] = {
    torchvision_resnet.BasicBlock: ("bn2", None),
    torchvision_resnet.Bottleneck: ("bn3", None),
    regnet.ResBottleneckBlock: ("f", None),
    convnext.CNBlock: ("block", None),
    mobilenetv2.InvertedResidual: ("conv", "use_res_connect"),
    mobilenetv3.InvertedResidual: ("block", "use_res_connect"),
    efficientnet.MBConv: ("block", "use_res_connect"),
    efficientnet.FusedMBConv: ("block", "use_res_connect"),
    mnasnet._InvertedResidual: ("layers", "apply_residual"),
}

# Layers whose channels are known without running the model, and layers that no attention module can follow.
_TWO_DIMENSIONAL = (nn.BatchNorm2d, nn.Conv2d, FrozenBatchNorm2d, ResidualEnd)
_OTHER_DIMENSIONS = (
    nn.BatchNorm1d, nn.InstanceNorm1d, nn.Conv1d, nn.BatchNorm3d, nn.InstanceNorm3d, nn.Conv3d,
)  # fmt: skip

_PASS_WHERE = 'give a pattern of norms or convolutions, as in where="layer4.*.bn3"'
_LEAVE_OUT = "leave replace_attention out"


@dataclass(eq=False)
class _Place:
    """Somewhere an attention module can go."""

    name: str
    """Name of ``module``."""
    module: nn.Module
    """A ResidualEnd, a block with a drop_path, or the module that the attention module follows."""
    is_block: bool = False
    """Whether ``module`` is a block, and the attention module goes before its drop_path."""
    channels: int = 0

    def attach(self, attention: nn.Module) -> None:
        module: Any = self.module
        if self.is_block:
            if isinstance(module.drop_path, BeforeDropPath):
                module.drop_path.attention = attention
            else:
                module.drop_path = BeforeDropPath(attention, module.drop_path)
        else:
            run_after(module, attention)


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
    that, of its own size.

    Args:
        model: one of ours, or any CNN of timm or torchvision.
        spec: attention module, as in :func:`ecanet.create_attention`: ``"eca:kernel_size=9"``.
        where: pattern of module names, matched component by component (``"layer4.*.bn3"``): an
            attention module goes after every module that matches or, if that is a residual block
            of ours, at the end of its branch. By default every residual block gets one.
        identity: initialize the modules so that in evaluation mode the model computes the same as before,
            see :func:`ecanet.models.start_as_identity`.
        kernel_sizes: a kernel size for each stage, ``(3, 5, 5, 7)`` or ``"3557"``; a stage is a
            sequence of places with the same number of channels.

    Returns:
        ``model`` itself.

    Raises:
        UserError: the module is unknown, cannot be built or cannot start as the identity, the pattern
            matches nothing, the model has no known residual block, or an argument would have no effect.
            The model is then unchanged.
    """
    name, _ = parse_spec(spec)
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
    places = _find_places(model, where)
    modules = _modules_for(model, places, spec, kernel_sizes)
    if identity:  # refused before anything is attached
        small_image(model, WITHOUT_IDENTITY)
        identity_factor(copy.deepcopy(modules[0]), places[0].channels)
    for place, module in zip(places, modules, strict=True):
        place.attach(module)
    guard(model)
    if identity:
        start_as_identity(model)
    return _counted(model)


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
    old = {name: model.get_submodule(name) for name in names}
    places = _observe(model, [_Place(name, module) for name, module in old.items()], _LEAVE_OUT)
    modules: list[nn.Module] = []
    if name != "none":
        modules = _modules_for(model, places, spec, kernel_sizes)
    try:
        for name in old:
            model.set_submodule(name, nn.Identity())
        for place, module in zip(places, modules, strict=False):
            run_after(model.get_submodule(place.name), module)
        with checked_attention(model):
            run_in_evaluation(model, small_image(model, _LEAVE_OUT))
    except UserError as error:
        for name, module in old.items():
            model.set_submodule(name, module)
        raise UserError(f"attention {spec} in the place of {places[0].name}: {error}") from error
    guard(model)
    return _counted(model)


def _modules_for(
    model: nn.Module,
    places: list[_Place],
    spec: str,
    kernel_sizes: Sequence[int] | str | None,
) -> list[nn.Module]:
    """Build an attention module for each place."""
    _, arguments = parse_spec(spec)
    kernels = _kernel_of_each(places, kernel_sizes, arguments)
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    with torch.random.fork_rng(devices=[]):
        channels = [place.channels for place in places]
        modules = [build_attention(spec, *both) for both in zip(channels, kernels, strict=True)]
    for module in modules:
        module.to(like.device, like.dtype).train(model.training)
    return modules


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


def build_attention(spec: str, channels: int, kernel_size: int | None = None) -> nn.Module:
    """Build an attention module, as :func:`ecanet.create_attention`.

    Raises:
        UserError: it cannot be built.
    """
    given = {} if kernel_size is None else {"kernel_size": kernel_size}
    with as_user_error(f"attention module {spec} cannot be built for {channels} channels"):
        try:
            return create_attention(spec, channels, **given)
        except (ValueError, TypeError) as error:
            raise UserError(one_line(error, most=None)) from error


def _kernel_of_each(
    places: list[_Place], kernel_sizes: Sequence[int] | str | None, arguments: dict[str, Any]
) -> list[int | None]:
    if kernel_sizes is None:
        return [None] * len(places)
    if "kernel_size" in arguments:
        raise UserError("kernel_size in the attention spec and kernel_sizes: give one of the two")
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


# ---- places


def _find_places(model: nn.Module, where: str | None) -> list[_Place]:
    if where is not None:
        places = [_after(name, module) for name, module in _matches(model, where)]
        for place in places:
            if isinstance(place.module, _OTHER_DIMENSIONS):
                raise UserError(
                    f"where={where!r} matches {place.name}, a {type(place.module).__name__}, and "
                    "attention modules need (N, C, H, W): name layers of 2-D feature maps"
                )
        if not all(isinstance(place.module, _TWO_DIMENSIONAL) for place in places):
            reached = _observe(model, places)
            unused = [place.name for place in places if place not in reached]
            if unused:
                raise UserError(f"{unused[0]} matches {where!r}, but the model does not run it")
        return places

    named = model.named_modules()
    places = [_after(name, module) for name, module in named if isinstance(module, ResidualEnd)]
    if places:
        return places
    candidates = list(_residual_blocks(model))
    # A block without an addition also has a drop_path, but never runs it.
    places = _observe(model, candidates) if candidates else []
    if not places:
        raise UserError(
            f"{type(model).__name__} has no residual block known to ecanet: {_PASS_WHERE}; "
            f"some of its modules: {_examples(model)}"
        )
    return places


def _after(name: str, module: Any) -> _Place:
    """Return the place after a module, or at the end of the branch of one of our blocks."""
    layer = module.last_norm() if isinstance(module, ResidualEnd) else module
    return _Place(name, module, channels=_channels(layer))


def _residual_blocks(model: nn.Module) -> Iterator[_Place]:
    for name, module in model.named_modules():
        if hasattr(module, "drop_path") and not isinstance(module, BeforeDropPath):
            if module.drop_path is None or isinstance(
                module.drop_path, (nn.Identity, DropPath, BeforeDropPath)
            ):
                yield _Place(name, module, is_block=True)
            continue
        for block, (end, flag) in _TORCHVISION.items():
            if isinstance(module, block) and (flag is None or getattr(module, flag)):
                yield _Place(f"{name}.{end}", getattr(module, end))


def _matches(model: nn.Module, where: str) -> list[tuple[str, nn.Module]]:
    pattern = where.split(".")
    inside = tuple(f"{name}." for name in holders(model))
    matches = [
        (name, module)
        for name, module in model.named_modules()
        if name
        and len(parts := name.split(".")) == len(pattern)
        and all(map(fnmatch.fnmatchcase, parts, pattern))
        and not f"{name}.".startswith(inside)
    ]
    if not matches:
        raise UserError(
            f"where={where!r} matches no module of {type(model).__name__} (a * stands for one "
            f"component of a name); some of its modules: {_examples(model)}"
        )
    return matches


def _examples(model: nn.Module, count: int = 3) -> str:
    names = [name for name, module in model.named_modules() if _channels(module)]
    # The last ones, as names in the stem are not typical.
    return ", ".join(names[-count:]) or "none with channels"


def _channels(module: Any) -> int:
    """Return the output channels of a norm or convolution, 0 for any other module."""
    names = {_BatchNorm: "num_features", nn.GroupNorm: "num_channels", nn.Conv2d: "out_channels"}
    name = next((names[kind] for kind in names if isinstance(module, kind)), None)
    return 0 if name is None else getattr(module, name)


def _observe(model: nn.Module, places: Sequence[_Place], advice: str = _PASS_WHERE) -> list[_Place]:
    """Run a small image; return the places that it passes, with their channels."""
    image = small_image(model, advice)
    arrivals: defaultdict[_Place, list[Any]] = defaultdict(list)

    def note_arrival(place: _Place, module: nn.Module, args: Any, *output: Any) -> None:
        # Without an output, it hooks the start of a forward pass.
        arrivals[place].append((output or args)[0])

    with ExitStack() as stack:
        for place in places:
            module: Any = place.module
            note = partial(note_arrival, place)
            if not place.is_block:
                stack.callback(module.register_forward_hook(note).remove)
                continue
            if module.drop_path is None:
                stack.callback(setattr, module, "drop_path", None)
                module.drop_path = nn.Identity()
            stack.callback(module.drop_path.register_forward_pre_hook(note).remove)
        run_in_evaluation(model, image)

    reached = [place for place in places if place in arrivals]
    for place in reached:
        if len(arrivals[place]) > 1:
            raise UserError(
                f"{place.name} runs {len(arrivals[place])} times in one forward pass, so one attention "
                f"module cannot serve it: {advice}"
            )
        (tensor,) = arrivals[place]
        if not isinstance(tensor, Tensor) or not _is_nchw(tensor, image):
            shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise UserError(
                f"{place.name} gives {shape}, but attention modules need (N, C, H, W): {advice}"
            )
        place.channels = tensor.shape[1]
    return reached


def _is_nchw(tensor: Tensor, image: Tensor) -> bool:
    """Whether a tensor is (N, C, H, W) like the image that it comes from, rather than (N, H, W, C)."""
    if tensor.ndim != 4:
        return False
    _, _, height, width = tensor.shape
    # On a square image, (N, H, W, C) with C = W passes too; other places of the network then decide.
    return height > width if image.shape[2] > image.shape[3] else height == width
