"""One call for every model: ours by name, torchvision's and timm's with attention inserted."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import timm
import torchvision
from torch import nn

from ecanet.errors import UserError, did_you_mean
from ecanet.models import cifar_resnet, mobilenetv2, resnet
from ecanet.models.built_in import replace_attention as put_in_place
from ecanet.models.cifar_resnet import CifarResNet
from ecanet.models.insert import insert_attention

# Up to this side an image is too small for the ImageNet stem, which divides it by four at once.
SMALL_IMAGE = 64

_RESNETS = [prefix + name for prefix in ("", "eca_") for name in resnet.ARCHITECTURES]
_CIFAR_RESNETS = {f"resnet{depth}": depth for depth in cifar_resnet.DEPTHS}
_MOBILENETS = ["mobilenet_v2", "eca_mobilenet_v2"]
_OURS = [*_RESNETS, *_CIFAR_RESNETS, *_MOBILENETS]


def list_models() -> list[str]:
    """Return the names of our own models; those of timm and ``torchvision/NAME`` work as well."""
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
    **kwargs: Any,
) -> nn.Module:
    """Build a CNN with an attention module in each residual block: (N, in_chans, H, W) to logits.

    The same seed gives the same values to all weights but the attention modules' own, and leaves
    the stream of random numbers at the same point, whichever attention module is asked for.

    Args:
        name: one of :func:`list_models`, ``torchvision/NAME``, or a name of timm's.
        num_classes: length of the output.
        in_chans: channels of the images.
        attention: as in :func:`ecanet.create_attention`, ``"eca:kernel_size=9"``. By default none,
            for a name that begins with ``eca_`` eca, with the kernel that follows from the channels
            of each block's output.
        kernel_sizes: a kernel size for each stage in place of that, ``(3, 5, 5, 7)`` or ``"3557"``.
        stem: ``imagenet`` (7x7 convolution of stride 2, max pooling) or ``cifar`` (3x3 convolution
            of stride 1), for ResNet-18 to 152, which take imagenet by default.
        image_size: in place of ``stem``: side of the images. Up to 64 pixels it means the cifar
            stem, unless the model has none or pretrained weights say otherwise.
        pretrained: load ImageNet weights for all but the attention modules and, if the classes
            are not 1000, the classifier.
        replace_attention: put ``attention`` where the network's own attention modules stand, the SE of
            a RegNetY for one, and nowhere else; without an ``attention`` they are only taken out.
        kwargs: anything else that the model's builder takes: drop_rate, drop_path_rate ...

    Raises:
        UserError: a name is unknown, arguments contradict each other or would change nothing, or
            pretrained weights cannot be had.
    """
    if stem is not None and image_size is not None:
        raise UserError(
            "stem and image_size: give one of the two, image_size only chooses the stem"
        )
    is_resnet = name in _RESNETS
    if stem is not None and not is_resnet:
        raise UserError(f"{name} has one stem only: leave stem out (ResNet-18 to 152 have two)")
    if is_resnet:
        small = image_size is not None and image_size <= SMALL_IMAGE and not pretrained
        kwargs["stem"] = stem or ("cifar" if small else "imagenet")
    if stem == "cifar" and pretrained:
        raise UserError(f"pretrained weights of {name} are for the imagenet stem: leave stem out")

    if name in _OURS and replace_attention:
        raise UserError(
            f"{name} has no attention module but the one that attention= names: leave "
            "replace_attention out"
        )
    if name in _OURS:
        build = partial(_build_ours, name, attention=attention, kernel_sizes=kernel_sizes)
    elif name.startswith("torchvision/"):
        build = partial(_build_torchvision, name)
    elif timm.is_model(name):
        build = partial(timm.create_model, name)
    else:
        raise UserError(f"unknown model {name!r}.{_nearest(name)}")
    try:
        model = build(num_classes=num_classes, in_chans=in_chans, pretrained=pretrained, **kwargs)
    except UserError:
        raise
    except TypeError as error:
        raise UserError(f"model {name}: {error}") from error
    except Exception as error:
        if not pretrained:
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"no pretrained weights for {name} ({type(error).__name__}: {reason})"
        ) from error
    if replace_attention:
        return put_in_place(model, attention or "none", kernel_sizes)
    if name not in _OURS and (attention or "none") != "none":
        return insert_attention(model, attention, kernel_sizes=kernel_sizes)  # type: ignore[arg-type]
    if name not in _OURS and kernel_sizes is not None:
        raise UserError("kernel_sizes change nothing without an attention module")
    return model


def _build_ours(name: str, *, attention: str | None, pretrained: bool, **kwargs: Any) -> nn.Module:
    if name in _CIFAR_RESNETS:
        if pretrained:
            raise UserError(f"{name} has no pretrained weights: leave pretrained out")
        return CifarResNet(_CIFAR_RESNETS[name], attention=attention or "none", **kwargs)
    if not name.startswith("eca_"):
        attention = attention or "none"
    elif pretrained and "pretrained_cfg_overlay" not in kwargs:
        plain = name.removeprefix("eca_")
        raise UserError(
            f"{name} has no pretrained weights: {plain} with attention=eca takes those of {plain}"
        )
    build = resnet.build_resnet if name in _RESNETS else mobilenetv2.build_mobilenetv2
    return build(name, pretrained, attention=attention, **kwargs)


def _build_torchvision(
    name: str, *, num_classes: int, in_chans: int, pretrained: bool, **kwargs: Any
) -> nn.Module:
    short = name.removeprefix("torchvision/")
    known = torchvision.models.list_models(module=torchvision.models)
    if short not in known:
        raise UserError(f"torchvision has no model {short!r}.{did_you_mean(short, known)}")
    if in_chans != 3:
        raise UserError(
            f"torchvision's models take images of 3 channels, not {in_chans}: use a model of timm's "
            "or of ours"
        )
    if not pretrained:
        return torchvision.models.get_model(short, num_classes=num_classes, **kwargs)
    model = torchvision.models.get_model(short, weights="DEFAULT", **kwargs)
    if num_classes != 1000:
        _replace_classifier(model, num_classes)
    return model


def _replace_classifier(model: nn.Module, num_classes: int) -> None:
    """Put a fresh last layer of ``num_classes`` outputs in place of the one of 1000."""
    name, old = [
        (name, module)
        for name, module in model.named_modules()
        if getattr(module, "out_features", getattr(module, "out_channels", None)) == 1000
    ][-1]
    if isinstance(old, nn.Conv2d):
        new: nn.Module = nn.Conv2d(old.in_channels, num_classes, 1)
    else:
        new = nn.Linear(old.in_features, num_classes)
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)


def _nearest(name: str) -> str:
    everything = list_models() + timm.list_models()
    near = difflib.get_close_matches(name, everything, n=1, cutoff=0.5)
    # Without a near one, ours: timm alone has over a thousand.
    return did_you_mean(name, everything if near else list_models())
