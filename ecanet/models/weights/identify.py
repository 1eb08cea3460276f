"""Identifies the model that a weight file belongs to, from its names, shapes and metadata."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ecanet.attention import list_attention
from ecanet.errors import UserError, counted, first_of
from ecanet.models import resnet
from ecanet.models.classifier import classifier_names
from ecanet.models.factory import create_model, list_models
from ecanet.models.holders import attention_modules
from ecanet.models.identity import add_scales
from ecanet.models.insert import parse_kernel_sizes, parse_spec, remove_attention
from ecanet.models.weights.description import Description, outline, read_description
from ecanet.models.weights.files import read_checkpoint
from ecanet.models.weights.layouts import Renamed, to_ecanet, unwrapped
from ecanet.models.weights.match import LoadReport, compare_weights
from ecanet.names import CIFAR_DEPTHS

_CIFAR_NAMES = {f"resnet{depth}" for depth in CIFAR_DEPTHS}


@dataclass
class Weights:
    """The weights of a file under our names, and the model they belong to."""

    state_dict: dict[str, Tensor]
    model: str
    """Name for :func:`ecanet.create_model`."""
    num_classes: int
    """0 if the file has no classifier."""
    in_chans: int
    model_args: dict[str, Any]
    """Further arguments of the model's builder, such as the stem."""
    layout: str
    """Whose names the file uses: ecanet, official, timm, torchvision, mmdetection or mmpretrain."""
    attention: str = "none"
    """As in :func:`ecanet.create_attention`."""
    kernel_sizes: tuple[int, ...] | None = None
    """ECA's kernel size in each stage, None without ECA."""
    folded: list[str] = field(default_factory=list)
    """Places of the model whose attention module was folded into the layer before it, and is gone."""
    report: LoadReport = field(default_factory=LoadReport)
    """How the file's weights fit that model."""
    metadata: dict[str, str] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of :func:`ecanet.create_model` after the name."""
        arguments = {"num_classes": self.num_classes, "in_chans": self.in_chans, **self.model_args}
        if not self._is_in_name():
            arguments["attention"] = self.attention
        if self.kernel_sizes is not None:
            arguments["kernel_sizes"] = self.kernel_sizes
        return arguments

    def create(self, **overrides: Any) -> nn.Module:
        """Build the model, without these weights, with other arguments where they are given."""
        model = create_model(self.model, **(self.arguments() | overrides))
        add_scales(model, self.state_dict)
        return remove_attention(model, self.folded) if self.folded else model

    def _is_in_name(self) -> bool:
        return self.model.startswith("eca_") or self.attention == "none"

    def __str__(self) -> str:
        attention = "" if self._is_in_name() else f" with attention {self.attention}"
        kernels = f", kernels {format_kernels(self.kernel_sizes)}" if self.kernel_sizes else ""
        kernels += f", {counted(len(self.folded), 'module')} folded" if self.folded else ""
        extra = "".join(f", {name}={value}" for name, value in self.model_args.items())
        classes = f"{self.num_classes} classes" if self.num_classes else "no classifier"
        return (
            f"{self.model}{attention}{kernels}{extra}, {classes}, {self.in_chans} input channels; "
            f"{self.layout} layout"
        )


def format_kernels(kernels: Sequence[int]) -> str:
    """Return kernel sizes as :func:`ecanet.models.insert.parse_kernel_sizes` reads them: ``3557``."""
    return ("," if max(kernels) > 9 else "").join(map(str, kernels))


def read_weights(
    file: str | os.PathLike[str], model: str | None = None, attention: str | None = None
) -> Weights:
    """Read a weight file, and infer from names and shapes which model it belongs to.

    Args:
        file: as in :func:`ecanet.load_weights`.
        model: name for :func:`ecanet.create_model`; required only if the weights belong to none of
            our own models.
        attention: as in :func:`ecanet.create_attention`; required only if names and shapes do not
            imply it: modules without weights, or with arguments other than their defaults.

    Raises:
        UserError: the file cannot be read, its model is unknown or not the requested one, or the
            ECA kernels differ within a stage. Missing and surplus weights are in ``report``.
    """
    checkpoint = read_checkpoint(file)
    renamed = to_ecanet(checkpoint.tensors)
    described = read_description(file, checkpoint.metadata, checkpoint.tensors)
    if attention is not None:
        described = dataclasses.replace(described, attention=attention)
    known = _architecture(renamed.tensors)
    name = model or described.model
    # A timm model can have exactly the weights of one of ours and compute something else (resnetblur18):
    # the metadata of our own files takes precedence over the names.
    is_described = name is not None and name == described.model and name not in list_models()
    if name is not None and (known is None or is_described):
        weights = _of_named_model(name, checkpoint.tensors, described, file)
    elif known is None:
        raise UserError(
            f"{file}: weights such as {first_of(list(renamed.tensors), 3)} match none of "
            f"ecanet's models: give the timm or torchvision model with -m"
        )
    else:
        weights = _of_our_model(*known, renamed, described, file)
        if model is not None and model not in (weights.model, weights.model.removeprefix("eca_")):
            raise UserError(f"{file} holds weights for {weights.model}, not for {model}")
    if attention is not None and parse_spec(attention)[0] != parse_spec(weights.attention)[0]:
        raise UserError(f"{file} holds weights with attention {weights.attention}, not {attention}")
    for what in ("num_classes", "in_chans"):
        claimed, actual = getattr(described, what), getattr(weights, what)
        if claimed is not None and actual and claimed != actual:
            raise UserError(f"{file} claims {what} {claimed}, but its weights have {actual}")
    weights.metadata = checkpoint.metadata
    state = outline(file, weights.create, weights.state_dict).state_dict()
    weights.report = compare_weights(weights.state_dict, state, renamed.unrelated)
    return weights


def _architecture(state: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]] | None:
    """Return the plain model that weights under our names belong to, and its builder's arguments."""
    if "conv_stem.weight" in state and "blocks.6.0.conv_pwl.weight" in state:
        return "mobilenet_v2", {}
    blocks = {m.groups() for name in state if (m := re.match(r"layer(\d+)\.(\d+)\.", name))}
    counts = Counter(int(stage) for stage, _ in blocks)
    depths = tuple(counts[stage] for stage in sorted(counts))
    is_bottleneck = "layer1.0.conv3.weight" in state
    if len(depths) == 3 and len(set(depths)) == 1 and not is_bottleneck:
        name = f"resnet{6 * depths[0] + 2}"
        return (name, {}) if name in _CIFAR_NAMES else None
    for name, (block, layers) in resnet.ARCHITECTURES.items():
        if layers == depths and (block is resnet.Bottleneck) == is_bottleneck:
            return name, stem_arguments(state)
    return None


def stem_arguments(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of :func:`ecanet.create_model` for the stem of a ResNet's weights."""
    arguments: dict[str, Any] = {}
    if _shape(state, "conv1.weight", 4)[-1:] == (3,):
        arguments["stem"] = "cifar"
    deep = [_shape(state, f"conv1.{n}.weight", 4) for n in (0, 3)]
    if all(deep):
        first, second = deep[0][0], deep[1][0]
        arguments["stem_type"] = "deep" if first == second else "deep_tiered"
        arguments["stem_width"] = second
    if _shape(state, "layer2.0.downsample.1.weight", 4):
        arguments["avg_down"] = True  # index 0 is a pooling, which has no weights
    return arguments


def _shape(state: Mapping[str, Tensor], name: str, dimensions: int) -> tuple[int, ...]:
    """Return the shape of a weight; () if there is none with that many dimensions."""
    tensor = state.get(name)
    return () if tensor is None or tensor.ndim != dimensions else tuple(tensor.shape)


def _of_our_model(
    name: str,
    model_args: dict[str, Any],
    renamed: Renamed,
    described: Description,
    file: str | os.PathLike[str],
) -> Weights:
    state = renamed.tensors
    classifier = _shape(state, "fc.weight", 2) or _shape(state, "classifier.weight", 2)
    stems = (_shape(state, f"{stem}.weight", 4) for stem in ("conv_stem", "conv1", "conv1.0"))
    first = next(filter(None, stems), None)
    given = described.attention or "none"
    weights = Weights(
        state_dict=state,
        model=name,
        num_classes=classifier[0] if classifier else 0,
        in_chans=first[1] if first else described.in_chans or 3,
        model_args=described.model_args | model_args,
        layout=renamed.layout,
        attention=given,
        folded=described.folded,
    )
    inside = {n: t for n, t in state.items() if re.search(r"\d\.attention\.", n)}
    if not inside:
        return weights  # the attention module may have no weights
    base = parse_spec(given)[0]
    has_eca_names = all(
        n.endswith(".attention.conv.weight") and t.ndim == 3 and t.shape[:2] == (1, 1)
        for n, t in inside.items()
    )
    if has_eca_names and base in ("none", "eca", "eca_circular"):
        weights.kernel_sizes = stage_kernel_sizes(inside, file)
        if described.folded and described.kernel_sizes:  # a stage may have no kernel left
            weights.kernel_sizes = parse_kernel_sizes(described.kernel_sizes)
        weights.attention = "eca" if base == "none" else base
        if weights.attention == "eca" and name not in _CIFAR_NAMES:
            weights.model = f"eca_{name}"
    elif given == "none":
        weights.attention = _attention_by_shape(weights, inside, file)
    return weights


def stage_kernel_sizes(
    kernels: Mapping[str, Tensor], file: str | os.PathLike[str]
) -> tuple[int, ...]:
    """Return the kernel size of each stage (``layer2.*`` or ``blocks.2.*``).

    Raises:
        UserError: the kernels of a stage differ.
    """

    def stage(name: str) -> int:
        return int(re.findall(r"\d+", name)[0])

    sizes: list[int] = []
    for number, names in itertools.groupby(sorted(kernels, key=stage), key=stage):
        in_stage = sorted({kernels[name].shape[-1] for name in names})
        if len(in_stage) > 1:
            raise UserError(
                f"{file}: the ECA kernels of stage {number} differ ({', '.join(map(str, in_stage))}), "
                "but a model has one kernel size for each stage"
            )
        sizes += in_stage
    return tuple(sizes)


def _attention_by_shape(
    weights: Weights, inside: Mapping[str, Tensor], file: str | os.PathLike[str]
) -> str:
    """Return the attention module whose weights, with its default arguments, have these names and shapes."""
    shapes = {name: tensor.shape for name, tensor in inside.items()}
    for spec in list_attention():
        try:
            build = functools.partial(
                create_model, weights.model, attention=spec, **weights.model_args
            )
            model = outline(file, build, weights.state_dict)
        except UserError:
            continue
        names = tuple(f"{name}." for name in attention_modules(model))
        if shapes == {n: t.shape for n, t in model.state_dict().items() if n.startswith(names)}:
            return spec
    raise UserError(
        f"{file}: weights such as {first_of(list(inside), 2)} match none of ecanet's attention "
        f"modules with default arguments"
    )


def _of_named_model(
    name: str, tensors: dict[str, Tensor], described: Description, file: str | os.PathLike[str]
) -> Weights:
    """Use the model that was named; its first and last layer give the channels and classes."""
    kernels = described.kernel_sizes
    weights = Weights(
        state_dict=tensors,
        model=name,
        num_classes=1000 if described.num_classes is None else described.num_classes,
        in_chans=described.in_chans or 3,
        model_args=described.model_args,
        layout="torchvision" if name.startswith("torchvision/") else "timm",
        attention=described.attention or "none",
        kernel_sizes=parse_kernel_sizes(kernels) if kernels else None,
        folded=described.folded,
    )
    model = outline(file, weights.create, tensors)
    names = model.state_dict().keys()
    choices = [choice for choice, _ in unwrapped(tensors)]
    weights.state_dict = tensors = max(choices, key=lambda choice: len(choice.keys() & names))
    cfg = getattr(model, "pretrained_cfg", {})
    lasts = [f"{classifier}.weight" for classifier in classifier_names(model)]
    shapes = [_shape(tensors, last, 2) or _shape(tensors, last, 4) for last in lasts]
    first = _shape(tensors, f"{cfg.get('first_conv')}.weight", 4)
    if any(shapes):
        weights.num_classes = max(shapes)[0]
    if first:
        weights.in_chans = first[1]
    return weights
