"""Attention modules into any CNN: at the end of every residual branch, or where a pattern says.

Three ways in, none of which renames a weight that was there before:

* our own blocks have a place of their own, see :class:`ecanet.models.residual.AttentionSlot`;
* timm's blocks run a ``drop_path`` last in the residual branch: the module goes in front of it;
* anywhere else the module that the place follows becomes an instance of a subclass of its own
  class, which runs the attention module after itself and keeps its weights under their names
  (an ``nn.Sequential`` needs no subclass: the attention module is appended to it).

Hooks would be shorter, and are lost or left behind whenever a module is rebuilt from its weights. What
keeps an attention module where it is, whatever a network is converted into, is in
:mod:`ecanet.models.holders`.
"""

from __future__ import annotations

import fnmatch
import itertools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models import convnext, efficientnet, mnasnet, mobilenetv2, mobilenetv3, regnet
from torchvision.models import resnet as torchvision_resnet
from torchvision.ops import FrozenBatchNorm2d

from ecanet.attention import create_attention, parse_attention
from ecanet.errors import UserError
from ecanet.models.holders import (
    BeforeDropPath,
    attention_modules,
    checked_attention,
    guard,
    holders,
    run_after,
)
from ecanet.models.residual import AttentionSlot

__all__ = ["attention_modules", "insert_at", "insert_attention", "parse_kernel_sizes", "parse_spec"]

# torchvision's residual blocks: what ends the branch, and the flag that says whether there is an
# addition at all.
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

# Layers whose channels are known without a look, and those that no attention module can follow.
_OF_IMAGES = (nn.BatchNorm2d, nn.Conv2d, FrozenBatchNorm2d, AttentionSlot)
_NOT_OF_IMAGES = (
    nn.BatchNorm1d, nn.InstanceNorm1d, nn.Conv1d, nn.BatchNorm3d, nn.InstanceNorm3d, nn.Conv3d,
)  # fmt: skip

_PASS_WHERE = 'say where with a pattern of norms or convolutions, as in where="layer4.*.bn3"'
_LEAVE_OUT = "leave replace_attention out"


@dataclass(eq=False)
class _Place:
    """Somewhere an attention module can go."""

    name: str
    """Of the module that the place belongs to."""
    module: nn.Module
    """An AttentionSlot, a block with a drop_path, or what the attention module comes after."""
    is_block: bool = False
    """Whether ``module`` is a block, and its drop_path what the attention module comes before."""
    channels: int = 0
    producer: nn.Module | None = None
    """The norm or convolution whose output arrives here, if it is one that can be rescaled."""

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

    The names of all other weights stay as they were, and so does the stream of random numbers: the
    same seed gives the same values to everything else, whichever module is inserted. A place that
    holds an attention module already gets the new one in its stead; ``"none"`` empties all places.

    The channels of a place are those of the norm or convolution it follows; where that is something
    else, a 128x64 image of zeros is run through the model to see what arrives.

    Args:
        model: one of ours, or any CNN of timm's or torchvision's.
        spec: attention module, as in :func:`ecanet.create_attention`: ``"eca:kernel_size=9"``.
        where: pattern of module names, matched component by component (``"layer4.*.bn3"``): an
            attention module comes after every module that matches, or, if that is a residual block
            of ours, at the end of its branch. By default every residual block gets one.
        identity: start as close to the identity as the module can. A constant factor that remains
            (ECA: 1/2) is divided out of the norm or convolution in front, so that the model
            computes what it did before. Where no such layer is in front (a layer scale is, in
            timm's ConvNeXt), the factor stays and a warning says so.
        kernel_sizes: a kernel size for each stage, ``(3, 5, 5, 7)`` or ``"3557"``; a stage is a
            run of places with the same number of channels.

    Returns:
        ``model`` itself.

    Raises:
        UserError: the module is unknown, cannot be made or cannot be made an identity, the pattern
            matches nothing, the model has no residual block known to us, or an argument would
            change nothing. The model is then as it was.
    """
    name, _ = parse_spec(spec)
    if name == "none":
        if where is not None or identity or kernel_sizes is not None:
            raise UserError(
                "attention none takes no where, identity or kernel_sizes: they change nothing"
            )
        for holder in holders(model).values():
            holder.attention = nn.Identity()
        return _counted(model)

    if identity and attention_modules(model):
        raise UserError(
            "identity=True needs a model without attention modules: what they compute would change"
        )
    places = _find_places(model, where)
    modules, factors = _modules_for(model, places, spec, kernel_sizes, identity)

    kept = []
    for place, module, factor in zip(places, modules, factors, strict=True):
        if factor != 1.0 and place.producer is None:
            kept.append(place.name)
        elif factor != 1.0:
            _divide(place.producer, factor)
        place.attach(module)
    if kept:
        warnings.warn(
            f"{name} multiplies by a constant at {len(kept)} places ({kept[0]}, ...) that no norm "
            "or convolution stands in front of: the model does not compute what it did before",
            stacklevel=2,
        )
    guard(model)
    return _counted(model)


def insert_at(
    model: nn.Module,
    names: Sequence[str],
    spec: str,
    kernel_sizes: Sequence[int] | str | None = None,
) -> nn.Module:
    """Put an attention module in the place of each module of these names, which keeps the shape, in place.

    ``"none"`` puts nothing there. A module that the model does not run goes without one in its stead.

    Raises:
        UserError: as :func:`insert_attention`; or the model has inserted attention modules, or does not
            run with another module there. The model is then as it was.
    """
    if attention_modules(model):
        raise UserError("the model holds inserted attention modules: replace its own ones first")
    name, _ = parse_spec(spec)
    if name == "none" and kernel_sizes is not None:
        raise UserError("kernel_sizes change nothing without an attention module")
    old = {name: model.get_submodule(name) for name in names}
    places = _observe(model, [_Place(name, module) for name, module in old.items()], _LEAVE_OUT)
    modules: list[nn.Module] = []
    if name != "none":
        modules, _ = _modules_for(model, places, spec, kernel_sizes)
    try:
        for name in old:
            _put(model, name, nn.Identity())
        for place, module in zip(places, modules, strict=False):
            run_after(model.get_submodule(place.name), module)
        with checked_attention(model):
            _run_small_image(model, _LEAVE_OUT)
    except UserError as error:
        for name, module in old.items():
            _put(model, name, module)
        raise UserError(f"attention {spec} in the place of {places[0].name}: {error}") from error
    guard(model)
    return _counted(model)


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _modules_for(
    model: nn.Module,
    places: list[_Place],
    spec: str,
    kernel_sizes: Sequence[int] | str | None,
    identity: bool = False,
) -> tuple[list[nn.Module], list[float]]:
    """Make an attention module for each place; return them and the constants they multiply by."""
    name, arguments = parse_spec(spec)
    kernels = _kernel_of_each(places, kernel_sizes, arguments)
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    with torch.random.fork_rng(devices=[]):
        modules = [
            _create(spec, place.channels, kernel)
            for place, kernel in zip(places, kernels, strict=True)
        ]
        factors = [1.0] * len(modules)
        if identity:
            factors = [
                _init_identity(name, module, place.channels)
                for place, module in zip(places, modules, strict=True)
            ]
    for module in modules:
        module.to(like.device, like.dtype).train(model.training)
    return modules, factors


def _counted(model: nn.Module) -> nn.Module:
    """Note how many attention modules there are, for :func:`ecanet.models.checked_attention`."""
    model.inserted_attention = len(attention_modules(model))  # type: ignore[assignment]
    return model


def parse_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """Return an attention module's name and arguments, as :func:`ecanet.attention.parse_attention`.

    Raises:
        UserError: the module is unknown or an argument is not one of its.
    """
    try:
        return parse_attention(spec)
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from error


def _create(spec: str, channels: int, kernel_size: int | None) -> nn.Module:
    given = {} if kernel_size is None else {"kernel_size": kernel_size}
    try:
        return create_attention(spec, channels, **given)
    except (ValueError, TypeError) as error:
        raise UserError(" ".join(str(error).split())) from error
    except Exception as error:  # a module that a user registered can raise anything
        raise UserError(
            f"attention module {spec} cannot be made for {channels} channels: "
            f"{type(error).__name__}: {' '.join(str(error).split())}"
        ) from error


def _init_identity(name: str, module: Any, channels: int) -> float:
    if not callable(getattr(module, "init_identity", None)):
        raise UserError(f"attention module {name} has no init_identity: leave identity out")
    factor = float(module.init_identity())
    x = torch.randn(2, channels, 8, 8)
    with torch.no_grad():
        if not torch.allclose(module.eval()(x), factor * x, rtol=1e-3, atol=1e-5):
            raise UserError(
                f"attention module {name} multiplies by what it sees, whatever its weights are, so "
                "it cannot be made an identity: leave identity out"
            )
    return factor


def _divide(module: Any, factor: float) -> None:
    with torch.no_grad():
        module.weight.div_(factor)
        if module.bias is not None:
            module.bias.div_(factor)


def _kernel_of_each(
    places: list[_Place], kernel_sizes: Sequence[int] | str | None, arguments: dict[str, Any]
) -> list[int | None]:
    if kernel_sizes is None:
        return [None] * len(places)
    if "kernel_size" in arguments:
        raise UserError("kernel_size in the attention's name and kernel_sizes: give one of the two")
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
    """Return the kernel sizes that ``"3557"``, ``"3,5,5,11"`` or ``(3, 5, 5, 7)`` stand for.

    Raises:
        UserError: there is something else than digits in a string.
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
            if isinstance(place.module, _NOT_OF_IMAGES):
                raise UserError(
                    f"where={where!r} matches {place.name}, a {type(place.module).__name__}, and "
                    "attention modules need (N, C, H, W): name layers of two-dimensional maps"
                )
        if not all(isinstance(place.module, _OF_IMAGES) for place in places):
            seen = _observe(model, places)
            unused = [place.name for place in places if place not in seen]
            if unused:
                raise UserError(f"{unused[0]} matches {where!r}, but the model does not run it")
        return places

    places = [
        _slot(name, module)
        for name, module in model.named_modules()
        if isinstance(module, AttentionSlot)
    ]
    if places:
        return places
    candidates = list(_residual_blocks(model))
    # A block without an addition has a drop_path too, but never runs it.
    places = _observe(model, candidates) if candidates else []
    if not places:
        raise UserError(
            f"{type(model).__name__} has no residual block known to ecanet: {_PASS_WHERE}; "
            f"some of its modules: {_examples(model)}"
        )
    return places


def _slot(name: str, block: Any) -> _Place:
    norm = block.last_norm()
    producer = norm if _can_be_rescaled(norm) else None
    return _Place(name, block, channels=_channels(norm), producer=producer)


def _after(name: str, module: nn.Module) -> _Place:
    if isinstance(module, AttentionSlot):
        return _slot(name, module)
    producer = module if _can_be_rescaled(module) else None
    return _Place(name, module, channels=_channels(module), producer=producer)


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
    found = []
    for name, module in model.named_modules():
        parts = name.split(".")
        if (
            name
            and len(parts) == len(pattern)
            and all(map(fnmatch.fnmatchcase, parts, pattern))
            and not f"{name}.".startswith(inside)
        ):
            found.append((name, module))
    if not found:
        raise UserError(
            f"where={where!r} matches no module of {type(model).__name__} (a * stands for one "
            f"component of a name); some of its modules: {_examples(model)}"
        )
    return found


def _examples(model: nn.Module, count: int = 3) -> str:
    names = [name for name, module in model.named_modules() if _channels(module)]
    # From the end, where a name tells more than the stem's does.
    return ", ".join(names[-count:]) or "none with channels"


def _channels(module: Any) -> int:
    """Return the channels that a norm or convolution says it gives, 0 for any other module."""
    if isinstance(module, _BatchNorm):
        return module.num_features
    if isinstance(module, nn.GroupNorm):
        return module.num_channels
    if isinstance(module, nn.Conv2d):
        return module.out_channels
    return 0


def _can_be_rescaled(module: Any) -> bool:
    """Whether dividing weight and bias divides the output: not so where the weight is itself
    standardised, or an activation follows inside the module."""
    if type(module) is not nn.Conv2d and not isinstance(
        module, (_BatchNorm, nn.GroupNorm, nn.LayerNorm, FrozenBatchNorm2d)
    ):
        return False
    return module.weight is not None and isinstance(
        getattr(module, "act", None), nn.Identity | None
    )


def _observe(model: nn.Module, places: list[_Place], advice: str = _PASS_WHERE) -> list[_Place]:
    """Run a small image through the model; return the places that it passes, with their channels
    and the layer whose output arrives there."""
    # Which layer made a tensor: told by the tensor itself, unless something changed it in place.
    made: dict[int, tuple[Tensor, int, nn.Module]] = {}
    calls: dict[nn.Module, int] = {}
    arrived: dict[int, list[Tensor]] = {}
    origin: dict[int, nn.Module] = {}

    def note_maker(module: nn.Module, args: Any, output: Any) -> None:
        calls[module] = calls.get(module, 0) + 1
        made[id(output)] = (output, output._version, module)

    def note_arrival(index: int, tensor: Any) -> None:
        arrived.setdefault(index, []).append(tensor)
        known = made.get(id(tensor))
        if known is not None and known[1] == tensor._version:
            origin[index] = known[2]

    hooks = [m.register_forward_hook(note_maker) for m in model.modules() if _can_be_rescaled(m)]
    without = [p.module for p in places if p.is_block and p.module.drop_path is None]
    try:
        for block in without:
            block.drop_path = nn.Identity()
        for index, place in enumerate(places):
            if place.is_block:
                hooks.append(
                    place.module.drop_path.register_forward_pre_hook(  # type: ignore[union-attr]
                        lambda module, args, index=index: note_arrival(index, args[0])
                    )
                )
            else:
                hooks.append(
                    place.module.register_forward_hook(
                        lambda module, args, output, index=index: note_arrival(index, output)
                    )
                )
        _run_small_image(model, advice)
    finally:
        for hook in hooks:
            hook.remove()
        for block in without:
            block.drop_path = None  # type: ignore[assignment]

    for index, place in enumerate(places):
        if index not in arrived:
            continue
        tensor = arrived[index][0]
        if len(arrived[index]) > 1:
            raise UserError(
                f"{place.name} runs {len(arrived[index])} times in one pass, so one attention "
                f"module cannot serve it: {advice}"
            )
        # The image is tall, so that (N, C, H, W) can be told from (N, H, W, C).
        if not isinstance(tensor, Tensor) or tensor.ndim != 4 or tensor.shape[2] <= tensor.shape[3]:
            shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise UserError(
                f"{place.name} gives {shape}, and attention modules need (N, C, H, W): {advice}"
            )
        place.channels = tensor.shape[1]
        maker = origin.get(index)
        place.producer = maker if maker is not None and calls[maker] == 1 else None
    return [place for index, place in enumerate(places) if index in arrived]


def _run_small_image(model: nn.Module, advice: str) -> None:
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None:
        raise UserError(
            f"{type(model).__name__} has no convolution: attention modules are for CNNs"
        )
    # timm's models say in_chans; something may stand before the first convolution and add channels.
    channels = getattr(model, "in_chans", first.in_channels)
    image = torch.zeros(1, channels, 128, 64, device=first.weight.device, dtype=first.weight.dtype)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            model(image)
    except Exception as error:
        raise UserError(
            f"a 128x64 image does not pass {type(model).__name__}, so its channels cannot be seen "
            f"({' '.join(str(error).split())[:120]}): {advice}"
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training
