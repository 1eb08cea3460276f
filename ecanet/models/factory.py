"""Builds every model with one function: ours, and those of torchvision and timm with attention inserted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal

import timm
import torchvision
from timm.models import adapt_input_conv
from torch import nn

from ecanet.errors import UserError, did_you_mean, one_line
from ecanet.models import mobilenetv2, resnet
from ecanet.models.built_in import replace_attention as replace_built_in
from ecanet.models.cifar_resnet import CifarResNet
from ecanet.models.identity import start_as_identity
from ecanet.models.insert import insert_attention
from ecanet.names import CIFAR_DEPTHS
from ecanet.network import hub_or_cache

# Images up to this side are too small for the ImageNet stem, which reduces them by a factor of four.
SMALL_IMAGE = 64

_RESNETS = [prefix + name for prefix in ("", "eca_") for name in resnet.ARCHITECTURES]
_CIFAR_RESNETS = {f"resnet{depth}": depth for depth in CIFAR_DEPTHS}
# Our models that timm's builder makes, and by which function.
_BUILDERS = {
    **dict.fromkeys(_RESNETS, resnet.build_resnet),
    **dict.fromkeys(["mobilenet_v2", "eca_mobilenet_v2"], mobilenetv2.build_mobilenetv2),
}
_OURS = [*_BUILDERS, *_CIFAR_RESNETS]


def list_models() -> list[str]:
    """Return the names of our own models; timm's names and ``torchvision/NAME`` also work."""
    return sorted(_OURS)


def model_home(name: str) -> str:
    """Return the name of the Python module that registered a model."""
    if name in _OURS or name.startswith("torchvision/") or not timm.is_model(name):
        return __name__
    return timm.model_entrypoint(name).__module__


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    attention: str | None = None,
    kernel_sizes: Sequence[int] | str | None = None,
    stem: Literal["imagenet", "cifar"] | None = None,
    image_size: int | None = None,
    pretrained: bool = False,
    replace_attention: bool = False,
    identity: bool = False,
    channels: Sequence[int] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build a CNN with an attention module in each residual block: (N, in_chans, H, W) to logits.

    For the same seed, all weights outside of attention modules have the same values, and the random state
    is the same afterwards, whichever attention module is used.

    Args:
        name: one of :func:`list_models`, ``torchvision/NAME``, or a name of timm's.
        num_classes: length of the output.
        in_chans: channels of the images.
        attention: as in :func:`ecanet.create_attention`, ``"eca:kernel_size=9"``. By default none, or, for
            names that begin with ``eca_``, eca with the adaptive kernel for the output channels of each
            block.
        kernel_sizes: a kernel size for each stage instead, ``(3, 5, 5, 7)`` or ``"3557"``.
        stem: ``imagenet`` (7x7 convolution of stride 2, max pooling; the default) or ``cifar`` (3x3
            convolution of stride 1), for ResNet-18 to 152.
        image_size: side of the images, instead of ``stem``. Up to 64 pixels it selects the cifar
            stem, if the model has one and weights are not pretrained.
        pretrained: load ImageNet weights, except for the attention modules and, unless there are 1000
            classes, the classifier.
        replace_attention: put ``attention`` in place of the network's built-in attention modules, such as
            the SE of a RegNetY, and nowhere else; without ``attention`` they are removed.
        identity: initialize the attention modules so that in evaluation mode the network computes what it
            does without them, pretrained or not, see :func:`ecanet.models.start_as_identity`. For weights
            of a file, leave it out, and see :func:`ecanet.models.weights.load.load_weights`.
        channels: of each stage, in place of the network's own: of our models and timm's ResNets, within
            the bottlenecks of those that have them.
        kwargs: further arguments of the model's builder: drop_rate, drop_path_rate ...

    Raises:
        UserError: a name is unknown, arguments contradict each other or have no effect, or
            pretrained weights are not available.
    """
    if stem is not None and image_size is not None:
        raise UserError("stem and image_size: give only one, as image_size only selects the stem")
    if identity and replace_attention:
        raise UserError(
            "identity and replace_attention: give only one, as without its own attention modules a "
            "network computes something else from the start"
        )
    is_resnet = name in _RESNETS
    if stem is not None and not is_resnet:
        raise UserError(f"{name} has only one stem: leave stem out (ResNet-18 to 152 have two)")
    if is_resnet:
        small = image_size is not None and image_size <= SMALL_IMAGE and not pretrained
        kwargs["stem"] = stem or ("cifar" if small else "imagenet")
    if stem == "cifar" and pretrained:
        raise UserError(f"pretrained weights of {name} are for the imagenet stem: leave stem out")

    if channels is not None:
        if pretrained:
            raise UserError(
                f"pretrained weights of {name} are for its own channels: leave channels out"
            )
        stages = 3 if name in _CIFAR_RESNETS else 7 if name.endswith("mobilenet_v2") else 4
        if len(channels) != stages:
            raise UserError(
                f"channels {', '.join(map(str, channels))}: {name} has {stages} stages, give a number for "
                "each"
            )
        kwargs["channels"] = tuple(channels)
    if name in _OURS:
        if replace_attention:
            raise UserError(
                f"{name} has no attention module other than that of attention=: leave replace_attention out"
            )
        plain = name.removeprefix("eca_")
        if pretrained and name in _CIFAR_RESNETS:
            raise UserError(f"{name} has no pretrained weights: leave --pretrained out")
        if pretrained and name != plain and "pretrained_cfg_overlay" not in kwargs:
            raise UserError(
                f"{name} has no pretrained weights: use {plain} with attention=eca for those of {plain}"
            )
        by_name = "none" if name == plain else None
        kwargs |= {"attention": attention or by_name, "kernel_sizes": kernel_sizes}
    build: Callable[..., nn.Module]
    if name in _CIFAR_RESNETS:
        build = partial(CifarResNet, _CIFAR_RESNETS[name])
    elif name in _BUILDERS:
        build = partial(_BUILDERS[name], name, pretrained)
    elif name.startswith("torchvision/"):
        build = partial(_build_torchvision, name, pretrained=pretrained)
    elif timm.is_model(name):
        build = partial(timm.create_model, name, pretrained=pretrained)
    else:
        raise UserError(f"unknown model {name!r}.{_nearest(name)}")
    unreachable = None
    try:
        on_hub = pretrained and not name.startswith("torchvision/")
        with hub_or_cache() if on_hub else nullcontext() as unreachable:
            model = build(num_classes=num_classes, in_chans=in_chans, **kwargs)
    except UserError:
        raise
    except TypeError as error:
        if "'channels'" in str(error):
            raise UserError(
                f"{name} does not take the channels of its stages, as ecanet's models and timm's ResNets "
                "do: leave channels out"
            ) from error
        raise UserError(f"model {name}: {error}") from error
    except Exception as error:
        if not pretrained:
            raise
        reason = f"{type(error).__name__}: {one_line(error)}"
        if unreachable:
            reason = f"no connection to {unreachable}"
        raise UserError(
            f"no pretrained weights for {name} ({reason}); --weights FILE takes those of a file"
        ) from error
    if replace_attention:
        return replace_built_in(model, attention or "none", kernel_sizes)
    if name not in _OURS and (attention or "none") != "none":
        insert_attention(model, attention, kernel_sizes=kernel_sizes)  # type: ignore[arg-type]
    elif name not in _OURS and kernel_sizes is not None:
        raise UserError("kernel_sizes have no effect without an attention module")
    return start_as_identity(model) if identity else model


def _build_torchvision(
    name: str, *, num_classes: int, in_chans: int, pretrained: bool, **kwargs: Any
) -> nn.Module:
    short = name.removeprefix("torchvision/")
    known = torchvision.models.list_models(module=torchvision.models)
    if short not in known:
        raise UserError(f"torchvision has no model {short!r}.{did_you_mean(short, known)}")
    if pretrained:
        model = torchvision.models.get_model(short, weights="DEFAULT", **kwargs)
        if num_classes != 1000:
            _replace_classifier(model, num_classes)
    else:
        model = torchvision.models.get_model(short, num_classes=num_classes, **kwargs)
    if in_chans != 3:
        if getattr(model, "transform_input", False):
            raise UserError(
                f"pretrained weights of {name} take images of 3 channels, not {in_chans}"
            )
        stem: Any = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
        stem.weight = nn.Parameter(adapt_input_conv(in_chans, stem.weight.detach()))
        stem.in_channels = in_chans
    return model


def _replace_classifier(model: nn.Module, num_classes: int) -> None:
    """Replace the last layer of 1000 outputs by a new one of ``num_classes``."""
    name, old = [
        (name, module)
        for name, module in model.named_modules()
        if getattr(module, "out_features", getattr(module, "out_channels", None)) == 1000
    ][-1]
    if isinstance(old, nn.Conv2d):
        new: nn.Module = nn.Conv2d(old.in_channels, num_classes, 1)
    else:
        new = nn.Linear(old.in_features, num_classes)
    model.set_submodule(name, new)


def _nearest(name: str) -> str:
    # Without a similar name, list ours only: timm has over a thousand.
    return did_you_mean(name, list_models() + timm.list_models(), listed=list_models())
