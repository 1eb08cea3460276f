"""``ecanet convert``: a report, a path, or one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ecanet.cli.convert import LAYOUTS
from ecanet.cli.main import main
from ecanet.models import create_model
from ecanet.models.weights.convert import LAYOUTS as WRITERS


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["convert", *arguments])
    return (int(end.value.code or 0), *capsys.readouterr())


def test_the_layouts_offered_are_those_there_are() -> None:
    assert tuple(WRITERS) == LAYOUTS


def test_it_reports_and_prints_the_path(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = create_model("resnet20", attention="eca", num_classes=10)
    torch.save({"state_dict": model.state_dict()}, "in.pth.tar")
    code, out, err = run(capsys, "in.pth.tar", "out.safetensors")
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
        ("text.pth out.safetensors", "damaged or no weight file"),
        ("in.pth out.pth --to onnx", "invalid choice"),
        ("in.pth in.pth --to timm", "is the file to convert"),
        ("in.pth out.pth --to official", "the file holds resnet20"),
        ("in.pth out.safetensors -m resnet56", "not of resnet56"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(create_model("resnet20", num_classes=10).state_dict(), "in.pth")
    Path("text.pth").write_text("not found")
    code, out, err = run(capsys, *arguments.split())
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert says in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pth", "text.pth"]
