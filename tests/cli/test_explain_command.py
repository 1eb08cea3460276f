"""``ecanet explain`` and ``ecanet fold`` as a user meets them."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from helpers.commands import Refuse, Run
from helpers.gates import save_gated
from helpers.pages import EVIL, Page
from helpers.runs import draw_colors

CPU = ("--device", "cpu", "--workers", "0")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return draw_colors(tmp_path / "images")


def run_folder(tmp_path: Path, images: Path, attention: str = "se") -> Path:
    """Return the folder of a run that was trained on the images."""
    return save_gated(tmp_path / "run" / "last.safetensors", attention, data=images).parent


def test_a_run_on_its_own_images(tmp_path: Path, images: Path, run: Run) -> None:
    pytest.importorskip("pytorch_grad_cam", reason="needs grad-cam")
    folder = run_folder(tmp_path, images)
    code, out, err = run("explain", folder, "--cams", "3", *CPU)
    assert code == 0, err
    assert out.strip() == str(folder / "explain" / "explain.html")
    text = Page(folder / "explain" / "explain.html").words
    assert "21 images of val, images" in text
    assert "se (run): on average over its 9 layers the index is" in text
    assert "the factor of a channel has a standard deviation of 0.0" in text
    content = json.loads((folder / "explain" / "explain.json").read_text())
    (network,) = content["explanation"]["attention"]
    assert network["classes"] == {"class0": 7, "class1": 7, "class2": 7}
    curves = {layer["name"]: layer["curves"] for layer in network["layers"]}
    assert [name for name, found in curves.items() if found] == [
        f"layer{stage}.2.attention" for stage in (1, 2, 3)
    ]
    assert len(curves["layer3.2.attention"]["class1"]) == 64


def test_names_from_elsewhere_stay_text(tmp_path: Path, images: Path, run: Run) -> None:
    names = [EVIL.replace("/", "|"), "class1", "class2"]
    for split in ("train", "val"):
        (images / split / "class0").rename(images / split / names[0])
    file = save_gated(tmp_path / "w.safetensors", "eca", names=names)
    out = tmp_path / "out"
    code, _, err = run(
        "explain", file, "--images", images / "val", "--cams", "0", "--out", out, *CPU
    )
    assert code == 0, err
    page = Page(out / "explain.html")
    assert not [tag for tag, attributes in page.tags if tag == "b" and not attributes]
    assert not (out / "explain_maps.csv").exists()


def test_images_without_classes_go_by_what_is_predicted(
    tmp_path: Path, images: Path, run: Run
) -> None:
    for i, file in enumerate(sorted((images / "val").rglob("*.jpg"))):
        shutil.move(file, images / f"{i}.jpg")
    shutil.rmtree(images / "train")
    shutil.rmtree(images / "val")
    file, out = save_gated(tmp_path / "w.safetensors", "cbam"), tmp_path / "out"
    code, _, err = run(
        "explain", file, "--images", images, "--cams", "0", "--out", out, "--limit", "8", *CPU
    )
    assert code == 0, err
    assert "the predicted ones are used" in err
    network = json.loads((out / "explain.json").read_text())["explanation"]["attention"][0]
    assert (network["by"], network["images"]) == ("predicted", 8)
    assert sum(network["classes"].values()) == 8


def test_classes_are_chosen_by_name(tmp_path: Path, images: Path, run: Run, refuse: Refuse) -> None:
    folder = run_folder(tmp_path, images)
    options = ("--cams", "0", *CPU)
    code, _, err = run("explain", folder, "--classes", "class2", *options)
    assert code == 0, err
    content = json.loads((folder / "explain" / "explain.json").read_text())
    assert content["explanation"]["attention"][0]["classes"] == {"class2": 7}
    refuse(
        "--classes class9: the weights have no such class. Did you mean class",
        "explain", folder, "--classes", "class9", *options,
        after_logs=True,
    )  # fmt: skip


def test_folding(tmp_path: Path, images: Path, run: Run) -> None:
    folder, out = run_folder(tmp_path, images), tmp_path / "folded.safetensors"
    numbers = tmp_path / "folded.json"
    code, printed, err = run(
        "fold", folder, "--threshold", "1", "--out", out, "--json", numbers, *CPU
    )
    assert code == 0, err
    lines = printed.splitlines()
    assert sum(line.endswith(": folded") for line in lines) == 9
    assert lines[-2].startswith("accuracy ")
    assert "95 % interval over images like these" in lines[-2]
    assert lines[-1].startswith(f"{out}: resnet20, 3 classes")
    content = json.loads(numbers.read_text())
    assert content["images"] == 21
    assert len(content["layers"]) == 9
    code, _, err = run("predict", images / "val", "--weights", out, *CPU)
    assert code == 0, err
    code, printed, err = run("evaluate", images, "--split", "val", "--weights", out, *CPU)
    assert code == 0, err
    assert f"top-1 {100 * content['after']:.2f} %" in printed


def test_what_cannot_be_explained_is_refused(
    tmp_path: Path, images: Path, run: Run, refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = save_gated(tmp_path / "w.safetensors", "se")
    plain = save_gated(tmp_path / "plain.safetensors", "none")
    empty, out = tmp_path / "empty", tmp_path / "o.safetensors"
    empty.mkdir()
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "settings.json").write_text('{"data": "digits"}')
    refuse("which networks?", "explain")
    refuse("which weights?", "fold")
    refuse("where to?", "fold", file)
    for command in (("explain", "--cams", "0"), ("fold", "--out", out)):
        name, *options = command
        refuse("has no weights", name, bare, *options, *CPU)
        refuse("is not in a run's folder: give --images DIR", name, file, *options, *CPU)
        refuse("there is no image in the folder", name, file, "--images", empty, *options, *CPU)
        refuse("nowhere", name, file, "--images", "./nowhere", *options, *CPU)
        refuse("nowhere", name, "nowhere.safetensors", "--images", images, *options, *CPU)
    refuse(
        "there is no attention module to explain",
        "explain", plain, "--images", images / "val", "--cams", "0", *CPU,
    )  # fmt: skip
    refuse(
        "has no attention module: there is nothing to fold",
        "fold", plain, "--images", images / "val", "--out", out, *CPU,
    )  # fmt: skip
    refuse("end in .safetensors", "fold", file, "--images", images, "--out", "x.pth", *CPU)
    refuse(
        "--json", "fold", file, "--images", images, "--out", out, "--json", "no/where.json", *CPU
    )
    refuse("choose another file", "fold", file, "--images", images, "--out", file, *CPU)
    refuse("--threshold 2", "fold", file, "--images", images, "--out", out, "--threshold", "2")
    refuse(
        "nothing is folded at --threshold 0",
        "fold", file, "--images", images / "val", "--out", out, "--threshold", "0", *CPU,
        after_logs=True,
    )  # fmt: skip
    assert not out.exists()
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    refuse("pip install 'ecanet[explain]'", "explain", file, "--images", images, *CPU)
    code, _, err = run(
        "explain", file, "--images", images / "val", "--cams", "0", "--out", empty, *CPU
    )
    assert code == 0, err


def test_a_plain_network_has_maps_alone(tmp_path: Path, images: Path, run: Run) -> None:
    pytest.importorskip("pytorch_grad_cam", reason="needs grad-cam")
    folder = run_folder(tmp_path, images, "none")
    code, _, err = run("explain", folder, "--cams", "2", *CPU)
    assert code == 0, err
    text = Page(folder / "explain" / "explain.html").words
    assert "The network has no attention module" in text
    assert "Where the networks look" in text
    assert "Gates by class" not in text
