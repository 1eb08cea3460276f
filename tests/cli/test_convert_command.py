"""``ecanet convert``: the report and the path, or one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.commands import Refuse, Run

from ecanet.cli.convert import LAYOUTS
from ecanet.models import create_model
from ecanet.models.weights.convert import LAYOUTS as WRITERS


def test_the_layouts_are_those_of_the_library() -> None:
    assert tuple(WRITERS) == LAYOUTS


def test_the_report_and_the_path(run: Run, workdir: Path) -> None:
    model = create_model("resnet20", attention="eca", num_classes=10)
    torch.save({"state_dict": model.state_dict()}, "in.pth.tar")
    code, out, err = run("convert", "in.pth.tar", "out.safetensors")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "resnet20 with attention eca, kernels 333, 10 classes, 3 input channels; ecanet layout",
        f"{len(model.state_dict())} weights matched",
        "out.safetensors",
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("", "required"),
        ("nowhere.pth out.safetensors", "there is no weight file nowhere.pth"),
        ("text.pth out.safetensors", "damaged or not a weight file"),
        ("in.pth out.pth --to onnx", "invalid choice"),
        ("in.pth in.pth --to timm", "is the file to convert"),
        ("in.pth out.pth --to official", "the file holds resnet20"),
        ("in.pth out.safetensors -m resnet56", "not for resnet56"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    refuse: Refuse, workdir: Path, arguments: str, says: str
) -> None:
    torch.save(create_model("resnet20", num_classes=10).state_dict(), "in.pth")
    Path("text.pth").write_text("not found")
    refuse(says, "convert", *arguments.split())
    assert sorted(path.name for path in workdir.iterdir()) == ["in.pth", "text.pth"]
