"""Finds, describes and replaces a network's built-in attention modules.

RegNetY, EfficientNet, MobileNetV3, SE-ResNet, ECA-ResNet and many others have a gate in each block. A
comparison that keeps them compares modules on top of a gate, ``none`` included.

They are identified by class: those of ecanet, timm and torchvision, and any with a common name, such as the
official ``eca_layer``. Gates written out in a block's ``forward`` and classes with other names are not found;
neither are modules that do not gate feature maps: the self-attention of transformers, and ConvNeXt V2's
response normalization. Selective kernels and split attention select among convolutions: they are counted,
but cannot be replaced, as nothing would remain of the convolution.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ecanet.attention.registry import registered_name
from ecanet.errors import UserError
from ecanet.models.holders import holders
from ecanet.models.hooks import run_in_evaluation
from ecanet.models.insert import insert_at

# Class names in lower case without underscores.
_GATES = {
    **dict.fromkeys(["semodule", "squeezeexcite", "squeezeexcitecl", "squeezeexcitation"], "SE"),
    **dict.fromkeys(["selayer", "seblock", "squeezeandexcitation"], "SE"),
    **dict.fromkeys(["effectivesemodule", "effectiveseblock", "esemodule"], "ESE"),
    **dict.fromkeys(["ecamodule", "cecamodule", "ecalayer", "ecablock", "ecaattention"], "ECA"),
    **dict.fromkeys(["cbammodule", "lightcbammodule", "cbam", "cbamblock"], "CBAM"),
    **dict.fromkeys(["coordattn", "simplecoordattn", "coordatt", "coordattention"], "coordinate"),
    "efficientlocalattn": "ELA",
    "stripattn": "strip attention",
    "gatherexcite": "gather-excite",
    "globalcontext": "global context",
    **dict.fromkeys(["nonlocalattn", "batnonlocalattn"], "non-local"),
    "srmlayer": "SRM",
    "gct": "GCT",
    "simam": "SimAM",
    "tripletattention": "triplet attention",
}
# Attention inside a convolution.
_FIXED = {"selectivekernel": "selective kernel", "splitattn": "split attention"}


def built_in_attention(model: nn.Module) -> dict[str, str]:
    """Return a network's built-in attention modules: name to kind, ``{"s1.b1.se": "SE"}``.

    Inserted ones and those in the blocks of our own networks are excluded: see
    :func:`ecanet.models.attention_modules`.
    """
    kinds: dict[str, str] = {}
    known = tuple(f"{name}." for name in holders(model))
    for name, module in model.named_modules():
        kind = _kind(module)
        if kind is not None and not f"{name}.".startswith((*known, *(f"{n}." for n in kinds))):
            kinds[name] = kind
    return kinds


def count_built_in(model: nn.Module) -> dict[str, int]:
    """Return the number of modules of each kind of :func:`built_in_attention`."""
    return dict(Counter(built_in_attention(model).values()))


def can_be_replaced(counts: Mapping[str, int]) -> bool:
    """Whether modules of these kinds can be replaced, judging by the kind alone."""
    return bool(counts) and not counts.keys() & set(_FIXED.values())


def in_words(counts: Mapping[str, int]) -> str:
    """Return ``16 SE modules``; ``1 CBAM and 2 ECA modules`` for several kinds."""
    kinds = " and ".join(f"{number} {kind}" for kind, number in counts.items())
    return f"{kinds} module{'' if sum(counts.values()) == 1 else 's'}"


def describe_built_in(
    model: str, counts: Mapping[str, int], *, replaced: bool = False, compared: bool = True
) -> str | None:
    """Describe a network's built-in attention modules; None if it has none.

    Args:
        model: name of the network.
        counts: the result of :func:`count_built_in` for the original network.
        replaced: whether they were replaced.
        compared: whether several modules are compared in the network.
    """
    if not counts:
        return None
    those = in_words(counts)
    added = "what is compared" if compared else "any other attention"
    if replaced:
        return (
            f"the network, {model}, is used without its own {those}: {added} takes their place"
            + (", and none is the network without them" if compared else "")
        )
    arms = " in every arm, none included" if compared else ""
    text = f"the network, {model}, has {those} of its own{arms}: {added} comes on top of them"
    if can_be_replaced(counts):
        text += "; with --replace-attention it takes their places"
    return text


def replace_attention(
    model: nn.Module, spec: str = "none", kernel_sizes: Sequence[int] | str | None = None
) -> nn.Module:
    """Replace each of the network's built-in attention modules by another one, in place.

    ``"none"`` removes them: the network computes the same as if all their factors were 1. All other weights
    keep their names and values. See the module's docstring for which modules are found.

    Args:
        model: any CNN except ours, without inserted attention modules.
        spec: attention module, as in :func:`ecanet.create_attention`.
        kernel_sizes: as in :func:`ecanet.insert_attention`.

    Returns:
        ``model`` itself.

    Raises:
        UserError: it has none, or one that cannot be removed, or the new module cannot be built or does not
            fit. The model is then unchanged.
    """
    kinds = built_in_attention(model)
    if not kinds:
        raise UserError(
            f"{type(model).__name__} has no built-in attention modules: leave replace_attention out"
        )
    gates = {name: model.get_submodule(name) for name in kinds}
    for name, gate in gates.items():
        if _class(gate) in _FIXED or not _only_scales(gate):
            raise UserError(
                f"{name} ({type(gate).__name__}) does more than scale its input, so it cannot be removed: "
                "leave replace_attention out"
            )
    insert_at(model, list(gates), spec, kernel_sizes)
    return model


def _kind(module: nn.Module) -> str | None:
    name = registered_name(module)
    if name is not None:
        return None if name == "none" else name
    return (_GATES | _FIXED).get(_class(module))


def _class(module: nn.Module) -> str:
    return type(module).__name__.lower().replace("_", "")


def _only_scales(gate: Any) -> bool:
    """Whether a gate only multiplies by factors, without including an activation of its block.

    The classes of timm and torchvision are known; others are run with the channels of their first layer.
    A pixel with the opposite sign gets about the same factor, unless an activation follows.
    """
    if registered_name(gate) or type(gate).__module__.startswith(("timm.", "torchvision.")):
        return True
    like = next(gate.parameters(), torch.empty(0))
    layer = next((p for p in gate.parameters() if p.ndim in (2, 4)), None)
    if like.is_meta:
        return True
    channels = 16 if layer is None else layer.shape[1]
    # Not random, to preserve the random state.
    x = torch.linspace(1, 2, channels * 32 * 32, device=like.device, dtype=like.dtype)
    x = x.reshape(1, channels, 32, 32)
    other = x.clone()
    other[..., 16, 16] *= -1
    try:
        one, two = (run_in_evaluation(gate, image)[..., 16, 16] for image in (x, other))
    except Exception:  # not the channels of the first weight
        return True
    return bool(torch.allclose(one, -two, rtol=0.3))
