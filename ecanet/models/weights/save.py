"""Our own weight files: safetensors with a description of the model in their metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from ecanet.data.preprocessing import Preprocessing, describe
from ecanet.files import write_atomic
from ecanet.models.weights.description import FORMAT_KEY

_FORMAT_VERSION = "1"


def save_weights(
    path: Path,
    tensors: Mapping[str, Tensor],
    *,
    model: str,
    attention: str,
    num_classes: int,
    in_chans: int = 3,
    model_args: Mapping[str, Any] | None = None,
    preprocessing: Preprocessing | None = None,
    classes: Sequence[str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write ``tensors``, a model's ``state_dict``, to ``path`` atomically, with a description of the model.

    Args:
        model: name for :func:`ecanet.create_model`.
        attention: as in :func:`ecanet.create_attention`.
        model_args: further arguments of the model's builder, such as the stem.
        preprocessing: how a classifier's images are prepared.
        classes: names of a classifier's outputs.
        metadata: further entries of the caller.

    Raises:
        OSError: the disk is full; an existing file is intact.
    """
    entries = {
        **(metadata or {}),
        **describe(preprocessing, classes),
        "format": "pt",
        FORMAT_KEY: _FORMAT_VERSION,
        "model": model,
        "attention": attention,
        "num_classes": str(num_classes),
        "in_chans": str(in_chans),
        "model_args": json.dumps(dict(model_args or {})),
    }
    plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_atomic(path, safetensors.torch.save(plain, entries))
