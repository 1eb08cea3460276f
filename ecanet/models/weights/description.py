"""Reads the description of the model in a weight file's metadata into typed and bounded values.

A file can come from anywhere, and its metadata become arguments of the call that builds its model. So only
what ecanet itself writes is read, each value checked for type and bounds, and everything else is refused by
name: no value can be a path, a URL or a request to download. Nor can it describe a model much larger than
the weights: models are first built without memory (:func:`outline`).
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from torch import Tensor, nn

from ecanet.errors import UserError, as_user_error, one_line, shown
from ecanet.models.factory import list_models
from ecanet.models.insert import parse_kernel_sizes, parse_spec
from ecanet.models.weights.files import TIMM_MODEL

# Metadata key of the format version of files that ecanet wrote.
FORMAT_KEY = "ecanet_format"
# That of the places whose attention modules were folded.
FOLDED = "folded"

# Returns the value to use, or raises ValueError with a description of valid values.
Check = Callable[[Any], Any]

_NAME = re.compile(r"(torchvision/)?[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
# Our names of models that timm builds for us.
_OURS_IN_TIMM = {"mobilenetv2_100": "mobilenet_v2"}
# Values that a model may have beyond twice those of its file: cosine bases and the like.
_CONSTANTS = 2**26
# Largest size in an attention spec that no weight has, such as that of FcaNet's cosine bases.
_SPEC_SIZE = 1024


@dataclass
class Description:
    """What a file's metadata says about its model; None where it says nothing."""

    model: str | None = None
    attention: str | None = None
    num_classes: int | None = None
    in_chans: int | None = None
    kernel_sizes: str | None = None
    model_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the model's builder that describe its stem."""
    folded: list[str] = field(default_factory=list)
    """Places of the model whose attention module was folded into the layer before it, and is gone."""


def read_description(
    file: str | os.PathLike[str], metadata: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> Description:
    """Read the description of the model in a file's ``metadata``, ours or of a Hub folder.

    Files of other programs have none. ``classes`` and other entries that do not describe the model stay in
    ``metadata``.

    Raises:
        UserError: a value has the wrong type or is larger than any of the file's ``tensors``, or
            ecanet does not write such an entry.
    """
    largest = largest_size(tensors)
    known_args: dict[str, Check] = {
        "stem": one_of("imagenet", "cifar"),
        "stem_type": one_of("", "deep", "deep_tiered"),
        "stem_width": whole(1, largest),
        "avg_down": one_of(True, False),
        "channels": several(whole(1, largest), 7),
        "replace_attention": one_of(True, False),
    }
    if FORMAT_KEY not in metadata:
        return _of_hub_folder(file, metadata, largest, known_args)
    known: dict[str, Check] = {
        "model": model_name,
        "attention": attention_spec(largest),
        "num_classes": _written(whole(0, largest)),
        "in_chans": _written(whole(1, largest)),
        "kernel_sizes": kernel_sizes(largest),
    }
    given = {name: value for name, value in metadata.items() if name in known}
    found = Description(**checked(file, "metadata", given, known))
    model_args = read_json(file, "model_args", metadata.get("model_args", "{}"))
    found.model_args = checked(file, "model_args", model_args, known_args)
    found.folded = read_folded(file, metadata)
    return found


def read_folded(file: str | os.PathLike[str], metadata: Mapping[str, str]) -> list[str]:
    """Return the places of a model whose attention modules were folded, by its file's ``metadata``.

    Raises:
        UserError: they are no list of names.
    """
    if FOLDED not in metadata:
        return []
    names = read_json(file, FOLDED, metadata[FOLDED])
    folded: list[str] = checked(
        file, "metadata", {FOLDED: names}, {FOLDED: several(text(200), 10_000)}
    )[FOLDED]
    return folded


def _of_hub_folder(
    file: str | os.PathLike[str],
    metadata: Mapping[str, str],
    largest: int,
    known_args: Mapping[str, Check],
) -> Description:
    """Read what ``config.json`` says about the model; nothing where timm has no model of that name."""
    name, num_classes, model_args = (
        read_json(file, key, metadata.get(key, "null")) for key in TIMM_MODEL
    )
    if not isinstance(name, str) or not _NAME.fullmatch(name) or not timm.is_model(name):
        return Description()
    name = _OURS_IN_TIMM.get(name, name)
    counts = {"num_classes": optional(whole(0, largest)), "in_chans": optional(whole(1, largest))}
    # Not to be given to our builders: shapes imply the kernel sizes, and there is one pooling.
    implied: dict[str, Check] = {}
    if name in list_models():
        implied = {"kernel_sizes": kernel_sizes(largest), "global_pool": one_of("avg")}
    known = {**known_args, **implied} if implied else {"global_pool": text(20)}
    given = {
        "num_classes": num_classes,
        **checked(file, "model_args in config.json", model_args or {}, counts | known),
    }
    counted = {count: given.pop(count, None) for count in counts}
    found = Description(name, **checked(file, "config.json", counted, counts))
    found.model_args = {n: v for n, v in given.items() if n not in implied}
    return found


def largest_size(tensors: Mapping[str, Tensor]) -> int:
    """Return the largest dimension of any tensor, which bounds widths, kernels and numbers of classes."""
    return max((max(t.shape) for t in tensors.values() if t.ndim and t.numel()), default=1)


def outline(
    file: str | os.PathLike[str], build: Callable[[], nn.Module], tensors: Mapping[str, Tensor]
) -> nn.Module:
    """Build the model of a file on the meta device, where weights take no memory.

    Args:
        file: for the message.
        build: builds the model.
        tensors: the file's.

    Raises:
        UserError: the model cannot be built, or would be far larger than the file.
    """
    # Sizes that a builder does not expect can raise anything.
    with (
        as_user_error(f"{file}: the model that it describes cannot be built"),
        torch.device("meta"),
    ):
        model = build()
    size = sum(t.numel() for t in (*model.parameters(), *model.buffers()))
    actual = sum(t.numel() for t in tensors.values())
    if size > 2 * actual + _CONSTANTS:
        raise UserError(
            f"{file} holds {actual:,} values, and the model that it describes {size:,}: they "
            "do not belong together"
        )
    return model


# ---- values


def read_json(file: str | os.PathLike[str], name: str, text: str) -> Any:
    """Parse the JSON ``text``, the entry ``name`` of a file's metadata.

    Raises:
        UserError: it is no JSON, or too deeply nested.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{file}: {name} in its metadata is not JSON as ecanet writes it ({one_line(error, 80)})"
        ) from None


def checked(
    file: str | os.PathLike[str], where: str, values: Any, known: Mapping[str, Check]
) -> dict[str, Any]:
    """Return ``values``, each checked by its entry in ``known``.

    Raises:
        UserError: ``values`` is no dict, or one of them is not ``known`` or fails its check.
    """
    if not isinstance(values, dict):
        raise UserError(f"{file}: its {where} should be an object of names and values")
    unknown = [name for name in values if name not in known]
    if unknown:
        raise UserError(
            f"{file}: its {where} has {', '.join(map(shown, unknown[:5]))}, which ecanet does not "
            f"write and will not act on (it writes {', '.join(known)})"
        )
    results = {}
    for name, value in values.items():
        try:
            results[name] = known[name](value)
        except ValueError as error:
            raise UserError(f"{file}: {name} is {shown(value)} in its {where}: {error}") from None
    return results


def whole(low: int, high: int) -> Check:
    """Accept a whole number from ``low`` to ``high``."""
    return _accept(
        lambda value: type(value) is int and low <= value <= high,
        f"a file of this size can have a whole number from {low} to {high}",
    )


def one_of(*values: Any) -> Check:
    """Accept one of some values."""
    # By type too: to Python, 1 is True.
    return _accept(
        lambda value: (type(value), value) in [(type(known), known) for known in values],
        f"it can be {', '.join(map(repr, values))}",
    )


def optional(check: Check) -> Check:
    """Accept None beside what ``check`` accepts."""
    return lambda value: None if value is None else check(value)


def several(check: Check, most: int) -> Check:
    """Accept a list of 1 to ``most`` values, each accepted by ``check``."""

    def check_all(value: Any) -> list[Any]:
        if not isinstance(value, list) or not 1 <= len(value) <= most:
            raise ValueError(f"it can be a list of 1 to {most} values")
        return [check(one) for one in value]

    return check_all


def one_or_several(check: Check, most: int) -> Check:
    """Accept what ``check`` accepts, or a list of up to ``most`` such values."""
    return lambda value: (several(check, most) if isinstance(value, list) else check)(value)


def text(most: int) -> Check:
    """Accept a string of up to ``most`` characters."""
    return _accept(
        lambda value: isinstance(value, str) and len(value) <= most,
        f"it can be a text of up to {most} characters",
    )


def model_name(value: Any) -> str:
    """Accept what can be the name of a model, but no path or URL (``hf-hub:...``)."""
    if not _NAME.fullmatch(text(100)(value)):
        raise ValueError("a model's name is made of letters, digits, _ and dots")
    return value


def attention_spec(largest: int) -> Check:
    """Accept an attention spec whose arguments do not exceed ``largest``."""

    def check(value: Any) -> str:
        for argument in parse_spec(text(200)(value))[1].values():
            _check_argument(argument, max(largest, _SPEC_SIZE))
        return value

    return check


def kernel_sizes(largest: int) -> Check:
    """Accept the kernel size of each stage, as digits or a list, up to what ``largest`` channels can fill."""
    size = whole(1, 2 * largest)

    def check(value: Any) -> Any:
        sizes = value
        if isinstance(value, str):
            try:
                sizes = list(parse_kernel_sizes(text(200)(value)))
            except UserError as error:
                raise ValueError(str(error)) from None
        several(size, 100)(sizes)
        return value

    return check


def _accept(fits: Callable[[Any], bool], valid: str) -> Check:
    """Accept what ``fits``; ``valid`` describes that."""

    def check(value: Any) -> Any:
        if not fits(value):
            raise ValueError(valid)
        return value

    return check


def _check_argument(value: Any, largest: int) -> None:
    if isinstance(value, (list, tuple)):
        for one in value:
            _check_argument(one, largest)
    elif isinstance(value, int) and abs(value) > largest:
        raise ValueError(f"a file of this size can have arguments up to {largest}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("its arguments must be finite")
    elif not isinstance(value, (int, float, str, type(None))):
        raise ValueError("its arguments can be numbers and words")


def _written(check: Check) -> Check:
    """Accept the digits of a number that ``check`` accepts."""
    return lambda value: check(int(value) if re.fullmatch(r"[0-9]{1,18}", value) else value)
