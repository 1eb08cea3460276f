"""Converts weight files between layouts."""

from __future__ import annotations

import io
import json
import logging
import math
import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pooch
import safetensors.torch
import torch
from timm.models import save_for_hf

from ecanet.data.preprocessing import (
    CLASSES,
    PREPROCESSING,
    TIMM_CONFIG,
    TIMM_LABELS,
    Preprocessing,
    class_names,
    describe,
)
from ecanet.errors import UserError, disk_is_full
from ecanet.files import temporary_folder, write_atomic
from ecanet.models import resnet
from ecanet.models.factory import create_model
from ecanet.models.inputs import input_preprocessing
from ecanet.models.weights.description import FOLDED
from ecanet.models.weights.files import NOTES_KEY, TIMM_MODEL, weight_file
from ecanet.models.weights.hub import CONFIG, WEIGHTS
from ecanet.models.weights.identify import Weights, read_weights
from ecanet.models.weights.layouts import from_ecanet
from ecanet.models.weights.match import not_finite
from ecanet.models.weights.save import save_weights

log = logging.getLogger(__name__)


@dataclass
class Conversion:
    """What :func:`convert_weights` did. ``str()`` of it is a summary."""

    weights: Weights
    out: Path
    left_out: list[str] = field(default_factory=list)
    """Weights, by our names, that the new layout cannot hold."""
    preprocessing: Preprocessing | None = None
    """How images are prepared, if the source says so."""
    classes: list[str] | None = None
    """Names of the classes, if the source has them."""

    def __post_init__(self) -> None:
        metadata = self.weights.metadata
        self.preprocessing = Preprocessing.from_metadata(metadata)
        self.classes = class_names(metadata, self.weights.num_classes)

    @property
    def description(self) -> dict[str, str]:
        """Metadata that describe images and classes."""
        return describe(self.preprocessing, self.classes)

    def __str__(self) -> str:
        lines = [str(self.weights), str(self.weights.report)]
        if not self.weights.num_classes:
            lines.append("backbone only, without a classifier")
        if left_out := ", ".join(self.left_out):
            lines.append(f"left out, as the new layout has no place for them: {left_out}")
        return "\n".join(lines)


def convert_weights(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    to: str = "ecanet",
    *,
    partial: bool = False,
    model: str | None = None,
) -> Conversion:
    """Write the weights of ``source`` to ``out`` in another layout; the values stay bit-identical.

    Args:
        source: as in :func:`ecanet.load_weights`.
        out: the file, or with ``to="hub"`` the folder, to write. An existing file is replaced
            atomically.
        to: ecanet (safetensors), official, torchvision, timm, mmdetection (pickles, or safetensors
            if ``out`` ends so), or hub (a folder that timm loads as ``local-dir:FOLDER``).
        partial: write the weights that fit, even if some are missing, surplus or of another shape.
        model: as in :func:`ecanet.models.weights.identify.read_weights`.

    Raises:
        UserError: the file cannot be read or is incomplete, the layout cannot hold the model, or
            ``out`` cannot be written.
        OSError: the disk is full; an existing ``out`` is intact.
    """
    out = Path(out).expanduser()
    if to not in LAYOUTS:
        raise UserError(f"unknown layout {to!r}: use {', '.join(LAYOUTS)}")
    file = weight_file(source)
    _check_out(out, file, to)
    weights = read_weights(source, model)
    if not weights.report.complete and not partial:
        raise UserError(f"{source} is incomplete: {weights.report.first_problems()} (or --partial)")
    weights.state_dict = {name: weights.state_dict[name] for name in weights.report.matched}
    phrase = not_finite(weights.state_dict)
    if phrase:
        log.warning("%s: %s. They are written as they are", source, phrase)
    conversion = Conversion(weights, out)
    try:
        LAYOUTS[to](conversion, file)
    except OSError as error:
        if disk_is_full(error):
            raise
        raise UserError(f"{out} cannot be written: {error.strerror}") from error
    return conversion


def _check_out(out: Path, file: Path, to: str) -> None:
    written = out / WEIGHTS if to == "hub" else out
    if written.exists() and written.samefile(file):
        raise UserError(f"{out} is the file to convert: choose another name for the new one")
    if to == "hub" and out.is_file():
        raise UserError(f"{out} is a file, and --to hub writes a folder")
    if to != "hub" and out.is_dir():
        raise UserError(f"{out} is a folder: name a file, or give --to hub")
    is_safe = out.suffix == ".safetensors"
    if to == "ecanet" and not is_safe:
        raise UserError(f"{out}: ecanet's files end in .safetensors (other layouts: see --to)")
    if to in ("official", "mmdetection") and is_safe:
        raise UserError(f"{out}: {to} reads torch pickles: let the name end in .pth")


# ---- one writer per layout


def write_ecanet(conversion: Conversion, file: Path) -> None:
    """Write weights in our own layout; ``file`` is what they come from."""
    weights = conversion.weights
    replaced = (
        "kernel_sizes",
        FOLDED,
        PREPROCESSING,
        CLASSES,
        TIMM_CONFIG,
        TIMM_LABELS,
        *TIMM_MODEL,
    )
    metadata = {key: value for key, value in weights.metadata.items() if key not in replaced}
    metadata["source_layout"] = weights.layout
    metadata["source_sha256"] = pooch.file_hash(str(file))
    if weights.kernel_sizes is not None:
        metadata["kernel_sizes"] = ",".join(map(str, weights.kernel_sizes))
    if weights.folded:
        metadata[FOLDED] = json.dumps(weights.folded)
    save_weights(
        conversion.out,
        weights.state_dict,
        model=weights.model,
        attention=weights.attention,
        num_classes=weights.num_classes,
        in_chans=weights.in_chans,
        model_args=weights.model_args,
        preprocessing=conversion.preprocessing,
        classes=conversion.classes,
        metadata=metadata,
    )


def _write_official(conversion: Conversion, file: Path) -> None:
    weights = conversion.weights
    _check_ours(weights, "official")
    if weights.model_args:
        raise UserError(f"the official code has no {_arguments(weights)}: use --to ecanet or hub")
    names = from_ecanet(weights.state_dict, "official")
    with torch.device("meta"):
        parameters = create_model(weights.model, **weights.arguments()).parameters()
        # A new optimizer's state, without which the old training program could not resume.
        optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-4)
    content = {
        "epoch": int(_number(weights.metadata.get("epoch"))),
        "arch": weights.model,
        "state_dict": {f"module.{name}": tensor for name, tensor in names.items()},
        "best_prec1": _number(weights.metadata.get("best_prec1")),
        "optimizer": optimizer.state_dict(),
        **conversion.description,
    }
    write_atomic(conversion.out, pickled(content))


def _write_plain(conversion: Conversion, file: Path, layout: str) -> None:
    _check_ours(conversion.weights, layout)
    names = from_ecanet(conversion.weights.state_dict, layout)
    write_state_dict(conversion.out, names, conversion.description)


def write_state_dict(out: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write tensors and metadata to ``out``, safetensors by its name or else a pickle, atomically."""
    if out.suffix == ".safetensors":
        plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
        write_atomic(out, safetensors.torch.save(plain, {"format": "pt", **metadata}))
        return
    state: Any = OrderedDict(tensors)
    if metadata:
        # With the modules' versions, not under a key of its own, so that load_state_dict accepts it.
        state._metadata = {NOTES_KEY: metadata}
    write_atomic(out, pickled(state))


def _write_mmdetection(conversion: Conversion, file: Path) -> None:
    weights = conversion.weights
    _check_ours(weights, "mmdetection")
    names = from_ecanet(weights.state_dict, "mmdetection")
    conversion.left_out = [name for name in weights.state_dict if name.startswith("fc.")]
    state = {f"backbone.{name}": tensor for name, tensor in names.items()}
    content = {"meta": {"arch": weights.model}, "state_dict": state}
    # Class names would be taken for those of a detector.
    write_atomic(conversion.out, pickled(content | describe(conversion.preprocessing, None)))


def _write_hub(conversion: Conversion, file: Path) -> None:
    weights, out = conversion.weights, conversion.out
    _check_ours(weights, "hub")
    if weights.model_args and not weights.model.startswith("eca_"):
        raise UserError(f"timm's {weights.model} takes no {_arguments(weights)}: use --to ecanet")
    if weights.report.missing or weights.report.mismatched:
        raise UserError("a Hub folder needs all weights: --partial is for the other layouts")
    arguments = weights.arguments()
    model = create_model(weights.model, **arguments)
    model.load_state_dict(weights.state_dict, strict=False, assign=True)  # keeps half precision
    kept = {name: arguments[name] for name in weights.model_args}
    if weights.kernel_sizes is not None:
        kept["kernel_sizes"] = list(weights.kernel_sizes)
    if weights.in_chans != 3:
        kept["in_chans"] = weights.in_chans
    size: Any = model.pretrained_cfg["input_size"]  # type: ignore[index]
    config: dict[str, Any] = {"pretrained_cfg": {"input_size": [weights.in_chans, *size[1:]]}}
    if weights.in_chans in (1, 3):
        # timm requires a description: if the source has none, the one that evaluate would assume.
        described = input_preprocessing(model, None, weights.metadata)
        config["pretrained_cfg"] = described.to_timm()
    if conversion.classes is not None:
        config["label_names"] = conversion.classes
    out.mkdir(parents=True, exist_ok=True)
    # Each file is written atomically, config.json last.
    with temporary_folder(out) as folder:
        save_for_hf(
            model, str(folder), model_config=config, model_args=kept, safe_serialization=True
        )
        for name in (WEIGHTS, CONFIG):
            write_atomic(out / name, (folder / name).read_bytes())


LAYOUTS: dict[str, Callable[[Conversion, Path], None]] = {
    "ecanet": write_ecanet,
    "official": _write_official,
    "torchvision": partial(_write_plain, layout="torchvision"),
    "timm": partial(_write_plain, layout="timm"),
    "mmdetection": _write_mmdetection,
    "hub": _write_hub,
}


def _check_ours(weights: Weights, layout: str) -> None:
    """Refuse a model that the other code does not support."""
    plain = weights.model.removeprefix("eca_")
    if plain not in resnet.ARCHITECTURES and plain != "mobilenet_v2":
        raise UserError(
            f"--to {layout} is for ResNet-18 to 152 and MobileNetV2, and the file holds {weights.model}: "
            "use --to ecanet"
        )
    if weights.attention not in ("none", "eca"):
        raise UserError(f"{layout} has no attention module {weights.attention}: use --to ecanet")
    if weights.folded:
        raise UserError(f"{layout} has attention in every block or none: use --to ecanet")


def pickled(content: Any) -> memoryview:
    """Return the bytes that torch.save would write."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getbuffer()


def _number(text: str | None) -> float:
    try:
        number = float(text or 0)
    except ValueError:
        return 0.0
    return number if math.isfinite(number) else 0.0


def _arguments(weights: Weights) -> str:
    return ", ".join(f"{name}={value}" for name, value in weights.model_args.items())
