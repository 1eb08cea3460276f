"""The attention modules that a network was made with: found, named, and replaced.

RegNetY, EfficientNet, MobileNetV3, SE-ResNet, ECA-ResNet and many others have a gate in each block. A
comparison that leaves them there compares modules on top of a gate, ``none`` included.

They are found by their classes: ours, timm's, torchvision's, and any of a usual name, such as the
official ``eca_layer``. What is written out inside a block's ``forward`` is not seen, nor is a class of
another name; neither is what is no gate over feature maps: the self-attention of transformers, and
ConvNeXt V2's response normalisation. Selective kernels and split attention choose among convolutions:
they are counted, but without them nothing is left of the convolution, so they cannot be replaced.
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
from ecanet.models.insert import insert_at

# Names of classes, in lower case and without underscores.
_GATES = {
    **dict.fromkeys(["semodule", "squeezeexcite", "squeezeexcitecl", "squeezeexcitation"], "SE"),
    **dict.fromkeys(["selayer", "seblock", "squeezeandexcitation"], "SE"),
    **dict.fromkeys(["effectivesemodule", "esemodule"], "ESE"),
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
    """Return the attention modules that a network has of its own: name to kind, ``{"s1.b1.se": "SE"}``.

    Those that were inserted, and those in the places of our own networks, are not among them: see
    :func:`ecanet.models.attention_modules`.
    """
    found: dict[str, str] = {}
    known = tuple(f"{name}." for name in holders(model))
    for name, module in model.named_modules():
        kind = _kind(module)
        if kind is not None and not f"{name}.".startswith((*known, *(f"{n}." for n in found))):
            found[name] = kind
    return found


def count_built_in(model: nn.Module) -> dict[str, int]:
    """Return the kinds of :func:`built_in_attention` and how many modules there are of each."""
    return dict(Counter(built_in_attention(model).values()))


def can_be_replaced(counts: Mapping[str, int]) -> bool:
    """Whether :func:`replace_attention` takes modules of these kinds, as far as the kind tells."""
    return bool(counts) and not counts.keys() & set(_FIXED.values())


def in_words(counts: Mapping[str, int]) -> str:
    """Return ``16 SE modules``; ``1 CBAM and 2 ECA modules`` for several kinds."""
    kinds = " and ".join(f"{number} {kind}" for kind, number in counts.items())
    return f"{kinds} module{'' if sum(counts.values()) == 1 else 's'}"


def describe_built_in(
    model: str, counts: Mapping[str, int], *, replaced: bool = False, compared: bool = True
) -> str | None:
    """Say which attention modules a network has of its own; None if it has none.

    Args:
        model: its name.
        counts: as :func:`count_built_in` returns them, of the network as it comes.
        replaced: whether they were taken out.
        compared: whether several modules are compared in it.
    """
    if not counts:
        return None
    those = in_words(counts)
    added = "what is compared" if compared else "any other attention"
    if replaced:
        return (
            f"the network, {model}, is without its own {those}: {added} stands in their places"
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
    """Put an attention module exactly where each of the network's own stands, in place.

    With ``"none"`` they are taken out: the network computes what it would if all their factors were 1.
    The other weights keep their names and values. See the module's docstring for what is found.

    Args:
        model: any CNN that is neither ours nor has inserted attention modules.
        spec: attention module, as in :func:`ecanet.create_attention`.
        kernel_sizes: as in :func:`ecanet.insert_attention`.

    Returns:
        ``model`` itself.

    Raises:
        UserError: it has none, one that cannot be taken out, or the module cannot be made or does not
            fit. The model is then as it was.
    """
    kinds = built_in_attention(model)
    if not kinds:
        raise UserError(
            f"{type(model).__name__} has no attention modules of its own: leave replace_attention out"
        )
    gates = {name: model.get_submodule(name) for name in kinds}
    for name, gate in gates.items():
        if _class(gate) in _FIXED or not _only_scales(gate):
            raise UserError(
                f"{name} ({type(gate).__name__}) does more than scale what it is given, so it cannot "
                "be taken out: leave replace_attention out"
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
    """Whether a gate multiplies by factors, and holds no activation of its block, as far as is seen.

    The classes of timm and torchvision are known, and of others the channels are seen from their first
    layer. A pixel of the other sign gets about the same factor, unless an activation follows.
    """
    if registered_name(gate) or type(gate).__module__.startswith(("timm.", "torchvision.")):
        return True
    like = next(gate.parameters(), torch.empty(0))
    layer = next((p for p in gate.parameters() if p.ndim in (2, 4)), None)
    if like.is_meta:
        return True
    mode = gate.training
    channels = 16 if layer is None else layer.shape[1]
    # No random numbers: they would be missing from the model's stream.
    x = torch.linspace(1, 2, channels * 32 * 32, device=like.device, dtype=like.dtype)
    x = x.reshape(1, channels, 32, 32)
    other = x.clone()
    other[..., 16, 16] *= -1
    try:
        with torch.no_grad():
            gate.eval()
            one, two = gate(x)[..., 16, 16], gate(other)[..., 16, 16]
    except Exception:  # of other channels than the first weight's
        return True
    finally:
        gate.train(mode)
    return bool(torch.allclose(one, -two, rtol=0.3))
