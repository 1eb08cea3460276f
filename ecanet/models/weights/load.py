"""Weights from files: into a model that is there, or into the model that the file itself implies."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ecanet.attention import list_attention
from ecanet.errors import UserError
from ecanet.models import cifar_resnet, resnet
from ecanet.models.factory import create_model, list_models
from ecanet.models.insert import attention_modules, parse_kernel_sizes, parse_spec
from ecanet.models.weights.description import Description, outline, read_description
from ecanet.models.weights.files import read_checkpoint
from ecanet.models.weights.layouts import to_ours, unwrapped

_SHOWN = 5
_CLASSIFIERS = ("fc.", "classifier.", "head.")


@dataclass
class LoadReport:
    """Which weights of a file fit a model. ``str`` of it is for people."""

    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """The model has them, the file does not."""
    surplus: list[str] = field(default_factory=list)
    """The file has them, the model does not."""
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    """Both have them, in another shape: that of the file and that of the model."""
    fresh: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    """Of the classifier, which stays as it was, because it is of other classes than the file's: shapes
    as in ``mismatched``."""
    outside: list[str] = field(default_factory=list)
    """Beside the model in the file, and not asked for: the heads of a detector, or a classifier
    where the model has none. They are no reason to refuse the file."""

    @property
    def complete(self) -> bool:
        """Whether file and model have the same weights."""
        return not (self.missing or self.surplus or self.mismatched)

    def problems(self) -> list[str]:
        """Return a phrase for each weight that does not fit."""
        return [
            *(f"{name} is {_shapes(*both)}" for name, both in self.mismatched.items()),
            *(f"{name} is not in the file" for name in self.missing),
            *(f"{name} is not in the model" for name in self.surplus),
        ]

    def __str__(self) -> str:
        lines = [f"{len(self.matched)} weights matched"]
        if self.mismatched:
            named = [f"{name} ({_shapes(*both)})" for name, both in self.mismatched.items()]
            lines.append(f"{len(named)} of another shape: {_first(named)}")
        if self.fresh:
            named = [f"{name} ({_shapes(*both)})" for name, both in self.fresh.items()]
            lines.append(f"a fresh classifier, for other classes: {_first(named)}")
        for names, what in (
            (self.missing, "missing from the file"),
            (self.surplus, "surplus in the file"),
            (self.outside, "outside the model, left alone"),
        ):
            if names:
                lines.append(f"{len(names)} {what}: {_first(names)}")
        return "\n".join(lines)


@dataclass
class Weights:
    """The weights of a file under our names, and the model they belong to."""

    state_dict: dict[str, Tensor]
    model: str
    """Name for :func:`ecanet.create_model`."""
    kernel_sizes: tuple[int, ...] | None
    """ECA's kernel size in each stage, None without ECA."""
    num_classes: int
    """0 where the file has no classifier."""
    in_chans: int
    attention: str
    """As in :func:`ecanet.create_attention`."""
    model_args: dict[str, Any]
    """Further arguments of the model's builder, such as the stem."""
    layout: str
    """Whose names the file has: ecanet, official, timm, torchvision or mmdetection."""
    report: LoadReport
    """How the file's weights fit that model."""
    metadata: dict[str, str]

    def arguments(self) -> dict[str, Any]:
        """Return what :func:`ecanet.create_model` takes beside the name."""
        arguments = {"num_classes": self.num_classes, "in_chans": self.in_chans, **self.model_args}
        if not self.model.startswith("eca_") and self.attention != "none":
            arguments["attention"] = self.attention
        if self.kernel_sizes is not None:
            arguments["kernel_sizes"] = self.kernel_sizes
        return arguments

    def __str__(self) -> str:
        is_told = self.model.startswith("eca_") or self.attention == "none"
        attention = "" if is_told else f" with attention {self.attention}"
        kernels = self.kernel_sizes
        joined = "" if kernels is None else f", kernels {_digits(kernels)}"
        extra = "".join(f", {name}={value}" for name, value in self.model_args.items())
        classes = f"{self.num_classes} classes" if self.num_classes else "no classifier"
        return (
            f"{self.model}{attention}{joined}{extra}, {classes}, {self.in_chans} input channels; "
            f"{self.layout} layout"
        )


def load_weights(
    model: nn.Module,
    file: str | os.PathLike[str],
    partial: bool = False,
    backbone: bool = False,
    new_classes: bool = False,
) -> LoadReport:
    """Load the weights of a file into a model, in place, whatever layout the file has.

    Args:
        model: one of ours, or any other whose names of weights are the file's.
        file: a torch pickle, safetensors, or a folder of the Hugging Face Hub, with names of
            ecanet's, the official repository's, timm's, torchvision's or MMDetection's.
        partial: load what fits where not everything does.
        backbone: the model is the part of one without its last layers: what else the file has is left
            alone, and attention modules that it does not have stay as they are.
        new_classes: the model is to learn other classes: a classifier of another shape than the file's
            stays as it is.

    Returns:
        What matched and what did not.

    Raises:
        UserError: the file cannot be read, nothing in it fits, or, unless ``partial``, something
            does not; the model is then as it was.
    """
    model = getattr(model, "_orig_mod", model)
    checkpoint = read_checkpoint(file)
    state = model.state_dict()
    ours = to_ours(checkpoint.tensors)
    candidates = [*unwrapped(checkpoint.tensors), (ours.tensors, ours.outside)]
    reports = [compare_weights(tensors, state, beside) for tensors, beside in candidates]
    best = max(range(len(reports)), key=lambda i: len(reports[i].matched))
    tensors, report = candidates[best][0], reports[best]
    if backbone:
        report.outside, report.surplus = report.outside + report.surplus, []
    elif getattr(model, "num_classes", None) == 0:
        heads = [name for name in report.surplus if name.startswith(_CLASSIFIERS)]
        report.surplus = [name for name in report.surplus if name not in heads]
        report.outside += heads
    if new_classes:
        report.fresh = {n: s for n, s in report.mismatched.items() if n.startswith(_CLASSIFIERS)}
        report.mismatched = {n: s for n, s in report.mismatched.items() if n not in report.fresh}
    if not report.matched:
        raise UserError(
            f"nothing in {file} fits {type(model).__name__}: it has {_first(list(tensors), 3)}, the "
            f"model has {_first(list(state), 3)}"
        )
    fits = report.complete or (
        backbone and not report.mismatched and all(".attention." in n for n in report.missing)
    )
    if not fits and not partial:
        raise UserError(_refusal(file, report, ours.tensors))
    model.load_state_dict({name: tensors[name] for name in report.matched}, strict=False)
    return report


def read_weights(
    path: str | os.PathLike[str], model: str | None = None, attention: str | None = None
) -> Weights:
    """Read a weight file and tell, from names and shapes, which model it is of.

    Args:
        path: as in :func:`load_weights`.
        model: name for :func:`ecanet.create_model`; needed only where the weights are of none of
            our own models.
        attention: as in :func:`ecanet.create_attention`; needed only where names and shapes do not
            tell: modules without weights, or with other arguments than their default ones.

    Raises:
        UserError: the file cannot be read, its model is unknown or is not the one asked for, or the
            ECA kernels of a stage differ. What is missing or surplus is told in ``report``.
    """
    checkpoint = read_checkpoint(path)
    renamed = to_ours(checkpoint.tensors)
    described = read_description(path, checkpoint.metadata, checkpoint.tensors)
    if attention is not None:
        described = dataclasses.replace(described, attention=attention)
    known = _architecture(renamed.tensors)
    name = model or described.model
    # A model of timm's can have the very weights of one of ours and compute something else (resnetblur18):
    # what our own file says comes before what the names imply.
    is_told = name is not None and name == described.model and name not in list_models()
    if name is not None and (known is None or is_told):
        weights = _of_named_model(name, checkpoint.tensors, described, path)
    elif known is None:
        raise UserError(
            f"{path}: weights such as {_first(list(renamed.tensors), 3)} are of no model of ours: "
            "say which model of timm's or torchvision's it is with -m"
        )
    else:
        weights = _of_our_model(*known, renamed.tensors, renamed.layout, described, path)
        if model is not None and model not in (weights.model, weights.model.removeprefix("eca_")):
            raise UserError(f"{path} holds weights of {weights.model}, not of {model}")
    if attention is not None and parse_spec(attention)[0] != parse_spec(weights.attention)[0]:
        raise UserError(f"{path} holds weights of attention {weights.attention}, not {attention}")
    for what in ("num_classes", "in_chans"):
        said, there = getattr(described, what), getattr(weights, what)
        if said is not None and there and said != there:
            raise UserError(f"{path} says {what} {said}, and its weights are of {there}")
    weights.metadata = checkpoint.metadata
    model_of_it = outline(path, lambda: _create(weights), weights.state_dict)
    weights.report = compare_weights(weights.state_dict, model_of_it.state_dict(), renamed.outside)
    return weights


def build_from_weights(
    path: str | os.PathLike[str],
    model: str | None = None,
    attention: str | None = None,
    **overrides: Any,
) -> nn.Module:
    """Build the model that a weight file is of, with those weights: (N, C, H, W) to logits.

    Args:
        path, model, attention: as in :func:`read_weights`.
        overrides: arguments of :func:`ecanet.create_model` in place of what the file implies; with
            other ``num_classes`` the classifier is a fresh one.

    Raises:
        UserError: as in :func:`read_weights`, or the file is not complete.
    """
    weights = read_weights(path, model, attention)
    if not weights.report.complete:
        raise UserError(_refusal(path, weights.report, weights.state_dict))
    built = create_model(weights.model, **(weights.arguments() | overrides))
    tensors = weights.state_dict
    if overrides.get("num_classes", weights.num_classes) != weights.num_classes:
        tensors = {n: t for n, t in tensors.items() if not n.startswith(_CLASSIFIERS)}
        own = {n: t for n, t in built.state_dict().items() if n.startswith(_CLASSIFIERS)}
        tensors = {**own, **tensors}
    report = compare_weights(tensors, built.state_dict())
    if not report.complete:
        raise UserError(_refusal(path, report, weights.state_dict))
    built.load_state_dict(tensors, strict=False)
    return built


def read_stem(path: str | os.PathLike[str], model: str) -> dict[str, Any]:
    """Return the stem that a file's weights have, as arguments of :func:`ecanet.create_model`.

    Args:
        path: as in :func:`load_weights`.
        model: name of the model that is to take them; {} for all but our ResNets, which alone have
            several stems.

    Raises:
        UserError: the file cannot be read.
    """
    if model.removeprefix("eca_") not in resnet.ARCHITECTURES:
        return {}
    return _stem(to_ours(read_checkpoint(path).tensors).tensors)


# ---- which model it is


def _architecture(state: dict[str, Tensor]) -> tuple[str, dict[str, Any]] | None:
    """Return the plain model that weights under our names are of, and its builder's arguments."""
    if "conv_stem.weight" in state and "blocks.6.0.conv_pwl.weight" in state:
        return "mobilenet_v2", {}
    found = {m.groups() for name in state if (m := re.match(r"layer(\d+)\.(\d+)\.", name))}
    blocks = Counter(int(stage) for stage, _ in found)
    depths = tuple(blocks[stage] for stage in sorted(blocks))
    is_bottleneck = "layer1.0.conv3.weight" in state
    if len(depths) == 3 and len(set(depths)) == 1 and not is_bottleneck:
        depth = 6 * depths[0] + 2
        return (f"resnet{depth}", {}) if depth in cifar_resnet.DEPTHS else None
    for name, (block, layers) in resnet.ARCHITECTURES.items():
        if layers == depths and (block is resnet.Bottleneck) == is_bottleneck:
            return name, _stem(state)
    return None


def _stem(state: dict[str, Tensor]) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    if _shape(state, "conv1.weight", 4)[-1:] == (3,):
        arguments["stem"] = "cifar"
    deep = [_shape(state, f"conv1.{n}.weight", 4) for n in (0, 3)]
    if all(deep):
        first, second = deep[0][0], deep[1][0]
        arguments["stem_type"] = "deep" if first == second else "deep_tiered"
        arguments["stem_width"] = second
    shortcut = state.get("layer2.0.downsample.1.weight")
    if shortcut is not None and shortcut.ndim == 4:
        arguments["avg_down"] = True  # a pooling without weights comes first
    return arguments


def _shape(state: dict[str, Tensor], name: str, dimensions: int) -> tuple[int, ...]:
    """Return the shape of a weight, () where there is none of that many dimensions."""
    tensor = state.get(name)
    return () if tensor is None or tensor.ndim != dimensions else tuple(tensor.shape)


def _of_our_model(
    name: str,
    model_args: dict[str, Any],
    state: dict[str, Tensor],
    layout: str,
    described: Description,
    path: str | os.PathLike[str],
) -> Weights:
    classifier = _shape(state, "fc.weight", 2) or _shape(state, "classifier.weight", 2)
    stems = (_shape(state, f"{stem}.weight", 4) for stem in ("conv_stem", "conv1", "conv1.0"))
    first = next(filter(None, stems), None)
    weights = Weights(
        state_dict=state,
        model=name,
        kernel_sizes=None,
        num_classes=classifier[0] if classifier else 0,
        in_chans=first[1] if first else described.in_chans or 3,
        attention="none",
        model_args=described.model_args | model_args,
        layout=layout,
        report=LoadReport(),
        metadata={},
    )
    inside = {n: t for n, t in state.items() if re.search(r"\d\.attention\.", n)}
    given = described.attention or "none"
    if not inside:
        weights.attention = given  # it may have no weights
        return weights
    base = parse_spec(given)[0]
    has_eca_names = all(
        n.endswith(".attention.conv.weight") and t.ndim == 3 and t.shape[:2] == (1, 1)
        for n, t in inside.items()
    )
    if has_eca_names and base in ("none", "eca", "eca_circular"):
        weights.kernel_sizes = _kernel_sizes(inside, path)
        weights.attention = "eca" if base == "none" else base
        if weights.attention == "eca" and name not in _CIFAR_NAMES:
            weights.model = f"eca_{name}"
    elif given != "none":
        weights.attention = given
    else:
        weights.attention = _attention_by_shape(weights, inside, path)
    return weights


_CIFAR_NAMES = {f"resnet{depth}" for depth in cifar_resnet.DEPTHS}


def _kernel_sizes(kernels: dict[str, Tensor], path: str | os.PathLike[str]) -> tuple[int, ...]:
    """Return the kernel size of each stage: of ``layer2.*`` or ``blocks.2.*``."""

    def stage(name: str) -> int:
        return int(re.findall(r"\d+", name)[0])

    sizes = []
    for number, names in itertools.groupby(sorted(kernels, key=stage), key=stage):
        found = sorted({kernels[name].shape[-1] for name in names})
        if len(found) > 1:
            raise UserError(
                f"{path}: the ECA kernels of stage {number} differ ({', '.join(map(str, found))}), "
                "and a model has one kernel size for each stage"
            )
        sizes += found
    return tuple(sizes)


def _attention_by_shape(
    weights: Weights, inside: dict[str, Tensor], path: str | os.PathLike[str]
) -> str:
    """Return the attention module whose weights, as it comes by default, have these names and shapes."""
    shapes = {name: tensor.shape for name, tensor in inside.items()}
    for spec in list_attention():
        try:
            build = functools.partial(
                create_model, weights.model, attention=spec, **weights.model_args
            )
            model = outline(path, build, weights.state_dict)
        except UserError:
            continue
        names = tuple(f"{name}." for name in attention_modules(model))
        if shapes == {n: t.shape for n, t in model.state_dict().items() if n.startswith(names)}:
            return spec
    raise UserError(
        f"{path}: weights such as {_first(list(inside), 2)} are of no attention module of ours with "
        "its default arguments"
    )


def _of_named_model(
    name: str,
    tensors: dict[str, Tensor],
    described: Description,
    path: str | os.PathLike[str],
) -> Weights:
    """Take the user's word for the model; classes and channels are those of its first and last layer."""
    kernels = described.kernel_sizes
    weights = Weights(
        state_dict=tensors,
        model=name,
        kernel_sizes=parse_kernel_sizes(kernels) if kernels else None,
        num_classes=1000 if described.num_classes is None else described.num_classes,
        in_chans=described.in_chans or 3,
        attention=described.attention or "none",
        model_args=described.model_args,
        layout="torchvision" if name.startswith("torchvision/") else "timm",
        report=LoadReport(),
        metadata={},
    )
    model = outline(path, lambda: _create(weights), tensors)
    names = model.state_dict().keys()
    choices = [choice for choice, _ in unwrapped(tensors)]
    weights.state_dict = tensors = max(choices, key=lambda choice: len(choice.keys() & names))
    cfg = getattr(model, "pretrained_cfg", {})
    last = f"{cfg.get('classifier')}.weight"
    classifier = _shape(tensors, last, 2) or _shape(tensors, last, 4)
    first = _shape(tensors, f"{cfg.get('first_conv')}.weight", 4)
    if classifier:
        weights.num_classes = classifier[0]
    if first:
        weights.in_chans = first[1]
    return weights


def _create(weights: Weights) -> nn.Module:
    return create_model(weights.model, **weights.arguments())


# ---- what fits


def compare_weights(
    tensors: dict[str, Tensor], state: dict[str, Tensor], outside: list[str] | None = None
) -> LoadReport:
    """Tell which of a file's ``tensors`` fit a model's ``state``, by name and shape."""
    report = LoadReport(outside=list(outside or ()))
    for name, tensor in tensors.items():
        if name not in state:
            report.surplus.append(name)
        elif tensor.shape != state[name].shape:
            report.mismatched[name] = (tuple(tensor.shape), tuple(state[name].shape))
        else:
            report.matched.append(name)
    # Torch before 0.4.1 kept no count of batches, and none is needed to run a model.
    report.missing = [
        name for name in state if name not in tensors and not name.endswith("num_batches_tracked")
    ]
    return report


def _refusal(file: str | os.PathLike[str], report: LoadReport, ours: dict[str, Tensor]) -> str:
    problems = report.problems()
    more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    advice = "partial=True loads the rest"
    if report.mismatched and all(".attention.conv." in name for name in report.mismatched):
        kernels = {n: t for n, t in ours.items() if n.endswith(".attention.conv.weight")}
        if kernels:
            digits = _digits(_kernel_sizes(kernels, file))
            advice = f'the file\'s kernels are kernel_sizes="{digits}"'
    return f"{Path(file)} does not fit the model: {'; '.join(problems[:_SHOWN])}{more} ({advice})"


def _shapes(file: tuple[int, ...], model: tuple[int, ...]) -> str:
    return f"{_times(file)} in the file, {_times(model)} in the model"


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a number"


def _digits(kernels: tuple[int, ...]) -> str:
    return ("," if max(kernels) > 9 else "").join(map(str, kernels))


def _first(names: list[str], count: int = _SHOWN) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
