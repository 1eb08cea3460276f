"""Loads the weights of a file, into an existing model or into the model that the file implies."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from timm.models import adapt_input_conv
from torch import Tensor, nn

from ecanet.errors import UserError, first_of
from ecanet.models import resnet
from ecanet.models.classifier import classifier_names
from ecanet.models.holders import attention_modules
from ecanet.models.identity import add_scales, in_file, scales_in_common, start_as_identity
from ecanet.models.weights.description import read_folded
from ecanet.models.weights.files import read_checkpoint
from ecanet.models.weights.identify import (
    format_kernels,
    read_weights,
    stage_kernel_sizes,
    stem_arguments,
)
from ecanet.models.weights.layouts import to_ecanet, unwrapped
from ecanet.models.weights.match import LoadReport, check_finite, compare_weights


def load_weights(
    model: nn.Module,
    file: str | os.PathLike[str],
    partial: bool = False,
    backbone: bool = False,
    new_classes: bool = False,
    identity: bool = False,
) -> LoadReport:
    """Load the weights of a file into a model, in place, whatever layout the file has.

    Args:
        model: one of ours, or any other whose weights have the same names as the file's.
        file: a torch pickle, a safetensors file, a folder of the Hugging Face Hub or
            ``hf-hub:OWNER/NAME``, with the names of ecanet, the official repository, timm, torchvision,
            MMDetection or MMPretrain.
        partial: load what fits, even if not everything does.
        backbone: the model lacks the last layers of the file's: whatever else the file holds is ignored,
            and attention modules that the file lacks stay as they are.
        new_classes: the model is to learn other classes: a classifier whose shape differs from the file's,
            or that the file lacks, stays as it is, and so do attention modules that the file lacks. For
            images of one channel, a first convolution of three is summed over them, as timm does.
        identity: attention modules that the file lacks start as the identity, so that the model computes
            what the file's does, see :func:`ecanet.models.start_as_identity`. Those that were folded in the
            file always do.

    Returns:
        What matched and what did not.

    Raises:
        UserError: the file cannot be read, nothing in it fits, what fits holds NaN or infinity, or, unless
            ``partial``, something does not fit, or an attention module cannot start as the identity. The
            model is then unchanged.
    """
    model = getattr(model, "_orig_mod", model)
    checkpoint = read_checkpoint(file)
    state = model.state_dict()
    classifier = _classifier(model)
    renamed = to_ecanet(checkpoint.tensors)
    candidates = [*unwrapped(checkpoint.tensors), (renamed.tensors, renamed.unrelated)]
    scales = [scales_in_common(model, tensors) for tensors, _ in candidates]
    reports = [
        compare_weights({**tensors, **both}, {**state, **both}, unrelated)
        for (tensors, unrelated), both in zip(candidates, scales, strict=True)
    ]
    best = max(range(len(reports)), key=lambda i: len(reports[i].matched))
    tensors, report = {**candidates[best][0], **scales[best]}, reports[best]
    if backbone:
        report.unrelated, report.surplus = report.unrelated + report.surplus, []
    elif getattr(model, "num_classes", None) == 0:
        heads = [name for name in report.surplus if name.startswith(classifier)]
        report.surplus = [name for name in report.surplus if name not in heads]
        report.unrelated += heads
    if new_classes:
        report.fresh = {n: s for n, s in report.mismatched.items() if n.startswith(classifier)}
        report.fresh |= {
            n: (None, tuple(state[n].shape)) for n in report.missing if n.startswith(classifier)
        }
        report.mismatched = {n: s for n, s in report.mismatched.items() if n not in report.fresh}
        report.missing = [n for n in report.missing if n not in report.fresh]
        _adapt_stem(tensors, report)
    if not report.matched:
        raise UserError(
            f"nothing in {file} fits {type(model).__name__}: the file has {first_of(list(tensors), 3)}, "
            f"the model has {first_of(list(state), 3)}"
        )
    fits = report.complete or (
        (backbone or ((new_classes or identity) and not report.surplus))
        and not report.mismatched
        and all(".attention." in n for n in report.missing)
    )
    if not fits and not partial:
        raise _misfit(file, report, renamed.tensors)
    matched = {name: tensors[name] for name in report.matched}
    check_finite(file, matched)
    add_scales(model, scales[best])
    folded = read_folded(file, checkpoint.metadata)
    fresh = [
        name
        for name, module in attention_modules(model).items()
        if (identity or name in folded) and not in_file(name, module, tensors)
    ]
    before = {name: state[name].clone() for name in matched if name in state} if fresh else {}
    model.load_state_dict(matched, strict=False)
    if fresh:
        try:
            start_as_identity(model, fresh)
        except UserError:
            model.load_state_dict(before, strict=False)
            raise
    return report


def _adapt_stem(tensors: dict[str, Tensor], report: LoadReport) -> None:
    """Sum weights of convolutions of three channels where the model has one, in place."""
    for name, (theirs, ours) in list(report.mismatched.items()):
        if theirs and len(theirs) == 4 and (theirs[1], ours) == (3, (theirs[0], 1, *theirs[2:])):
            tensors[name] = adapt_input_conv(1, tensors[name])
            report.adapted[name] = report.mismatched.pop(name)
            report.matched.append(name)


def build_from_weights(
    file: str | os.PathLike[str],
    model: str | None = None,
    attention: str | None = None,
    **overrides: Any,
) -> nn.Module:
    """Build the model that a weight file belongs to, with those weights: (N, C, H, W) to logits.

    Args:
        file, model, attention: as in :func:`ecanet.models.weights.identify.read_weights`.
        overrides: arguments of :func:`ecanet.create_model` in place of what the file implies; with
            another ``num_classes`` the classifier is a new one.

    Raises:
        UserError: as in ``read_weights``, or the file is incomplete, or holds NaN or infinity.
    """
    weights = read_weights(file, model, attention)
    if not weights.report.complete:
        raise _misfit(file, weights.report, weights.state_dict)
    built = weights.create(**overrides)
    tensors = weights.state_dict
    if overrides.get("num_classes", weights.num_classes) != weights.num_classes:
        classifier = _classifier(built)
        tensors = {n: t for n, t in tensors.items() if not n.startswith(classifier)}
        own = {n: t for n, t in built.state_dict().items() if n.startswith(classifier)}
        tensors = {**own, **tensors}
    report = compare_weights(tensors, built.state_dict())
    if not report.complete:
        raise _misfit(file, report, weights.state_dict)
    check_finite(file, tensors)
    built.load_state_dict(tensors, strict=False)
    return built


def _classifier(model: nn.Module) -> tuple[str, ...]:
    """Return what the names of the classifier's weights start with."""
    return tuple(f"{name}." for name in classifier_names(model))


def read_stem(file: str | os.PathLike[str], model: str) -> dict[str, Any]:
    """Return the stem of a file's weights as arguments of :func:`ecanet.create_model`.

    Args:
        file: as in :func:`load_weights`.
        model: name of the model that is to take the weights. Only our ResNets have several stems; {} for
            all others.

    Raises:
        UserError: the file cannot be read.
    """
    if model.removeprefix("eca_") not in resnet.ARCHITECTURES:
        return {}
    return stem_arguments(to_ecanet(read_checkpoint(file).tensors).tensors)


def _misfit(
    file: str | os.PathLike[str], report: LoadReport, tensors: Mapping[str, Tensor]
) -> UserError:
    """Return the error for weights, under our names, that do not fit; it gives advice."""
    advice = "in Python, partial=True loads what fits"
    if any(".attention.conv." in name for name in report.mismatched):
        kernels = {n: t for n, t in tensors.items() if n.endswith(".attention.conv.weight")}
        if kernels:
            sizes = format_kernels(stage_kernel_sizes(kernels, file))
            advice = f'the file\'s kernels are kernel_sizes="{sizes}"'
    return UserError(f"{file} does not fit the model: {report.first_problems()} ({advice})")
