"""Runs of a study that Ultralytics trains."""

from __future__ import annotations

import copy
import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.yolo_data import coco_as_yolo, open_yolo

from ecanet.config import YoloSettings
from ecanet.errors import UserError
from ecanet.files import read_json
from ecanet.models import attention_modules
from ecanet.record import Record
from ecanet.training.task import Hooks
from ecanet.training.train import task_of, train_in_study

pytest.importorskip("ultralytics", reason="needs Ultralytics")

from ultralytics.nn.tasks import torch_safe_load, yaml_model_load

from ecanet.integrations.ultralytics import networks, trainer
from ecanet.integrations.ultralytics.library import contained
from ecanet.integrations.ultralytics.task import arguments_of


@pytest.fixture
def settings(real_data: Path, tmp_path: Path) -> YoloSettings:
    data = coco_as_yolo(real_data / "coco128", tmp_path / "coco", 16, 8, 8)
    return YoloSettings(
        data=str(data), attention="eca", epochs=2, image_size=64, batch_size=8, device="cpu"
    )


def resolved(settings: YoloSettings) -> tuple[Any, Any]:
    task = task_of(settings)
    data = task.read(settings)
    return task.resolve(settings, data), data


def trained(settings: YoloSettings, folder: Path, **hooks: Any) -> Record:
    return train_in_study(resolved(settings)[0], folder, hooks=Hooks(**hooks))


@pytest.mark.slow
def test_a_run_is_trained_and_judged_on_test(settings: YoloSettings, tmp_path: Path) -> None:
    rows: list[Any] = []
    steps: list[int] = []
    record = trained(
        settings, tmp_path / "run", on_epoch=rows.append, on_step=lambda: steps.append(1)
    )
    assert [row["epoch"] for row in rows] == [0, 1]
    assert record.epochs == rows
    assert {"train_loss", "val_loss", "lr", "seconds", "map50_95", "map50"} <= rows[0].keys()
    # Two steps and a batch of val in each epoch, one batch of test, and before each row.
    assert len(steps) == 2 * (2 + 1 + 1) + 1
    assert record.final["epoch"] == 1
    assert record.environment["ultralytics"]
    assert record.settings["attention"] == "eca"
    network = open_yolo(str(tmp_path / "run" / "weights" / "last.pt"))
    assert len(attention_modules(network.model)) == 9
    # Ultralytics' own validation of that file, on test, finds the same.
    found = network.val(
        data=settings.data,
        split="test",
        imgsz=64,
        batch=16,
        device="cpu",
        plots=False,
        verbose=False,
    )
    assert found.box.map == pytest.approx(record.final["map50_95"], abs=2e-3)
    left = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert left == ["args.yaml", "output.txt", "record.json", "results.csv", "weights"]


@pytest.mark.slow
def test_arms_of_a_seed_share_weights_images_and_order(
    settings: YoloSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seeds alone decide what the plain weights begin with, and which images come when and how."""
    seen: dict[Any, list[torch.Tensor]] = {}

    def recorded(self: Any, batch: Any) -> Any:
        seen.setdefault((self.run.settings.attention, self.run.settings.seed), []).append(
            batch["img"].clone()
        )
        return batch_before(self, batch)

    base = networks.DetectionTrainer
    batch_before = base.preprocess_batch
    monkeypatch.setattr(base, "preprocess_batch", recorded)
    starts: dict[Any, dict[str, torch.Tensor]] = {}
    inserted = trainer.insert

    def kept(network: Any, own: YoloSettings) -> Any:
        network = inserted(network, own)
        starts[own.attention, own.seed] = copy.deepcopy(network.state_dict())
        return network

    monkeypatch.setattr(trainer, "insert", kept)
    for attention, seed in (("none", 0), ("cbam", 0), ("none", 1)):
        own = dataclasses.replace(settings, attention=attention, seed=seed)
        trained(own, tmp_path / f"{attention}{seed}")
    for name, value in starts["none", 0].items():
        assert torch.equal(value, starts["cbam", 0][name]), name
    assert not torch.equal(
        starts["none", 0]["model.0.conv.weight"], starts["none", 1]["model.0.conv.weight"]
    )
    one, other, third = seen["none", 0], seen["cbam", 0], seen["none", 1]
    assert len(one) == len(other) == 4
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, third, strict=True))


def test_weights_of_a_file_are_all_kept_and_attention_starts_as_the_identity(
    settings: YoloSettings, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    yolo = open_yolo("yolo11n.yaml")
    yolo.save(tmp_path / "weights.pt")
    own, data = resolved(
        dataclasses.replace(settings, model=str(tmp_path / "weights.pt"), attention="se")
    )
    assert own.identity
    with contained():
        network = networks.Origin(own.model).build(own, data).eval()
        plain = networks.Origin(own.model).build(dataclasses.replace(own, attention="none"), data)
    weights, theirs = network.state_dict(), yolo.model.half().float().state_dict()
    assert all(torch.equal(weights[name], value) for name, value in theirs.items())
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network(image)[0], plain.eval()(image)[0], rtol=0, atol=1e-5)


_RUN = """
import os, signal, sys
from pathlib import Path
from ecanet.config import YoloSettings
from ecanet.training.task import Hooks
from ecanet.training.train import task_of, train_in_study
settings = YoloSettings(
    data=sys.argv[1], attention="eca", epochs=4, image_size=64, batch_size=8, device="cpu"
)
task = task_of(settings)
settings = task.resolve(settings, task.read(settings))
kill = int(sys.argv[3])
def on_epoch(row):
    print(row["epoch"], flush=True)
    if row["epoch"] == kill:
        os.kill(os.getpid(), signal.SIGKILL)
train_in_study(settings, Path(sys.argv[2]), hooks=Hooks(on_epoch=on_epoch))
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(settings: YoloSettings, tmp_path: Path) -> None:
    """Killed in its third epoch, a run trains that again and the fourth, and its modules go on learning."""

    def run(kill: int, folder: str) -> subprocess.CompletedProcess[str]:
        arguments = [
            sys.executable,
            "-c",
            _RUN,
            str(settings.data),
            str(tmp_path / folder),
            str(kill),
        ]
        return subprocess.run(arguments, capture_output=True, text=True, check=False)

    killed = run(2, "run")
    assert killed.returncode == -signal.SIGKILL
    assert killed.stdout.split() == ["0", "1", "2"]
    state = torch.load(tmp_path / "run" / "checkpoints" / "state.pt", weights_only=True)
    assert state["epoch"] == 1
    resumed = run(-1, "run")
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.split() == ["2", "3"]
    record = Record.from_dict(read_json(tmp_path / "run" / "record.json") or {})
    assert [row["epoch"] for row in record.epochs] == [0, 1, 2, 3]
    network = open_yolo(str(tmp_path / "run" / "weights" / "last.pt")).model
    modules = attention_modules(network)
    assert len(modules) == 9
    weights = network.state_dict()
    learned = [f"{name}.conv.weight" for name in modules if f"{name}.conv.weight" in weights]
    assert learned
    assert any(not torch.equal(weights[n], state["ema"][n].half().float()) for n in learned)

    # The same images came in the same order: what differs from a run in one go is the buffer of mosaics.
    whole = run(-1, "whole")
    assert whole.returncode == 0
    other = Record.from_dict(read_json(tmp_path / "whole" / "record.json") or {})
    for one, two in zip(record.epochs[:2], other.epochs[:2], strict=True):
        assert one["train_loss"] == two["train_loss"]
    for one, two in zip(record.epochs, other.epochs, strict=True):
        assert one["lr"] == two["lr"]
        assert one["train_loss"] == pytest.approx(two["train_loss"], rel=0.2)


def test_what_ends_a_run_passes_through_ultralytics(settings: YoloSettings, tmp_path: Path) -> None:
    class LeaseLost(Exception):
        pass

    def lose() -> None:
        raise LeaseLost

    with pytest.raises(LeaseLost):
        trained(settings, tmp_path / "run", on_step=lose)
    assert not (tmp_path / "run" / "record.json").exists()


@pytest.mark.slow
def test_costs_are_measured_after_fuse(settings: YoloSettings) -> None:
    own, data = resolved(settings)
    plain, eca = task_of(own).costs(own, ["none", "eca"], data)
    network = open_yolo("yolo11n.yaml").model
    assert plain.parameters == sum(p.numel() for p in network.parameters())
    assert (plain.attention_parameters, eca.attention_parameters) == (
        0,
        eca.parameters - plain.parameters,
    )
    assert 0 < eca.macs - plain.macs < 0.01 * plain.macs
    assert plain.inference.median > 0
    assert plain.train.median > 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"set": ["lr=0.1"]}, "--set lr: Ultralytics has no such argument. Did you mean lr"),
        ({"set": ["lr0"]}, "--set lr0: give name=value"),
        ({"set": ["lr0=fast"]}, "--set: "),
        ({"set": ["imgsz=64"]}, "--set imgsz: give --image-size"),
        ({"set": ["patience=3"]}, "--set patience: a comparison sets it"),
        ({"places": "necks"}, "named places: blocks, backbone, neck, before-detect"),
        ({"model": "yolov3-tiny.yaml"}, "no layers for where='blocks'"),
        ({"model": "yolo11n-cls.yaml"}, "is for the task classify"),
        ({"model": "yolo99n.yaml"}, "--model yolo99n.yaml cannot be built"),
        ({"model": "yolo99n.pt"}, "there is no file yolo99n.pt"),
        ({"attention": "ecaa"}, "unknown attention module"),
        ({"attention": "eca:kernel_size=4"}, "kernel_size must be odd, got 4"),
        ({"attention": "cbam:reduction=0"}, "cbam"),
        ({"image_size": 100}, "--image-size 100: give a multiple of 32, such as 96"),
    ],
)
def test_bad_settings_are_refused(
    settings: YoloSettings, change: dict[str, Any], says: str
) -> None:
    def check() -> None:
        own, data = resolved(dataclasses.replace(settings, **change))
        task_of(own).check(own, data)

    with pytest.raises(UserError) as error:
        check()
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_of_weights_runs_no_code(settings: YoloSettings, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "ran"),))

    torch.save({"model": Evil()}, tmp_path / "evil.pt")
    own, data = resolved(dataclasses.replace(settings, model=str(tmp_path / "evil.pt")))
    with pytest.raises(UserError, match="cannot be built"):
        task_of(own).check(own, data)
    assert not (tmp_path / "ran").exists()


def test_a_network_s_yaml_runs_no_code(settings: YoloSettings, tmp_path: Path) -> None:
    cfg = yaml_model_load("yolo11n.yaml")
    cfg["activation"] = f"__import__('os').mkdir({str(tmp_path / 'ran')!r}) or torch.nn.ReLU()"
    model = tmp_path / "evil11n.yaml"
    model.write_text(yaml.safe_dump(cfg), encoding="utf-8")
    own, data = resolved(dataclasses.replace(settings, model=str(model)))
    with pytest.raises(UserError, match="activation"):
        task_of(own).check(own, data)
    assert not (tmp_path / "ran").exists()


def test_files_are_loaded_as_before_once_a_study_has_ended(
    settings: YoloSettings, tmp_path: Path
) -> None:
    """Of a notebook that opens its own files with YOLO(...), which may hold classes of its own."""
    own, data = resolved(settings)
    task_of(own).check(own, data)
    torch.save({"model": Path("a class that Ultralytics does not know")}, tmp_path / "own.pt")
    content, _ = torch_safe_load(tmp_path / "own.pt")
    assert isinstance(content["model"], Path)


def test_images_that_are_trained_on_and_judged_on_are_named(
    real_data: Path, tmp_path: Path
) -> None:
    data = coco_as_yolo(real_data / "coco128", tmp_path / "coco", 8, 0)
    own, found = resolved(YoloSettings(data=str(data), device="cpu"))
    first, second, _ = task_of(own).notices(own, found)
    assert first.startswith("there is no test split")
    assert second.startswith("8 of the 8 images that runs are judged on are also trained on")


def test_a_training_of_too_few_steps_is_named(settings: YoloSettings) -> None:
    def said(**changes: Any) -> list[str]:
        own, data = resolved(dataclasses.replace(settings, **changes))
        return [line for line in task_of(own).notices(own, data) if "fresh" in line]

    # 16 images in batches of 8, whose gradients are summed to those of 64 images.
    assert said(epochs=100) == [
        "fresh weights learn little in about 25 steps: give more epochs, or --set nbs=8, as "
        "Ultralytics accumulates the gradients of 8 batches per step"
    ]
    assert said(epochs=100, set=["nbs=8"]) == [
        "fresh weights learn little in about 200 steps: give more epochs"
    ]
    assert said(epochs=500, set=["nbs=8"]) == []
    assert "about 1 step:" in said(epochs=1)[0]


def test_values_of_further_arguments() -> None:
    assert arguments_of(["lr0=0.01", "cos_lr=true", "optimizer=SGD"]) == {
        "lr0": 0.01,
        "cos_lr": True,
        "optimizer": "SGD",
    }
