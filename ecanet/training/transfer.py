"""Transfer learning: what a run starts from, which of its parts are new, and what of the rest is trained.

The new parts are the classifier and the attention modules. All others are counted in layers and in stages,
as timm groups them: the stem is 0.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

from timm.models import group_parameters
from torch import Tensor, nn

from ecanet.config import ClassificationSettings
from ecanet.data.preprocessing import Preprocessing
from ecanet.errors import UserError
from ecanet.models.classifier import classifier_names
from ecanet.models.holders import attention_modules
from ecanet.models.inputs import weights_preprocessing
from ecanet.models.weights.files import read_checkpoint
from ecanet.models.weights.identify import read_weights
from ecanet.models.weights.layouts import to_ecanet

# Stages in the networks that have no group_matcher of their own, and layers within them: torchvision's, and
# ours for small images.
_STEM = r"(?:conv1|bn1|stem|features\.(?:conv0|norm0))\b"
_STAGE = r"(?:features\.(?:denseblock|transition)|features\.|layers\.|layer|stage|trunk_output\.block)(\d+)"
_LAYER = _STAGE + r"\.(?:denselayer|block\d+-)?(\d+)"


def starting_model(settings: ClassificationSettings, *, alone: bool) -> str | None:
    """Return the network to start from weights with: the one given, or that of the file; None if it is open.

    Args:
        settings: of a run or of all runs of a study.
        alone: for a single run, which may have the attention module that is in the network's name.

    Raises:
        UserError: the file cannot be read, or does not say which network it is of.
    """
    if settings.model or not settings.starts_from_weights:
        return settings.model
    if settings.weights is None:
        return "resnet50"  # the smaller ones for small images have no pretrained weights
    name = read_weights(settings.weights).model
    return name if alone and settings.attention is None else name.removeprefix("eca_")


def starting_preprocessing(
    settings: ClassificationSettings, *, alone: bool
) -> tuple[Preprocessing, str] | None:
    """Return how images were prepared for the weights that a run starts from, and who says so; None if
    unknown.

    Raises:
        UserError: the weights cannot be read, or describe it wrongly.
    """
    if not settings.starts_from_weights:
        return None
    metadata = read_checkpoint(settings.weights).metadata if settings.weights else {}
    return weights_preprocessing(
        str(starting_model(settings, alone=alone)), metadata, pretrained=settings.pretrained
    )


def starts_as_identity(settings: ClassificationSettings) -> bool:
    """Return whether attention modules start as the identity, as set or else by what the run starts from."""
    if settings.identity is not None:
        return settings.identity
    return (
        settings.starts_from_weights
        and not settings.replace_attention
        and not (settings.weights and _holds_attention(settings.weights))
    )


def _holds_attention(file: str) -> bool:
    checkpoint = read_checkpoint(file)
    named = checkpoint.metadata.get("attention", "none") != "none"
    return named or any(".attention." in name for name in to_ecanet(checkpoint.tensors).tensors)


def classifier(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a network's classifier, auxiliary ones included."""
    layers = map(model.get_submodule, classifier_names(model))
    return [p for layer in layers for p in layer.parameters()]


def pretrained_classes(model: nn.Module) -> int:
    """Return how many classes the pretrained weights of a network have."""
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    return int(config.get("num_classes", 1000))


def start_classifier(model: nn.Module, names: Collection[str] | None = None) -> None:
    """Initialize a new classifier, in place: weights of N(0, 0.01^2), biases of 0.

    So the first logits are near 0, whatever the scale of the pretrained features; by the initialization of
    timm's EfficientNets they are so large that the first steps undo pretrained weights. From section 5.1 of
    "Accurate, Large Minibatch SGD" (Goyal et al., 2017).

    Args:
        names: of its parameters, by default all.
    """
    for name in classifier_names(model):
        for child, layer in model.get_submodule(name).named_modules(prefix=name):
            if not isinstance(layer, (nn.Linear, nn.Conv2d)):
                continue
            if names is None or f"{child}.weight" in names:
                nn.init.normal_(layer.weight, std=0.01)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)


def new_parts(model: nn.Module) -> set[Tensor]:
    """Return the parameters of a network's classifier and attention modules."""
    modules = attention_modules(model).values()
    return {*classifier(model), *(p for module in modules for p in module.parameters())}


def freeze(model: nn.Module, how: int | Literal["none", "backbone"]) -> None:
    """Let parameters take no gradient, in place; those of :func:`new_parts` always do.

    Args:
        how: ``none``; ``backbone``: all; or a number of stages, with the stem.

    Raises:
        UserError: the network has fewer stages, or none that are known.
    """
    if how == "none":
        return
    new = new_parts(model)
    stages = {
        n: s for n, s in _groups(model, coarse=True).items() if model.get_parameter(n) not in new
    }
    last = max(stages.values())
    if how != "backbone" and how > last:
        known = f"has {last} stages" if last else "has no stages that are known"
        raise UserError(f"--freeze {how}: {type(model).__name__} {known}; backbone freezes all")
    for name, stage in stages.items():
        if how == "backbone" or stage <= how:
            model.get_parameter(name).requires_grad_(False)


def frozen_norms(model: nn.Module) -> list[nn.Module]:
    """Return the batch norms none of whose parameters are trained: they are to keep their statistics."""
    norms = [m for m in model.modules() if getattr(m, "running_mean", None) is not None]
    own = [(norm, list(norm.parameters(recurse=False))) for norm in norms]
    return [norm for norm, ps in own if ps and not any(p.requires_grad for p in ps)]


def lr_scales(
    model: nn.Module, layer_decay: float | None, new_lr_scale: float
) -> dict[Tensor, float]:
    """Return the learning rate of each parameter relative to the run's, where it is another.

    Layer decay is as in timm's ``param_groups_layer_decay``: a layer's rate is ``layer_decay`` times that of
    the layer after it, and the classifier's, after all of them, is not decayed.
    """
    scales: dict[Tensor, float] = {}
    if layer_decay is not None:
        layers = _groups(model, coarse=False)
        last = max(layers.values())
        scales = {model.get_parameter(n): layer_decay ** (last - i) for n, i in layers.items()}
    if layer_decay is not None or new_lr_scale != 1:
        scales |= dict.fromkeys(new_parts(model), new_lr_scale)
    return scales


def _groups(model: Any, *, coarse: bool) -> dict[str, int]:
    """Return the stage of each parameter by name, or the layer unless ``coarse``; 0 is the stem."""
    if hasattr(model, "group_matcher"):
        matcher = model.group_matcher(coarse=coarse)
    else:
        blocks = [(_STAGE, None)] if coarse else [(_LAYER, None), (_STAGE, None)]
        matcher = {"stem": _STEM, "blocks": blocks}
    return group_parameters(model, matcher, reverse=True)
