"""A weight file from one layout to another: ours, or that of whoever is to read it next."""

from __future__ import annotations

import io
import math
import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pooch
import safetensors.torch
import torch
from timm.models import save_for_hf
from torch import Tensor

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
from ecanet.models.weights.files import HUB_WEIGHTS, NOTES_KEY, weight_file
from ecanet.models.weights.layouts import to_theirs
from ecanet.models.weights.load import LoadReport, Weights, read_weights
from ecanet.models.weights.save import save_weights


@dataclass
class Conversion:
    """What :func:`convert_weights` did. ``str`` of it is for people."""

    weights: Weights
    out: Path
    left_out: list[str] = field(default_factory=list)
    """Names, under ours, of weights that the new layout has no place for."""
    preprocessing: Preprocessing | None = None
    """Of the images, where the source says it."""
    classes: list[str] | None = None
    """Names of the classes, where the source tells them."""

    def __post_init__(self) -> None:
        said = self.weights.metadata
        self.preprocessing = Preprocessing.from_metadata(said)
        self.classes = class_names(said, self.weights.num_classes)

    @property
    def description(self) -> dict[str, str]:
        return describe(self.preprocessing, self.classes)

    def __str__(self) -> str:
        lines = [str(self.weights), str(self.weights.report)]
        if not self.weights.num_classes:
            lines.append("it is a backbone alone, without a classifier")
        if self.left_out:
            lines.append(f"no place in the new layout: {', '.join(self.left_out)}")
        return "\n".join(lines)


def convert_weights(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    to: str = "ecanet",
    *,
    partial: bool = False,
    model: str | None = None,
) -> Conversion:
    """Write the weights of ``source`` to ``out`` in another layout; the values stay bit for bit.

    Args:
        source: as in :func:`ecanet.load_weights`.
        out: the file, or with ``to="hub"`` the folder, to write. A file that is there is replaced
            at once by the whole new one.
        to: ecanet (safetensors), official, torchvision, timm, mmdetection (pickles, or safetensors
            if ``out`` ends so), or hub (a folder that timm loads as ``local-dir:FOLDER``).
        partial: where weights are missing, surplus or of another shape, write those that fit.
        model: as in :func:`ecanet.models.weights.load.read_weights`.

    Raises:
        UserError: the file cannot be read or is not complete, the layout has no such model, or
            ``out`` cannot be written.
        OSError: the disk is full; an old ``out`` is intact.
    """
    out = Path(out).expanduser()
    if to not in LAYOUTS:
        raise UserError(f"unknown layout {to!r}: use {', '.join(LAYOUTS)}")
    file = weight_file(source)
    _check_out(out, file, to)
    weights = read_weights(source, model)
    if not weights.report.complete and not partial:
        raise UserError(f"{source} is not complete: {_in_one_line(weights.report)} (or --partial)")
    weights.state_dict = {name: weights.state_dict[name] for name in weights.report.matched}
    conversion = Conversion(weights, out)
    try:
        LAYOUTS[to](conversion, file)
    except OSError as error:
        if disk_is_full(error):
            raise
        raise UserError(f"{out} cannot be written: {error.strerror}") from error
    return conversion


def _check_out(out: Path, file: Path, to: str) -> None:
    written = out / HUB_WEIGHTS if to == "hub" else out
    if written.exists() and written.samefile(file):
        raise UserError(f"{out} is the file to convert: give the new one another name")
    if to == "hub" and out.is_file():
        raise UserError(f"{out} is a file, and --to hub writes a folder")
    if to != "hub" and out.is_dir():
        raise UserError(f"{out} is a folder: name a file, or say --to hub")
    is_safe = out.suffix == ".safetensors"
    if to == "ecanet" and not is_safe:
        raise UserError(f"{out}: ecanet's files end in .safetensors (other layouts: see --to)")
    if to in ("official", "mmdetection") and is_safe:
        raise UserError(f"{out}: {to} reads torch pickles: let the name end in .pth")


# ---- the layouts


def _write_ecanet(conversion: Conversion, file: Path) -> None:
    weights = conversion.weights
    further = {
        **weights.metadata,
        "source_layout": weights.layout,
        "source_sha256": pooch.file_hash(str(file)),
    }
    for key in ("kernel_sizes", PREPROCESSING, CLASSES, TIMM_CONFIG, TIMM_LABELS):
        further.pop(key, None)
    if weights.kernel_sizes is not None:
        further["kernel_sizes"] = ",".join(map(str, weights.kernel_sizes))
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
        further=further,
    )


def _write_official(conversion: Conversion, file: Path) -> None:
    weights = conversion.weights
    _check_ours(weights, "official")
    if weights.model_args:
        raise UserError(f"the official code has no {_arguments(weights)}: take --to ecanet or hub")
    names = to_theirs(weights.state_dict, "official")
    with torch.device("meta"):
        parameters = create_model(weights.model, **weights.arguments()).parameters()
        # The state of a fresh optimizer: with none, the old training program could not resume.
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


def _write_torchvision(conversion: Conversion, file: Path) -> None:
    _check_ours(conversion.weights, "torchvision")
    _write_plain(conversion, to_theirs(conversion.weights.state_dict, "torchvision"))


def _write_timm(conversion: Conversion, file: Path) -> None:
    _check_ours(conversion.weights, "timm")
    _write_plain(conversion, to_theirs(conversion.weights.state_dict, "timm"))


def _write_mmdetection(conversion: Conversion, file: Path) -> None:
    weights = conversion.weights
    _check_ours(weights, "mmdetection")
    names = to_theirs(weights.state_dict, "mmdetection")
    conversion.left_out = [name for name in weights.state_dict if name.startswith("fc.")]
    state = {f"backbone.{name}": tensor for name, tensor in names.items()}
    content = {"meta": {"arch": weights.model}, "state_dict": state}
    # Names of classes would be taken for a detector's.
    write_atomic(conversion.out, pickled(content | describe(conversion.preprocessing, None)))


def _write_hub(conversion: Conversion, file: Path) -> None:
    weights, out = conversion.weights, conversion.out
    _check_ours(weights, "hub")
    if weights.model_args and not weights.model.startswith("eca_"):
        raise UserError(f"timm's {weights.model} takes no {_arguments(weights)}: take --to ecanet")
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
        # timm wants a word on it: where the source has none, what evaluate would take.
        described = input_preprocessing(model, None, weights.metadata)
        config["pretrained_cfg"] = described.to_timm()
    if conversion.classes is not None:
        config["label_names"] = conversion.classes
    out.mkdir(parents=True, exist_ok=True)
    # Each file appears whole, the description last.
    with temporary_folder(out) as folder:
        save_for_hf(
            model, str(folder), model_config=config, model_args=kept, safe_serialization=True
        )
        for name in (HUB_WEIGHTS, "config.json"):
            write_atomic(out / name, (folder / name).read_bytes())


LAYOUTS: dict[str, Callable[[Conversion, Path], None]] = {
    "ecanet": _write_ecanet,
    "official": _write_official,
    "torchvision": _write_torchvision,
    "timm": _write_timm,
    "mmdetection": _write_mmdetection,
    "hub": _write_hub,
}


def _write_plain(conversion: Conversion, names: dict[str, Tensor]) -> None:
    if conversion.out.suffix == ".safetensors":
        metadata = {"format": "pt", **conversion.description}
        write_atomic(conversion.out, _safetensors(names, metadata))
        return
    state: Any = OrderedDict(names)
    if conversion.description:
        state._metadata = {NOTES_KEY: conversion.description}
    write_atomic(conversion.out, pickled(state))


def _check_ours(weights: Weights, layout: str) -> None:
    """Refuse a model that the other code does not have."""
    plain = weights.model.removeprefix("eca_")
    if plain not in resnet.ARCHITECTURES and plain != "mobilenet_v2":
        raise UserError(
            f"--to {layout} is for ResNet-18 to 152 and MobileNetV2, and the file holds {weights.model}: "
            "take --to ecanet"
        )
    if weights.attention not in ("none", "eca"):
        raise UserError(
            f"{layout} has no attention module like {weights.attention}: take --to ecanet"
        )


def _safetensors(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    return safetensors.torch.save({n: t.contiguous() for n, t in tensors.items()}, metadata)


def pickled(content: Any) -> memoryview:
    """Return what torch.save would write."""
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


def _in_one_line(report: LoadReport) -> str:
    problems = report.problems()
    more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
    return "; ".join(problems[:5]) + more
