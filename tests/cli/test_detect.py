"""``ecanet detect train`` and ``compare`` as a user meets them."""

import json
from pathlib import Path

import pytest
from helpers.commands import Refuse, Run
from helpers.runs import draw_shapes

from ecanet.detection.shapes import draw_split

SMALL = [
    "-m", "resnet18", "--width", "16", "--anchor-size", "8", "--proposals", "20", "--box-samples",
    "16", "--min-size", "48", "--max-size", "64", "--epochs", "1", "-b", "2", "--workers", "0",
    "--device", "cpu", "--precision", "float32",
]  # fmt: skip


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    return draw_shapes(tmp_path / "shapes")


def test_train_and_go_on(shapes: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "run"
    command = ["detect", "train", shapes, "--attention", "eca", *SMALL, "--out", out]
    code, said, err = run(*command)
    assert (code, said.strip()) == (0, str(out / "best.safetensors")), err
    assert "epoch 1/1: train loss" in err
    assert "mask AP" in err
    code, _, err = run(*command, "--resume")
    assert code == 0
    assert "epoch 1/1" not in err, "there is nothing left to train"


def test_help_names_the_commands(run: Run) -> None:
    code, said, _ = run("detect", "--help")
    assert code == 0
    for name in ("train", "evaluate", "predict", "compare"):
        assert f"  {name}" in said


@pytest.mark.slow
@pytest.mark.parametrize("devices", ["1", "2"])
def test_compare_reports_precision(shapes: Path, tmp_path: Path, run: Run, devices: str) -> None:
    out = tmp_path / "study"
    command = [
        "detect", "compare", shapes, "--attention", "none,eca", "--seeds", "1", *SMALL,
        "--devices", devices, "--jobs", "1", "--out", out,
    ]  # fmt: skip
    code, said, err = run(*command)
    assert (code, said.strip()) == (0, str(out / "report/index.html")), err
    page = (out / "report/index.html").read_text()
    assert "COCO metrics of masks" in page
    assert "accurac" not in page.split("<script")[0]
    report = json.loads((out / "report/report.json").read_text())
    for result, runs in zip(report["results"], report["runs"], strict=True):
        assert result["box_AP_mean"] == runs["final"]["box_AP"]
        assert runs["settings"]["attention"] == result["attention"]
    assert report["costs"][1]["attention_parameters"] > 0
    for cost in report["costs"]:
        # Weights, gradients and momentum alone are three times the parameters.
        assert cost["train_peak_bytes"] > 12 * cost["parameters"]
    assert not list(out.glob("runs/*/*/checkpoints"))
    before = (out / "report/runs.csv").read_text()
    code, _, err = run(*command)
    assert code == 0, err
    assert (out / "report/runs.csv").read_text() == before


def test_bad_input_is_one_line(shapes: Path, tmp_path: Path, refuse: Refuse) -> None:
    cut = tmp_path / "cut"
    draw_split(cut, "train", 1, side=64)
    file = cut / "annotations/instances_train.json"
    file.write_text(file.read_text()[:200])
    data, out = str(shapes), str(tmp_path / "run")
    cases: list[tuple[list[str], str]] = [
        (["detect", "trian"], "Did you mean train"),
        (["detect", "train"], "which images?"),
        (["detect", "train", str(tmp_path / "nowhere"), "--out", out], "there is no folder"),
        (["detect", "train", str(cut), "--out", out], "is not complete JSON"),
        (["detect", "train", data, "--resume", "--out", out], "no run to resume"),
        (["detect", "train", data, "--detector", "yolo"], "mask_rcnn"),
        (["detect", "train", data, "-b", "2", "--norm", "frozen", "--out", out], "from scratch"),
        (["detect", "train", data, "-b", "99", "--out", out], "from 1 to 8"),
        (["detect", "compare", data, "--seeds", "0", "--out", out], "--seeds 0"),
        (["detect", "compare", data, "--attention", "ecca", "--out", out], "eca"),
        (["detect", "compare", data, "--seed", "3", "--out", out], "Did you mean --seeds"),
    ]
    for arguments, says in cases:
        refuse(says, *arguments, after_logs=True)
    assert not Path(out).exists()


def test_a_damaged_picture_read_by_a_worker_is_one_line(
    shapes: Path, tmp_path: Path, refuse: Refuse
) -> None:
    (shapes / "train/000002.png").write_bytes(b"no picture")
    settings = [*SMALL, "--workers", "1", "--out", str(tmp_path / "run")]
    says = "000002.png cannot be decoded: not an image"
    refuse(says, "detect", "train", shapes, *settings, after_logs=True)
