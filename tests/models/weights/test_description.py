"""Descriptions of models in files: what ecanet writes is read, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from ecanet.errors import UserError
from ecanet.models.weights.description import (
    FORMAT_KEY,
    largest_size,
    outline,
    read_description,
    read_json,
)

TENSORS = {"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.weight": torch.zeros(10, 512)}
OURS = {FORMAT_KEY: "1"}


def described(**metadata: str) -> Any:
    return read_description("x.safetensors", OURS | metadata, TENSORS)


def test_what_ecanet_writes_is_read() -> None:
    stem = {"stem": "cifar", "stem_type": "deep", "stem_width": 32, "avg_down": True}
    found = described(
        model="torchvision/resnet18",
        attention="eca:kernel_size=9",
        num_classes="10",
        in_chans="1",
        kernel_sizes="3,5,5,11",
        model_args=json.dumps(stem),
        classes='["a", "b"]',
        preprocessing="{}",
        source_sha256="0" * 64,
    )
    assert (found.model, found.attention) == ("torchvision/resnet18", "eca:kernel_size=9")
    assert (found.num_classes, found.in_chans, found.kernel_sizes) == (10, 1, "3,5,5,11")
    assert found.model_args == stem


def test_files_of_other_programs_have_no_description() -> None:
    found = read_description("x.pth", {"model": "no such", "model_args": "["}, TENSORS)
    assert (found.model, found.model_args) == (None, {})


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ({"model_args": '{"pretrained": true}'}, "'pretrained', which ecanet does not write"),
        ({"model_args": '{"stem": "huge"}'}, "stem is 'huge' in its model_args: .*imagenet"),
        ({"model_args": '{"avg_down": 1}'}, "avg_down is 1"),
        ({"model_args": '{"stem_width": 513}'}, "a whole number from 1 to 512"),
        ({"model_args": '{"stem_width": true}'}, "stem_width is True"),
        ({"model_args": "{"}, "not JSON as ecanet writes it"),
        ({"model_args": "3"}, "its model_args should be an object"),
        ({"model": "hf-hub:a/b"}, "model is 'hf-hub:a/b' in its metadata: a model's name"),
        ({"num_classes": "513"}, "num_classes is 513|num_classes is '513'"),
        ({"num_classes": "ten"}, "num_classes is 'ten'"),
        ({"in_chans": "0"}, "in_chans is '0'"),
        ({"kernel_sizes": "3,1025"}, "kernel_sizes is '3,1025'"),
        ({"kernel_sizes": "a"}, "write a digit for each stage"),
        ({"attention": "eca:kernel_size=1025"}, "arguments up to 1024"),
        ({"attention": "eca:kernel=3"}, "has no argument 'kernel'"),
    ],
)
def test_everything_else_is_refused_by_name(said: dict[str, str], match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        described(**said)
    assert "\n" not in str(caught.value)


def test_deeply_nested_json_is_refused() -> None:
    for text in ("[" * 100_000, '{"a":' * 100_000, "9" * 5000, ""):
        with pytest.raises(UserError, match="not JSON as ecanet writes it"):
            read_json("x", "classes", text)


def test_the_largest_size_ignores_empty_tensors() -> None:
    assert largest_size(TENSORS) == 512
    assert largest_size({"x": torch.zeros(0, 10**9), "count": torch.tensor(3)}) == 1


def test_outlines_take_no_memory() -> None:
    assert outline("x", lambda: nn.Linear(2, 3), TENSORS).weight.device.type == "meta"
    with pytest.raises(UserError, match=r"holds 14,528 values, and the model .* 10,000,100,000"):
        outline("x", lambda: nn.Linear(10**5, 10**5), TENSORS)
    with pytest.raises(UserError, match=r"cannot be built: ZeroDivisionError"):
        outline("x", lambda: nn.Linear(1 // 0, 1), TENSORS)
