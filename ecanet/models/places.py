"""Where attention modules go in a network: at the end of each residual branch, or where a pattern says.

In the order in which they are asked:

* networks of Ultralytics have named places, see :mod:`ecanet.models.yolo`;
* our own blocks have a slot for it, see :class:`ecanet.models.residual.ResidualEnd`;
* blocks named in a table say where: those that add nothing, or whose branch ends in a way of their own;
* timm's blocks run a ``drop_path`` last in the residual branch: the module goes before it;
* in any other block, the end of the branch is found by running an image, see
  :mod:`ecanet.models.branches`.
"""

from __future__ import annotations

import fnmatch
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torchvision.ops import FrozenBatchNorm2d

from ecanet.errors import UserError
from ecanet.models.branches import BranchRecorder
from ecanet.models.holders import BeforeDropPath, attention_modules, has_room, holders, run_after
from ecanet.models.hooks import run_in_evaluation
from ecanet.models.probe import run_small_image, space_dims
from ecanet.models.residual import ResidualEnd
from ecanet.models.yolo import PLACES, is_yolo, yolo_places


def _before_pooling(network: Any) -> list[str]:
    """Return the names of the layers before each pooling of ``features``: the ends of the stages."""
    names = [f"features.{name}" for name, _ in network.features.named_children()]
    pooled = [isinstance(layer, nn.MaxPool2d) for layer in network.features.children()]
    return [before for before, at_pooling in zip(names, pooled[1:], strict=False) if at_pooling]


def _end_of_dual_path(block: Any) -> list[str]:
    return ["c1x1_c" if getattr(block, "c1x1_c1", None) is None else "c1x1_c1"]


Ends = Sequence[str] | Callable[[Any], Sequence[str]]

_ITSELF = [""]
# The norms that follow the dense blocks, which are containers. One of segmentation_models_pytorch is wrapped.
_AFTER_DENSE = ["features.transition*.norm", "features.transition*.module.norm", "features.norm5"]

# Blocks and networks by class, as module:class, and which modules in them an attention module follows, as
# patterns of names like where=; "" is the block itself. Nothing is inserted anywhere else in such a block.
BLOCKS: dict[str, Ends] = {
    # without a shortcut
    "timm.models.densenet:DenseNet": _AFTER_DENSE,
    "torchvision.models.densenet:DenseNet": _AFTER_DENSE,
    "monai.networks.nets.densenet:DenseNet": _AFTER_DENSE,
    "timm.models.vgg:VGG": _before_pooling,
    "torchvision.models.vgg:VGG": _before_pooling,
    "torchvision.models.alexnet:AlexNet": _before_pooling,
    "torchvision.models.detection.ssd:SSDFeatureExtractorVGG": _before_pooling,
    "torchvision.models.squeezenet:Fire": _ITSELF,
    "torchvision.models.shufflenetv2:InvertedResidual": ["branch2"],
    "timm.models.selecsls:SelecSlsBlock": ["conv6"],
    "torchvision.models.googlenet:Inception": _ITSELF,
    "torchvision.models.video.s3d:SepInceptionBlock3D": _ITSELF,
    **dict.fromkeys((f"timm.models.inception_v3:Inception{c}" for c in "ABCDE"), _ITSELF),
    **dict.fromkeys((f"torchvision.models.inception:Inception{c}" for c in "ABCDE"), _ITSELF),
    **dict.fromkeys((f"timm.models.inception_v4:Inception{c}" for c in "ABC"), _ITSELF),
    **dict.fromkeys(
        (f"segmentation_models_pytorch.encoders._inceptionv4:Inception_{c}" for c in "ABC"), _ITSELF
    ),
    "monai.networks.nets.basic_unet:TwoConv": _ITSELF,
    "monai.networks.nets.attentionunet:ConvBlock": _ITSELF,
    "monai.networks.blocks.dynunet_block:UnetBasicBlock": _ITSELF,
    # with a shortcut for some of the channels
    "timm.models.dpn:DualPathBlock": _end_of_dual_path,
    "segmentation_models_pytorch.encoders._dpn:DualPathBlock": _end_of_dual_path,
    # sums of parallel branches
    **dict.fromkeys((f"timm.models.nasnet:{c}" for c in (
        "CellStem0", "CellStem1", "FirstCell", "NormalCell", "ReductionCell0", "ReductionCell1"
    )), _ITSELF),
    **dict.fromkeys((f"timm.models.pnasnet:{c}" for c in ("CellStem0", "Cell")), _ITSELF),
}  # fmt: skip

# Layers whose output is known without running the model: its axes of space.
_DIMS: dict[Any, int] = {
    nn.Conv1d: 1,
    **dict.fromkeys((nn.Conv2d, nn.BatchNorm2d, FrozenBatchNorm2d, ResidualEnd), 2),
    **dict.fromkeys((nn.Conv3d, nn.BatchNorm3d), 3),
}

PASS_WHERE = 'give a pattern of norms or convolutions, as in where="layer4.*.bn3"'


@dataclass(eq=False)
class Place:
    """Somewhere an attention module can go."""

    name: str
    """Name of ``module``."""
    module: nn.Module
    """A ResidualEnd, a block with a drop_path, or the module that the attention module follows."""
    is_block: bool = False
    """Whether ``module`` is a block, and the attention module goes before its drop_path."""
    channels: int = 0
    dims: int = 0
    """Axes of space of the maps; 0 and no channels until they are known."""

    def attach(self, attention: nn.Module) -> None:
        module: Any = self.module
        if self.is_block:
            if isinstance(module.drop_path, BeforeDropPath):
                module.drop_path.attention = attention
            else:
                module.drop_path = BeforeDropPath(attention, module.drop_path)
        else:
            run_after(module, attention)


def find_places(model: nn.Module, where: str | None = None) -> list[Place]:
    """Return the places for attention modules in a network, in the order of its modules.

    Args:
        model: any CNN.
        where: pattern of module names, or a named place, as in :func:`ecanet.insert_attention`; by default
            the end of every residual branch, see the module's docstring.

    Raises:
        UserError: there are none, or an attention module cannot be there.
    """
    if where is None and is_yolo(model):
        where = "blocks"
    if where is not None:
        return _by_pattern(model, where)
    named = dict(model.named_modules())
    places = [
        _after(name, module) for name, module in named.items() if isinstance(module, ResidualEnd)
    ]
    if places:
        return places
    listed = list(_listed(model))
    inside = tuple(f"{block}." if block else "" for block, _ in listed)
    blocks = [
        Place(name, module, is_block=True)
        for name, module in named.items()
        if _has_drop_path(module) and not (inside and f"{name}.".startswith(inside))
    ]
    candidates = [place for _, places in listed for place in places] + blocks
    arrivals, recorder, image = _observe(model, candidates)

    maps: dict[Place, tuple[int, ...]] = {}
    closed = {named[block] for block, _ in listed} | set(attention_modules(model).values())
    problem = None
    for place in candidates:
        shapes = arrivals[place]  # none if the block has no addition and never runs its drop_path
        if len(shapes) == 1 and _is_map(shapes[0], image):
            maps[place] = shapes[0]
            closed |= {place.module} if place.is_block else set()
        elif shapes:
            problem = problem or _problem(place, shapes, image)
    names = {module: name for name, module in named.items()}
    for ending, shape, running in recorder.ends():
        module = next(filter(has_room, ending), None)
        if module is not None and not closed.intersection(running) and _is_map(shape, image):
            maps[Place(names[module], module)] = shape
    found = _upright(model, maps, image)
    if found:
        order = {name: number for number, name in enumerate(named)}
        return sorted(found, key=lambda place: order[place.name])
    if maps and problem is None:
        problem = _problem(*next((place, [shape], image) for place, shape in maps.items()))
    raise UserError(
        problem
        or f"{type(model).__name__} has no residual block known to ecanet: {PASS_WHERE}; "
        f"some of its modules: {_examples(model)}"
    )


def observe(model: nn.Module, places: Sequence[Place], advice: str) -> list[Place]:
    """Run a small image; return the places that it passes, with their channels.

    Args:
        model: any CNN.
        places: of modules.
        advice: the end of a message, on what to do instead.

    Raises:
        UserError: the network takes no small image, a place runs several times, or is no map.
    """
    arrivals, _, image = _observe(model, places, advice)
    maps = {}
    for place in places:
        shapes = arrivals[place]
        if len(shapes) > 1 or (shapes and not _is_map(shapes[0], image)):
            raise UserError(_problem(place, shapes, image, advice))
        if shapes:
            maps[place] = shapes[0]
    found = _upright(model, maps, image)
    for place, shape in maps.items():
        if place not in found:
            raise UserError(_problem(place, [shape], image, advice))
    return found


def _by_pattern(model: nn.Module, where: str) -> list[Place]:
    if is_yolo(model) and where in PLACES:
        matches = [(name, model.get_submodule(name)) for name in yolo_places(model, where)]
    else:
        matches = _matches(model, where)
    places = [_after(name, module) for name, module in matches]
    # A 1-D convolution in a network of images may be along their channels.
    if not all(place.dims in (2, 3, space_dims(model)) for place in places):
        reached = observe(model, places, PASS_WHERE)
        unused = [place.name for place in places if place not in reached]
        if unused:
            raise UserError(f"{unused[0]} matches {where!r}, but the model does not run it")
    return places


def _after(name: str, module: Any) -> Place:
    """Return the place after a module, or at the end of the branch of one of our blocks."""
    layer = module.last_norm() if isinstance(module, ResidualEnd) else module
    dims = next((_DIMS[kind] for kind in _DIMS if isinstance(module, kind)), 0)
    return Place(name, module, channels=_channels(layer), dims=dims)


def _listed(model: nn.Module) -> Iterator[tuple[str, list[Place]]]:
    """Yield the name and places of each block of the table that is in no other one."""
    inside: tuple[str, ...] = ()
    for name, block in model.named_modules():
        if inside and f"{name}.".startswith(inside):
            continue
        kinds = (f"{kind.__module__}:{kind.__qualname__}" for kind in type(block).__mro__)
        ends = next((BLOCKS[kind] for kind in kinds if kind in BLOCKS), None)
        if ends is not None:
            prefix = f"{name}." if name else ""
            inside += (prefix,)
            yield (
                name,
                [
                    Place(f"{prefix}{inner}" if inner else name, module)
                    for end in (ends(block) if callable(ends) else ends)
                    for inner, module in _matching(block, end)
                ],
            )


def _has_drop_path(module: Any) -> bool:
    return (
        hasattr(module, "drop_path")
        and not isinstance(module, BeforeDropPath)
        and isinstance(module.drop_path, (nn.Identity, DropPath, BeforeDropPath, type(None)))
    )


def _matches(model: nn.Module, where: str) -> list[tuple[str, nn.Module]]:
    inside = tuple(f"{name}." for name in holders(model))
    matches = [
        (name, module)
        for name, module in _matching(model, where)
        if name and not f"{name}.".startswith(inside)
    ]
    if not matches:
        known = f"; named places: {', '.join(PLACES)}" if is_yolo(model) else ""
        raise UserError(
            f"where={where!r} matches no module of {type(model).__name__} (a * stands for one "
            f"component of a name); some of its modules: {_examples(model)}{known}"
        )
    return matches


def _matching(model: nn.Module, pattern: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules whose names match a pattern, component by component."""
    wanted = pattern.split(".")
    for name, module in model.named_modules():
        parts = name.split(".")
        if len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted)):
            yield name, module


def _examples(model: nn.Module, count: int = 3) -> str:
    names = [name for name, module in model.named_modules() if _channels(module)]
    # The last ones, as names in the stem are not typical.
    return ", ".join(names[-count:]) or "none with channels"


def _channels(module: Any) -> int:
    """Return the output channels of a norm or convolution, 0 for any other module."""
    names = {_BatchNorm: "num_features", nn.GroupNorm: "num_channels", _ConvNd: "out_channels"}
    name = next((names[kind] for kind in names if isinstance(module, kind)), None)
    return 0 if name is None else getattr(module, name)


Shapes = list[Any]


def _observe(
    model: nn.Module, places: Sequence[Place], advice: str = PASS_WHERE
) -> tuple[dict[Place, Shapes], BranchRecorder, Tensor]:
    """Run a small image; return what arrives at each place, by shape or type, the record, and the image."""
    arrivals: defaultdict[Place, Shapes] = defaultdict(list)
    recorder: Any = None

    def note_arrival(place: Place, module: nn.Module, args: Any, *output: Any) -> None:
        # Without an output, it hooks the start of a forward pass.
        (arrived, *_) = output or args
        is_tensor = isinstance(arrived, Tensor)
        arrivals[place].append(tuple(arrived.shape) if is_tensor else type(arrived).__name__)

    @contextmanager
    def watch(image: Tensor) -> Iterator[None]:
        nonlocal recorder
        arrivals.clear()
        recorder = BranchRecorder(image, attention_modules(model).values())
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
            with recorder.watch(model):
                yield

    image = run_small_image(model, advice, watch)
    return arrivals, recorder, image


def _is_map(shape: Any, image: Tensor) -> bool:
    """Whether it is a feature map of the image, rather than windows of it."""
    return isinstance(shape, tuple) and len(shape) == image.ndim and shape[0] == 1


def _upright(model: nn.Module, maps: dict[Place, tuple[int, ...]], image: Tensor) -> list[Place]:
    """Return the places of (N, C, H, W), with their channels and dims, rather than of (N, H, W, C).

    The image is taller than wide, unless the network takes only square ones; some make it square themselves.
    On square maps, (N, H, W, C) with C = W passes too; the other places of the network then decide. So do the
    last two axes of volumes. A signal of twice the length has as many channels.
    """
    if image.ndim == 3:
        found = _same_at_twice_the_length(model, maps, image)
    else:
        square = [place for place, (*_, height, width) in maps.items() if height == width]
        found = [place for place, (*_, height, width) in maps.items() if height > width]
        if image.shape[-2] == image.shape[-1] or len(square) == len(maps):
            found = square
    for place in found:
        place.channels, place.dims = maps[place][1], image.ndim - 2
    return found


def _same_at_twice_the_length(
    model: nn.Module, maps: dict[Place, tuple[int, ...]], signal: Tensor
) -> list[Place]:
    """Return the places of (N, C, L) rather than (N, L, C); all, in a network that takes no other length."""
    channels: dict[Place, int] = {}

    def note(place: Place, module: nn.Module, args: Any, output: Any) -> None:
        channels[place] = output.shape[1]

    with ExitStack() as stack:
        for place in maps:
            stack.callback(place.module.register_forward_hook(partial(note, place)).remove)
        try:
            run_in_evaluation(model, torch.cat([signal, signal], 2))
        except Exception:
            return list(maps)
    return [place for place, shape in maps.items() if channels[place] == shape[1]]


def _problem(place: Place, shapes: Shapes, image: Tensor, advice: str = PASS_WHERE) -> str:
    if len(shapes) > 1:
        return (
            f"{place.name} runs {len(shapes)} times in one forward pass, so one attention "
            f"module cannot serve it: {advice}"
        )
    axes = {1: "L", 2: "H, W", 3: "D, H, W"}[image.ndim - 2]
    return f"{place.name} gives {shapes[0]}, but attention modules need (N, C, {axes}): {advice}"
