"""Names of weights in other layouts, translated to ours and back.

Ours are those of torchvision (ResNets) or timm (MobileNetV2), with ``BLOCK.attention`` for an attention
module. The other layouts differ as follows:

* official (github.com/BangguWu/ECANet): ``layerL.B.eca``; MobileNetV2 as in torchvision, with the
  ECA layer last in each block's ``features.N.conv``; DataParallel's ``module.`` before every name;
* timm: ``layerL.B.se`` for every attention module; the layers of timm's SE are 1x1 convolutions;
* torchvision: no attention; ``layerL.B.bn3.attention`` comes from :func:`ecanet.insert_attention`;
* MMDetection: ``backbone.`` before every name, with the detector's heads beside it;
* MMPretrain: the same, with the classifier beside it as ``head.fc``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ecanet.errors import UserError

# Prefixes added by DataParallel, torch.compile, training programs and detectors.
_WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "encoder.", "backbone.", "body.")

_OTHER_ATTENTION = re.compile(r"^(layer\d+\.\d+)\.(?:eca|se|attn|bn\d\.attention)\.")
_OUR_ATTENTION = re.compile(r"^(layer\d+\.\d+)\.attention\.")

_MMPRETRAINS_HEAD = "head.fc."

# Counters of averaged models; not weights.
_COUNTERS = {"n_averaged", "steps"}


@dataclass
class Renamed:
    """Weights under our names."""

    tensors: dict[str, Tensor]
    unrelated: list[str]
    """Names of what is beside the model in the file: the heads of a detector, a teacher."""
    layout: str
    """The layout of the file."""


def unwrapped(tensors: dict[str, Tensor]) -> Iterator[tuple[dict[str, Tensor], list[str]]]:
    """Remove the prefixes of wrappers one by one.

    Yields:
        The weights, first unchanged and then after each step, and the names that lacked the prefix.
        What looks like a wrapper's prefix may be the model's own, such as ``encoder.`` in a ViT.
    """
    unrelated: list[str] = []
    prefix: str | None = ""
    while prefix is not None:
        yield tensors, unrelated
        prefix = next((p for p in _WRAPPERS if any(name.startswith(p) for name in tensors)), None)
        if prefix is not None:
            inside = {n: n[len(prefix) :] for n in tensors if n.startswith(prefix)}
            if prefix == "backbone.":
                inside |= {n: n[len("head.") :] for n in tensors if n.startswith(_MMPRETRAINS_HEAD)}
            unrelated = unrelated + [n for n in tensors if n not in inside and n not in _COUNTERS]
            tensors = {name: tensors[n] for n, name in inside.items()}


def to_ecanet(tensors: dict[str, Tensor]) -> Renamed:
    """Translate the names of any known layout to ours; unknown names stay as they are."""
    *_, (bare, unrelated) = unwrapped(tensors)
    layout = _layout(tensors, bare)
    if "features.18.0.weight" in bare:
        return Renamed({_rename(n, _MOBILENET): t for n, t in bare.items()}, unrelated, layout)
    renamed = {}
    for name, tensor in bare.items():
        ours = _OTHER_ATTENTION.sub(r"\1.attention.", name)
        if ours != name and tensor.ndim == 4 and re.search(r"\.fc[12]\.weight$", ours):
            tensor = tensor.flatten(1)
        renamed[ours] = tensor
    return Renamed(renamed, unrelated, layout)


def from_ecanet(tensors: dict[str, Tensor], layout: str) -> dict[str, Tensor]:
    """Translate our names of a ResNet or MobileNetV2, plain or with ECA, to another layout.

    The result has no wrapper's prefix. MMDetection's backbones have no classifier: it is left out.

    Raises:
        UserError: the layout cannot name such a model.
    """
    is_mobilenet = "conv_stem.weight" in tensors
    has_attention = any(".attention." in name for name in tensors)
    if is_mobilenet and layout == "mmdetection":
        raise UserError("--to mmdetection is for ResNets: use --to ecanet or hub for MobileNetV2")
    if is_mobilenet and has_attention and layout in ("timm", "torchvision"):
        raise UserError(
            f"{layout} has no names for ECA in MobileNetV2: use --to official, ecanet or hub"
        )
    if is_mobilenet:
        names = {} if layout == "timm" else {ours: theirs for theirs, ours in _MOBILENET.items()}
        return {_rename(name, names): tensor for name, tensor in tensors.items()}
    norm = "bn3" if "layer1.0.conv3.weight" in tensors else "bn2"
    attention = {"timm": "se", "torchvision": f"{norm}.attention"}.get(layout, "eca")
    return {
        _OUR_ATTENTION.sub(rf"\1.{attention}.", name): tensor
        for name, tensor in tensors.items()
        if not (layout == "mmdetection" and name.startswith("fc."))
    }


def _layout(tensors: dict[str, Tensor], bare: dict[str, Tensor]) -> str:
    if any(name.startswith("backbone.") for name in tensors):
        is_classifier = any(name.startswith(_MMPRETRAINS_HEAD) for name in tensors)
        return "mmpretrain" if is_classifier else "mmdetection"
    if any(re.search(r"\.eca\.|^features\.\d+\.conv\.\d\.conv\.", name) for name in bare):
        return "official"
    if any(re.search(r"\d\.attention\.", name) for name in bare):
        inserted = any(re.search(r"\.bn\d\.attention\.", name) for name in bare)
        return "torchvision" if inserted else "ecanet"
    if any(re.search(r"\.se\.|^conv1\.0\.|^conv_stem\.", name) for name in bare):
        return "timm"
    return "torchvision"


def _mobilenet_names() -> dict[str, str]:
    """Return our names of the modules of torchvision's MobileNetV2; blocks end with attention."""
    first = {"0.0": "conv_dw", "0.1": "bn1", "1": "conv_pw", "2": "bn2", "3": "attention"}
    other = {
        "0.0": "conv_pw",
        "0.1": "bn1",
        "1.0": "conv_dw",
        "1.1": "bn2",
        "2": "conv_pwl",
        "3": "bn3",
        "4": "attention",
    }
    names = {
        "features.0.0": "conv_stem",
        "features.0.1": "bn1",
        "features.18.0": "conv_head",
        "features.18.1": "bn2",
        "classifier.1": "classifier",
    }
    repeats = (1, 2, 3, 4, 3, 3, 1)
    blocks = [(stage, block) for stage, count in enumerate(repeats) for block in range(count)]
    for number, (stage, block) in enumerate(blocks, start=1):
        for theirs, ours in (other if stage else first).items():
            names[f"features.{number}.conv.{theirs}"] = f"blocks.{stage}.{block}.{ours}"
    return names


_MOBILENET = _mobilenet_names()


def _rename(name: str, modules: dict[str, str]) -> str:
    """Replace the module at the start of a weight's name, if it is one of ``modules``."""
    module, rest = name, ""
    while "." in module:
        module, _, last = module.rpartition(".")
        rest = f".{last}{rest}"
        if module in modules:
            return modules[module] + rest
    return name
