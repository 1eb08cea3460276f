"""What is in a weight file, whoever wrote it. Nothing that a file says is ever run.

torch pickles (``.pth.tar``, ``.pth``, ``.pt``, ``.bin``, ``.ckpt``) and safetensors are told apart by
their bytes; a folder of the Hugging Face Hub is read by its weight file.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ecanet.data.preprocessing import TIMM_CONFIG, TIMM_LABELS
from ecanet.errors import UserError

HUB_WEIGHTS = "model.safetensors"
_HUB_FILES = (HUB_WEIGHTS, "pytorch_model.bin")

# Bytes of a Hub folder's config.json that are read: ImageNet-21k's names are half a megabyte.
_LARGEST_CONFIG = 2**24
# Where a plain state_dict() that we wrote says more, in its `_metadata`.
NOTES_KEY = "ecanet"

# Where training programs keep the weights. Averaged ones come first: they are those that were tested.
_CONTAINERS = (
    "state_dict_ema",
    "ema_state_dict",
    "model_ema",
    "ema",
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
)

# Plain data that training programs leave beside the weights; making one of these runs nothing else.
_HARMLESS = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(name)) for name in ("float32", "float64", "int64")),
    np.float64(0).__reduce__()[0],
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
]


# More than any network has; names are looked through again and again.
_MOST_TENSORS, _LONGEST_NAME = 20_000, 300


@dataclass
class Checkpoint:
    """The weights of a file, under its own names, and what it says of them."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def weight_file(path: str | os.PathLike[str]) -> Path:
    """Return the file that holds the weights: ``path``, or the one inside it if it is a Hub folder.

    Raises:
        UserError: there is no such file, or none in the folder.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        found = [path / name for name in _HUB_FILES if (path / name).is_file()]
        if not found:
            raise UserError(f"{path} is a folder without {' or '.join(_HUB_FILES)}: name a file")
        return found[0]
    if not path.is_file():
        raise UserError(f"there is no weight file {path}")
    return path


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Return the tensors in a weight file, on the CPU, out of whatever container they are in.

    Args:
        path: a torch pickle, a safetensors file, or a folder of the Hugging Face Hub.

    Raises:
        UserError: there is no such file, it is damaged, holds no weights, or wants to run a program.
    """
    file = weight_file(path)
    try:
        with file.open("rb") as opened:
            start = opened.read(9)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    if file.suffix == ".safetensors" or start[8:] == b"{":
        checkpoint = _read_safetensors(file)
    else:
        checkpoint = _unwrap(_unpickle(file))
    if not checkpoint.tensors:
        raise UserError(f"{file} holds no weights")
    _check_names(file, checkpoint.tensors)
    if Path(path).expanduser().is_dir():
        checkpoint.metadata.update(_hub_description(file.with_name("config.json")))
    return checkpoint


def _check_names(file: Path, names: Collection[str]) -> None:
    """Refuse names that no network has: nested or numbered without end."""
    if len(names) > _MOST_TENSORS:
        raise UserError(
            f"{file} holds {len(names):,} tensors: no network has over {_MOST_TENSORS:,}"
        )
    longest = max(names, key=len)
    if len(longest) > _LONGEST_NAME:
        raise UserError(
            f"{file} holds a tensor whose name has {len(longest):,} characters ({longest[:40]!r} ...): "
            "it is damaged or no weight file"
        )


def _read_safetensors(file: Path) -> Checkpoint:
    try:
        with safe_open(file, framework="pt") as opened:
            names = opened.keys()
            if names:
                _check_names(file, names)
            tensors = {name: opened.get_tensor(name) for name in names}
            return Checkpoint(tensors, opened.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file} is damaged or no safetensors file ({_short(error)})") from error


def _unpickle(file: Path) -> Any:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_HARMLESS):
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        if wanted is None:
            raise UserError(f"{file} is damaged or no weight file ({_short(error)})") from error
        raise UserError(
            f"{file} is refused: reading it would run {wanted[1]}, and weights need no program. "
            "Nothing of it was run"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can raise anything
        if "TorchScript" in str(error):
            raise UserError(
                f"{file} is a TorchScript program, not weights: save its state_dict()"
            ) from error
        raise UserError(f"{file} is damaged or no weight file ({_short(error)})") from error


def _unwrap(content: Any) -> Checkpoint:
    metadata: dict[str, str] = {}
    while isinstance(content, dict):
        inner = next(
            (content[key] for key in _CONTAINERS if _is_filled_dict(content.get(key))), None
        )
        if inner is None:
            break
        metadata.update(_plain_values(content))
        content = inner
    if not isinstance(content, dict):
        return Checkpoint({}, metadata)
    tensors = {
        name: value
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }
    # Beside the versions of modules that a state_dict() carries: no key of its own, so that it loads.
    noted = getattr(content, "_metadata", None)
    if isinstance(noted, dict) and isinstance(noted.get(NOTES_KEY), dict):
        metadata.update(_plain_values(noted[NOTES_KEY]))
    return Checkpoint(tensors, metadata)


def _hub_description(file: Path) -> dict[str, str]:
    """Return what a Hub folder says of images and classes, as JSON: not parsed before it is needed."""
    try:
        with file.open("rb") as opened:
            config = json.loads(opened.read(_LARGEST_CONFIG))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(config, dict):
        return {}
    return {key: json.dumps(config[key]) for key in (TIMM_CONFIG, TIMM_LABELS) if key in config}


def _is_filled_dict(value: Any) -> bool:
    return isinstance(value, dict) and bool(value)


def _plain_values(content: dict[Any, Any]) -> dict[str, str]:
    values = {}
    for key, value in content.items():
        if isinstance(value, (Tensor, np.generic)) and value.ndim == 0:
            value = value.item()
        if isinstance(key, str) and isinstance(value, (str, int, float)):
            values[key] = str(value)
    return values


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
