"""Every command of README.md, docs/ and the recipes has real flags, and every block runs that can."""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from docs.blocks import PAGES, ROOT, blocks, why_not
from helpers.detectors import small_detector
from PIL import Image
from sklearn.datasets import load_digits

from ecanet import create_model
from ecanet.cli import main, options
from ecanet.detection import save_detector, shapes

# What stands for the reader's own files, and for what is too large or not at hand.
WORDS = {
    r",control(:time[^,]*)?(?=,|$)": "",  # its length follows from speeds, which a short run cannot match
    r"^cat,dog$": "3,8",
    r"\bcifar10\b": "small",
    r"\bDATA\b": "photos",
    r"^(\S*/)?my_images\b": "small",
    r"^COCO$|^MINE$": "shapes",
    r"yolo11n\.pt": "yolo11n.yaml",
    r"\bregnety_004\b": "resnet10t",
    r"\bresnet56\b": "resnet32",
    r"^resnet50$": "resnet20",
    r"^none,(se|cbam),eca": "none,eca",
    r"^none,se,control:parameters$": "none,coord,control:parameters",  # se adds little to a resnet20
    r"^coco/mask_rcnn$": "smoke/shapes",
    r"^1,8,64$": "1,2",
}
# Flags that shorten a command, by its name.
SHORT = {
    "compare": "--seeds 1 --epochs 1 --jobs 1",
    "train": "--epochs 1",
    "sweep": "--trials 2 --epochs 1 --confirm 0 --jobs 1",
    "detect train": "--epochs 1 --batch-size 4 --min-size 64 --max-size 64",
    "detect compare": "--seeds 1 --epochs 1 --jobs 1",
    "yolo compare": "--seeds 1 --epochs 1 --jobs 1 --image-size 64 --batch-size 4",
    "yolo train": "--epochs 1 --image-size 128",
    "study watch": "--once",
    "worker": "--jobs 1",
    "plan": "--detect 30",
    "fold": "--threshold 1",
    "profile": "--image-size 96",
}
# The same for Python.
CODE = {
    "epochs=8": "epochs=1",
    r"epochs=(50|100)\b": "epochs=1, imgsz=64, workers=0, project=HERE",
    "seeds=4": "seeds=1",
    'seeds="auto"': "seeds=1",
    '"cuda"': '"cpu"',
    r"yolo11n\.pt": "yolo11n.yaml",
    "nb_classes=20": "nb_classes=1",
    "num_classes=80": "num_classes=80, min_size=64, max_size=64",
}
# What a page takes for granted.
BEFORE = {
    "README.md": "compare small --attention none,eca --epochs 1 --seeds 2 --jobs 1 --out pilot",
    "docs/papers.md": "compare small --attention none,eca --epochs 1 --seeds 1 --jobs 1",
    "docs/explain.md": "compare small --attention none,eca --epochs 1 --seeds 1 --jobs 1 --keep-weights last",
}


class Parsed(BaseException):
    """The flags of a command were accepted."""


@pytest.fixture
def parsing_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands end as soon as their flags have been read."""

    def ending(parse: Any) -> Any:
        def parse_and_end(*arguments: Any, **named: Any) -> None:
            parse(*arguments, **named)
            raise Parsed

        return parse_and_end

    monkeypatch.setattr(options.SettingsParser, "parse", ending(options.SettingsParser.parse))
    parse_args = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(options.OneLineParser, "parse_args", ending(parse_args))


def _check(words: list[str]) -> None:
    arguments = words[words.index("ecanet") + 1 :]
    arguments = arguments[: arguments.index("&&")] if "&&" in arguments else arguments
    try:
        main._run(arguments)
    except (Parsed, SystemExit):
        return


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.slow] * (page != "README.md")) for page in PAGES]
)
@pytest.mark.usefixtures("parsing_alone")
def test_commands_have_real_flags(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [
        words for block in blocks(page) if block.language == "sh" for words in block.commands()
    ]
    monkeypatch.chdir(tmp_path)
    Path("sweep/report").mkdir(parents=True)
    Path("sweep/report/best.yaml").write_text("epochs: 1")
    for words in found:
        if "ecanet" in words and words[0] not in ("docker", "uvx", "uv", "pipx", "pip"):
            _check(words)


@pytest.mark.usefixtures("parsing_alone")
def test_commands_of_the_recipes_have_real_flags() -> None:
    for recipe in (ROOT / "ecanet/recipes").rglob("*.yaml"):
        text = re.sub(r"\\\n#?", " ", recipe.read_text())
        for command in re.findall(r"^# Command:  .*?(ecanet .*)", text, re.MULTILINE):
            _check(shlex.split(command.replace("DATA", "digits")))


def test_four_blocks_in_five_run() -> None:
    found = [block for page in PAGES for block in blocks(page)]
    ran = [block for block in found if block.runs()]
    assert len(ran) >= 0.8 * len(found), f"{len(ran)} of {len(found)}"


def _digits(folder: Path, each: int, start: int = 0) -> None:
    images, labels = load_digits(return_X_y=True)
    for digit in range(10):
        (folder / str(digit)).mkdir(parents=True)
        for number, image in enumerate(images[labels == digit][start : start + each]):
            pixels = (image.reshape(8, 8) * 15.9).astype("uint8")
            file = folder / str(digit) / f"patient{number}.png"
            Image.fromarray(pixels).convert("RGB").save(file)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a trained classifier, a detector and what stands for released weights."""
    folder = tmp_path_factory.mktemp("weights")
    _digits(folder / "images", each=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ECANET_CACHE", str(tmp_path_factory.mktemp("cache")))
        _run(shlex.split(f"ecanet train {folder}/images --attention eca --out {folder}/run"))
    shutil.copy(folder / "run/best.safetensors", folder)
    for name, network in (
        (
            "eca_resnet50",
            create_model("eca_resnet18", num_classes=10),
        ),  # a smaller one in its place
        ("eca_resnet50_k3557", create_model("eca_resnet50", kernel_sizes="3557")),
    ):
        torch.save({"state_dict": network.state_dict()}, folder / f"{name}.pth.tar")
    detector = small_detector(
        "mask_rcnn", std=2.0, width=16, anchor_size=16, num_classes=4, class_names=shapes.SHAPES
    )
    (folder / "mask_rcnn").mkdir()
    for name in ("mask_rcnn.safetensors", "mask_rcnn/best.safetensors"):
        save_detector(folder / name, detector)
    return folder


@pytest.fixture
def reader(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder as a reader's, with images; `python` is the one that runs the tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shapes, "COUNTS", {"train": 8, "val": 2})
    shutil.copytree(weights, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for number, name in enumerate(("small", "photos", "path/to/images")):
        _digits(tmp_path / name, each=8, start=8 * number)
    new = tmp_path / "new_photos"
    new.mkdir()
    for number, file in enumerate(sorted((tmp_path / "photos").rglob("patient7.png"))):
        shutil.copy(file, new / f"{number}.png")
    for name in ("one.png", "photos/one.png"):
        shutil.copy(new / "0.png", tmp_path / name)
    (tmp_path / "more").mkdir()
    for name in ("a", "b", "c", "d", "more/e"):
        Image.open(new / "1.png").resize((64, 80)).save(tmp_path / f"{name}.jpg")
    (squares,) = (block for block in blocks("docs/tutorials/yolo.md") if block.file())
    exec(re.sub("32|16", "8", squares.text), {})
    shutil.copy("squares.yaml", "my.yaml")
    trainer = "def train(attention, seed, folder, report):\n    return {'accuracy': 0.9}\n"
    (tmp_path / "my_training.py").write_text(trainer)
    (tmp_path / "sweep.yaml").write_text(
        json.dumps(
            {
                "method": "random",
                "metric": {"name": "val_accuracy", "goal": "maximize"},
                "parameters": {"lr": {"min": 0.01, "max": 0.1}, "batch_size": {"values": [16, 32]}},
            }
        )
    )
    return tmp_path


def _run(words: list[str]) -> None:
    """Run a command of the reader's in this process, shortened."""
    if words[0] != "ecanet":
        subprocess.run(shlex.join(words), shell=True, check=True, timeout=120)
        return
    for pattern, other in WORDS.items():
        words = [re.sub(pattern, other, word) for word in words]
    arguments = words[1:]
    name = next((n for n in SHORT if arguments[: len(n.split())] == n.split()), "")
    if name.endswith(("compare", "train", "sweep")):
        # Each comparison of a page is one of its own.
        out = "run" if name.endswith("train") else "study"
        out = arguments[arguments.index("--out") + 1] if "--out" in arguments else out
        shutil.rmtree(out, ignore_errors=True)
    given = SHORT.get(name, "")
    if "--trainer" in arguments or "--command" in arguments:
        given = "--seeds 1 --jobs 1"
    for flag, value in re.findall(r"(--\S+)(?: (\w+))?", given):
        if flag in arguments and value:
            arguments[arguments.index(flag) + 1] = value
        else:
            arguments += filter(None, [flag, value])
    _finish(arguments)


def _finish(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main.main(arguments)
    assert end.value.code in (0, None), shlex.join(arguments)


@pytest.mark.slow
@pytest.mark.timeout(900)  # the README has two minutes of work, on a machine that may be busy
@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(block.runs() for block in blocks(page))]
)
@pytest.mark.usefixtures("own_registry")
def test_blocks_run(page: str, reader: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = {
        "boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]),
        "labels": torch.tensor([1]),
        "masks": torch.ones(1, 64, 64, dtype=torch.uint8),
    }
    names: dict[str, Any] = {"__name__": "__main__", "HERE": str(reader)}
    names |= {"images": [torch.rand(3, 64, 64)], "targets": [target]}
    if page in BEFORE:
        _finish(BEFORE[page].split())
    for block in blocks(page):
        if block.reason:
            continue
        where = f"{page}:{block.line}"
        if file := block.file():
            (reader / file).write_text(block.text)
        elif block.language == "python":
            text = functools.reduce(lambda t, c: re.sub(c[0], c[1], t), CODE.items(), block.text)
            if "ecanet.compare(" in text:
                shutil.rmtree("study", ignore_errors=True)
            exec(compile(text, where, "exec"), names)
            if page == "README.md":
                assert 0 <= names["study"].records[0].final["test_accuracy"] <= 1
        elif block.language == "sh":
            for words in block.commands():
                if why_not(words) is None:
                    _run(words)
