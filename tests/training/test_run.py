import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.damage import DAMAGE

import ecanet.training.run as run_module
from ecanet.config import Augmentation, Optimizer, RunSettings
from ecanet.data import Data, load_data
from ecanet.errors import UserError
from ecanet.record import EpochMetrics, Record
from ecanet.training.run import build_model, train
from ecanet.training.run_folder import put_in_order

SETTINGS = RunSettings(
    data="digits",
    model="resnet20",
    epochs=3,
    batch_size=256,
    image_size=8,
    device="cpu",
    precision="float32",
    compile="off",
    augmentation=Augmentation(flip=False, crop_padding=1),
)


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data("digits")


class Killed(BaseException):
    """Stands for kill -9: nothing between the run and us catches it."""


def kill_in(epoch: int) -> Any:
    def on_epoch(metrics: EpochMetrics) -> None:
        if metrics.epoch == epoch:
            raise Killed

    return on_epoch


def measured(record: Record) -> list[tuple[float, ...]]:
    """The epochs' metrics without their times."""
    return [
        (e.epoch, e.train_loss, e.train_accuracy, e.val_loss, e.val_accuracy, e.lr)
        for e in record.epochs
    ]


@pytest.fixture(scope="module")
def whole_best(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Record:
    """A run that nothing disturbed, judged by its best epoch."""
    settings = replace(SETTINGS, select="best")
    return train(settings, "none", 1, data, tmp_path_factory.mktemp("whole"))


@pytest.fixture
def final_weights(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """Collects the weights that each finished run was tested with."""
    collected: list[dict[str, torch.Tensor]] = []

    class Spy(run_module.Classifier):
        def on_test_end(self) -> None:
            collected.append({k: v.clone() for k, v in self.model.state_dict().items()})

    monkeypatch.setattr(run_module, "Classifier", Spy)
    return collected


@pytest.mark.parametrize("attention", ["none", "cbam"])
def test_an_interrupted_run_ends_bit_identical(
    data: Data, tmp_path: Path, final_weights: list[dict[str, torch.Tensor]], attention: str
) -> None:
    whole = train(SETTINGS, attention, 1, data, tmp_path / "whole")
    for epoch in (0, 2):
        with pytest.raises(Killed):
            train(SETTINGS, attention, 1, data, tmp_path / "cut", on_epoch=kill_in(epoch))
    resumed = train(SETTINGS, attention, 1, data, tmp_path / "cut")
    assert measured(resumed) == measured(whole)
    assert resumed.final is not None
    assert whole.final is not None
    assert resumed.final.test_loss == whole.final.test_loss
    first, second = final_weights
    assert all(torch.equal(first[name], second[name]) for name in first)
    # Another seed is another run.
    other = train(SETTINGS, attention, 2, data, tmp_path / "other")
    assert measured(other) != measured(whole)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_costs_an_epoch_and_no_more(
    data: Data, tmp_path: Path, damage: str, whole_best: Record
) -> None:
    settings = replace(SETTINGS, select="best")
    with pytest.raises(Killed):
        train(settings, "none", 1, data, tmp_path, on_epoch=kill_in(2))
    first, last = sorted(tmp_path.glob("*.ckpt"))
    DAMAGE[damage](last)
    lines: list[str] = []
    put_in_order(tmp_path, lines.append)
    assert [last.name in line for line in lines] == [True]
    seen: list[int] = []
    resumed = train(
        settings, "none", 1, data, tmp_path, on_epoch=lambda metrics: seen.append(metrics.epoch)
    )
    assert seen == [1, 2], "the first epoch's checkpoint was good"
    assert measured(resumed) == measured(whole_best)
    assert resumed.final.test_loss == whole_best.final.test_loss
    assert not first.exists()


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_record_is_made_again(
    data: Data, tmp_path: Path, damage: str, whole_best: Record
) -> None:
    settings = replace(SETTINGS, select="best")
    (tmp_path / "record.json").write_text(json.dumps(whole_best.to_dict()))
    assert train(settings, "none", 1, data, tmp_path) == whole_best
    DAMAGE[damage](tmp_path / "record.json")
    lines: list[str] = []
    put_in_order(tmp_path, lines.append)
    assert ["record.json is damaged" in line for line in lines] == [True]
    assert measured(train(settings, "none", 1, data, tmp_path)) == measured(whole_best)


def test_what_a_run_leaves_behind(data: Data, tmp_path: Path) -> None:
    seen: list[int] = []
    record = train(
        SETTINGS, "eca", 0, data, tmp_path, on_epoch=lambda metrics: seen.append(metrics.epoch)
    )
    assert seen == [0, 1, 2]
    assert Record.from_dict(json.loads((tmp_path / "record.json").read_text())) == record
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_loss"]) for row in rows] == [e.val_loss for e in record.epochs]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.csv", "record.json"]
    assert record.settings["optimizer"]["lr"] == 0.2, "sgd's default follows the batch"
    assert record.environment["versions"]["torch"] == torch.__version__
    # A second call trains nothing.
    seen.clear()
    assert train(SETTINGS, "eca", 0, data, tmp_path) == record
    assert not seen


def test_the_metrics_are_those_of_the_model(data: Data, tmp_path: Path) -> None:
    """Accuracy and loss on test, against a plain loop over the best epoch's weights."""
    settings = replace(SETTINGS, select="best", optimizer=Optimizer(lr=0.05))
    weights: dict[str, Any] = {}

    class Spy(run_module.EpochCheckpoint):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            super().on_train_epoch_end(trainer, pl_module)
            weights[trainer.current_epoch] = {
                k: v.clone() for k, v in pl_module.model.state_dict().items()
            }

    original = run_module.EpochCheckpoint
    run_module.EpochCheckpoint = Spy  # type: ignore[misc]
    try:
        record = train(settings, "se", 0, data, tmp_path)
    finally:
        run_module.EpochCheckpoint = original  # type: ignore[misc]
    assert record.final is not None
    accuracies = [e.val_accuracy for e in record.epochs]
    assert record.final.epoch == accuracies.index(max(accuracies))
    assert record.final.val_accuracy == max(accuracies)
    model = build_model(settings, "se", data)
    model.load_state_dict(weights[record.final.epoch])
    model.eval()
    mean = torch.tensor(data.mean).view(1, -1, 1, 1)
    std = torch.tensor(data.std).view(1, -1, 1, 1)
    with torch.no_grad():
        logits = model((data.test.images / 255 - mean) / std)
    labels = data.test.labels
    assert record.final.test_accuracy == pytest.approx(
        (logits.argmax(1) == labels).float().mean().item(), abs=1e-6
    )
    assert record.final.test_loss == pytest.approx(
        torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-4
    )


def test_runs_of_one_seed_are_paired(data: Data, tmp_path: Path) -> None:
    """Same initial common weights, same batches, for every attention module."""
    firsts = {}
    for attention in ("none", "eca", "cbam"):
        torch.manual_seed(5)
        state = build_model(SETTINGS, attention, data).state_dict()
        firsts[attention] = state
    for name, value in firsts["none"].items():
        assert torch.equal(value, firsts["eca"][name]), name
        assert torch.equal(value, firsts["cbam"][name]), name


def test_tensorboard_and_wandb_offline(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    settings = replace(SETTINGS, epochs=1, loggers=["tensorboard", "wandb"], project="test")
    for seed in (0, 1):
        train(settings, "none", seed, data, tmp_path / str(seed))
        assert list((tmp_path / str(seed)).rglob("events.out.tfevents.*"))
        assert len(list((tmp_path / str(seed)).glob("wandb/offline-run-*"))) == 1


def test_a_missing_logger_names_its_extra(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pytorch_lightning.loggers as loggers

    def missing(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("wandb")

    monkeypatch.setattr(loggers, "WandbLogger", missing)
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(UserError, match=r"pip install 'ecanet\[wandb\]'"):
        train(replace(SETTINGS, loggers=["wandb"]), "none", 0, data, tmp_path)
