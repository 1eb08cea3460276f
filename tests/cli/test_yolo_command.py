"""``ecanet yolo``."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import Refuse, Run
from helpers.yolo_data import coco_as_yolo

from ecanet.files import read_json


@pytest.fixture
def coco(real_data: Path, tmp_path: Path) -> Path:
    pytest.importorskip("ultralytics", reason="needs Ultralytics")
    return coco_as_yolo(real_data / "coco128", tmp_path / "coco", 16, 0)


QUICK = ("--epochs", 1, "--image-size", 64, "--batch-size", 8, "--device", "cpu")


def test_help_names_the_license(run: Run) -> None:
    for arguments in (("yolo",), ("yolo", "train", "--help"), ("yolo", "compare", "--help")):
        code, out, _ = run(*arguments)
        assert code == 0
        assert "AGPL-3.0" in out


def test_bad_input_is_refused_in_one_line(refuse: Refuse, tmp_path: Path) -> None:
    pytest.importorskip("ultralytics", reason="needs Ultralytics")
    refuse("unknown command yolo 'tran'", "yolo", "tran")
    refuse("which attention module?", "yolo", "train", "x.yaml")
    refuse("which images?", "yolo", "train", "--attention", "eca")
    refuse("x.yaml cannot be read", "yolo", "train", "x.yaml", "--attention", "eca")
    refuse("unknown flag --model-size", "yolo", "compare", "x.yaml", "--model-size", 3)
    file = tmp_path / "data.yaml"
    file.write_text("train: a\nval: b\n")
    refuse("has no names", "yolo", "compare", file, "--out", tmp_path / "study")
    file.write_text("train: a\nval: b\nnames: [x]\n")
    refuse("images of train are missing", "yolo", "compare", file, "--out", tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_without_ultralytics(
    refuse: Refuse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.import_module

    def missing(name: str, *arguments: Any) -> Any:
        if name.partition(".")[0] == "ultralytics":
            raise ImportError("No module named 'ultralytics'")
        return real(name, *arguments)

    monkeypatch.setattr(importlib, "import_module", missing)
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").touch()
    refuse("pip install 'ecanet[ultralytics]'", "yolo", "train", "x.yaml", "--attention", "eca")
    refuse("licensed under the AGPL-3.0", "yolo", "compare", "x.yaml", "--out", tmp_path / "study")


@pytest.mark.slow
def test_ecanet_does_not_import_it_by_itself() -> None:
    """Those who do not use it are not bound by its license."""
    import subprocess

    code = (
        "import sys, ecanet.cli.main, ecanet.models, ecanet.experiments.compare\n"
        "from ecanet import create_model, insert_attention\n"
        "insert_attention(create_model('resnet20', num_classes=2), 'eca')\n"
        "assert 'ultralytics' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_train_and_the_same_command_again(
    run: Run, refuse: Refuse, coco: Path, tmp_path: Path
) -> None:
    command = ("yolo", "train", coco, "--attention", "eca", *QUICK, "--out", tmp_path / "run")
    code, out, err = run(*command)
    assert code == 0, err
    assert out.strip() == str(tmp_path / "run" / "weights" / "last.pt")
    assert "mAP50-95" in err
    assert "there is no test split" in err
    record = read_json(tmp_path / "run" / "record.json")
    assert run(*command)[0] == 0
    assert read_json(tmp_path / "run" / "record.json") == record
    refuse("epochs: 1 there, 2 requested", *command, "--epochs", 2, after_logs=True)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_compare(run: Run, coco: Path, tmp_path: Path) -> None:
    """A study of two seeds: records, costs and a report that names what it is of."""
    out = tmp_path / "study"
    arguments = ("--model", "yolo11n.yaml", "--attention", "none,eca", "--seeds", 2, "--jobs", 1)
    code, shown, err = run("yolo", "compare", coco, *arguments, *QUICK, "--out", out)
    assert code == 0, err
    assert shown.strip() == str(out / "report" / "index.html")
    page = (out / "report" / "index.html").read_text()
    assert "yolo11n on coco" in page
    assert "mAP50-95" in page
    assert "are also trained on" in page
    assert len(list(out.rglob("record.json"))) == 4
