"""Runs of a study that LibreYOLO trains."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import Refuse, Run
from torch.utils._pytree import tree_leaves

from ecanet.config import LibreYoloSettings
from ecanet.errors import UserError
from ecanet.models import attention_modules
from ecanet.training.task import Hooks

pytest.importorskip("libreyolo", reason="needs LibreYOLO")

from ecanet.integrations.libreyolo import load_model
from ecanet.integrations.libreyolo.networks import Origin
from ecanet.integrations.libreyolo.task import LibreYoloTask

SMALLEST = ["yolo9-t", "yolox-n", "rtmdet-t", "ppyoloe-s", "picodet-s", "rtdetr-r18", "dfine-n"]


def settings(squares: Path, **values: Any) -> LibreYoloSettings:
    given = LibreYoloSettings(
        **{
            "data": str(squares), "model": "libreyolo/yolox-n", "attention": "se", "epochs": 1,
            "image_size": 64, "batch_size": 4, "device": "cpu", **values,
        }
    )  # fmt: skip
    return LibreYoloTask.resolve(given, LibreYoloTask.read(given))


def train(given: LibreYoloSettings, folder: Path, hooks: Hooks | None = None) -> Any:
    folder.mkdir(exist_ok=True)
    return LibreYoloTask.train(given, folder, hooks or Hooks())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "weights" / "last.pt", weights_only=True)["model"]


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_every_family_trains_the_modules(name: str, squares: Path, tmp_path: Path) -> None:
    given = settings(squares, model=f"libreyolo/{name}", image_size=320, set=["ema=false"])
    LibreYoloTask.check(given, LibreYoloTask.read(given))
    before = Origin(name).build(given, LibreYoloTask.read(given)).model.state_dict()
    record = train(given, tmp_path / "run")
    assert 0 <= record.final["map50_95"] <= 1
    after = weights(tmp_path / "run")
    trained = [key for key in after if ".attention." in key and key.endswith("weight")]
    assert len(trained) >= 14
    assert all(not torch.equal(after[key], before[key]) for key in trained)


def test_the_saved_file_loads_with_its_modules(squares: Path, tmp_path: Path) -> None:
    from libreyolo import LibreYOLO

    train(settings(squares), tmp_path / "run")
    file = tmp_path / "run" / "weights" / "last.pt"
    loaded = load_model(file)
    assert len(attention_modules(loaded.model)) == 8
    assert loaded.names == {0: "red", 1: "green"}
    assert len(loaded.predict(str(squares.parent / "images" / "val" / "0.png"), conf=0.0)) >= 0
    with pytest.raises(RuntimeError, match=r"yolox\+ecanet"):
        LibreYOLO(str(file))


def test_a_plain_network_is_a_file_of_libreyolo(squares: Path, tmp_path: Path) -> None:
    from libreyolo import LibreYOLO

    train(settings(squares, attention="none", model="libreyolo/yolo9-t"), tmp_path / "run")
    file = str(tmp_path / "run" / "weights" / "last.pt")
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        both = [
            tree_leaves(one.model(image))
            for one in (LibreYOLO(file, device="cpu"), load_model(file))
        ]
    for theirs, ours in zip(*both, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=0, atol=0)


@pytest.mark.parametrize(
    "name",
    [
        "yolox-n",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("yolo9-t", "dfine-n")),
    ],
)
def test_a_run_goes_on_where_it_was(name: str, squares: Path, tmp_path: Path) -> None:
    given = settings(
        squares,
        model=f"libreyolo/{name}",
        image_size=320 if name == "dfine-n" else 64,  # it makes 300 boxes from as many places
        epochs=3,
        set=["no_aug_epochs=1", "warmup_epochs=1", "ema_decay=0.5"],
    )
    whole = train(given, tmp_path / "whole")

    def stop(row: Any) -> None:
        if row["epoch"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(given, tmp_path / "halted", Hooks(on_epoch=stop))
    record = train(given, tmp_path / "halted")
    timed = {"seconds"}
    assert [{k: v for k, v in row.items() if k not in timed} for row in record.epochs] == [
        {k: v for k, v in row.items() if k not in timed} for row in whole.epochs
    ]
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "halted")
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert not (tmp_path / "halted" / "checkpoints").exists()


def test_other_weights_do_not_depend_on_the_module(squares: Path) -> None:
    given = settings(squares)
    data = LibreYoloTask.read(given)
    one, other = (
        Origin(given.model).build(replace(given, attention=name), data).model.state_dict()
        for name in ("none", "cbam")
    )
    assert all(torch.equal(other[key], value) for key, value in one.items())


def test_what_a_hook_raises_during_validation_ends_the_run(squares: Path, tmp_path: Path) -> None:
    calls = []

    def step() -> None:
        calls.append(1)
        if len(calls) == 3:  # two steps of training come before
            raise UserError("stopped")

    with pytest.raises(UserError, match=r"^stopped$"):
        train(settings(squares), tmp_path / "run", Hooks(on_step=step))


def test_a_failing_validation_is_no_result(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("libreyolo.validation.detection_validator.DetectionValidator.run", fail)
    with pytest.raises(UserError, match="validation failed"):
        train(settings(squares), tmp_path / "run")
    assert "broken" in (tmp_path / "run" / "output.txt").read_text()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "libreyolo/yolo9-z"}, "[Dd]id you mean yolo9-"),
        ({"model": "libreyolo/rfdetr-n"}, "is not a model that trains from fresh weights"),
        ({"set": ["lr=0.1"]}, "no such argument"),
        ({"set": ["epochs=3"]}, "give --epochs"),
        ({"set": ["max_det=0"]}, "max_det"),
        ({"image_size": 100}, "multiple of 32, such as 96"),
    ],
)
def test_bad_settings_are_refused(values: dict[str, Any], message: str, squares: Path) -> None:
    with pytest.raises(UserError, match=message):
        settings(squares, **values)


@pytest.mark.slow
def test_a_comparison(squares: Path, tmp_path: Path, run: Run) -> None:
    out, again = tmp_path / "study", tmp_path / "again"
    code, _, err = run(
        "yolo", "compare", squares, "--model=libreyolo/yolox-n", "--attention", "none,eca", "--seeds", 2,
        "--epochs", 1, "--image-size", 64, "--batch-size", 4, "--device", "cpu", "--out", out,
    )  # fmt: skip
    assert code == 0, err
    report = json.loads((out / "report" / "report.json").read_text())
    none, eca = report["costs"]
    assert eca["parameters"] - none["parameters"] == eca["attention_parameters"] > 0
    assert eca["macs"] > none["macs"] > 0
    assert len(report["runs"]) == 4
    # The recipe of the report names the library as well.
    recipe = out / "report" / "recipe.yaml"
    code, _, err = run(
        "yolo",
        "compare",
        "--recipe",
        recipe,
        "--attention",
        "none",
        "--device",
        "cpu",
        "--out",
        again,
    )
    assert code == 0, err


def test_a_network_of_another_name_is_refused(squares: Path, refuse: Refuse) -> None:
    says = "libreyolo/nothing is not a model that trains from fresh weights"
    refuse(says, "yolo", "train", squares, "--model", "libreyolo/nothing", "--attention", "eca")
