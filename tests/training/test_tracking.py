"""TensorBoard, W&B, trackio and MLflow beside the CSV that every run writes."""

from __future__ import annotations

import importlib.util
import json
import logging
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from helpers.runs import settings_of

from ecanet.errors import UserError
from ecanet.training import tracking, trainer
from ecanet.training.task import Hooks
from ecanet.training.tracking import STATE, TrackedRun, check_trackers, open_trackers
from ecanet.training.train import train

Points = dict[str, list[tuple[int, float]]]


@dataclass
class Found:
    """What a tracker has of a run: each metric as (step, value), the settings, the group."""

    points: Points
    config: dict[str, Any]
    group: str | None


def read_tensorboard(out: Path) -> Found:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    read = EventAccumulator(str(out / "tensorboard"))
    read.Reload()
    points = {
        name: [(one.step, one.value) for one in read.Scalars(name)]
        for name in read.Tags()["scalars"]
    }
    content = read.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    hparams = HParamsPluginData.FromString(content).session_start_info.hparams
    return Found(points, {name: value.number_value for name, value in hparams.items()}, None)


def records_of(file: Path) -> Iterator[bytes]:
    """Yield the records of an offline run of W&B, a LevelDB log: its Python package has no reader."""
    data, place, record = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # the rest of a block is padding
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def read_wandb(out: Path) -> Found:
    from wandb.proto.wandb_internal_pb2 import Record

    points: Points = {}
    config: dict[str, Any] = {}
    runs = set()
    for file in sorted(out.glob("wandb/offline-run-*/*.wandb")):
        for record in map(Record.FromString, records_of(file)):
            if record.HasField("run"):
                runs.add((record.run.run_id, record.run.run_group))
                updates = record.run.config.update
                config |= {one.key: json.loads(one.value_json) for one in updates}
            if record.HasField("history"):
                items = record.history.item
                row = {one.key or one.nested_key[0]: json.loads(one.value_json) for one in items}
                step = row.pop("trainer/global_step")
                for name in row.keys() - {"_step", "_runtime", "_timestamp"}:
                    points.setdefault(name, []).append((step, row[name]))
    ((_, group),) = runs
    return Found(points, {"optimizer.lr": config["optimizer"]["lr"]}, group)


def read_trackio(out: Path) -> Found:
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = trackio.Api().runs("contract")
    points: Points = {}
    for row in SQLiteStorage.get_logs("contract", run.name, run_id=run.id):
        step = row.pop("step")
        for name in row.keys() - {"timestamp"}:
            points.setdefault(name, []).append((step, row[name]))
    return Found(points, run.config, run.config["_Group"])


def read_mlflow(out: Path) -> Found:
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("contract")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == out.name
    points = {
        name: [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }
    config = {"optimizer.lr": float(run.data.params["optimizer.lr"])}
    return Found(points, config, run.data.tags["group"])


READERS: dict[str, Callable[[Path], Found]] = {
    "tensorboard": read_tensorboard,
    "wandb": read_wandb,
    "trackio": read_trackio,
    "mlflow": read_mlflow,
}


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every tracker keep its runs in ``tmp_path``."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))


@pytest.mark.parametrize(
    "name", ["tensorboard", "wandb", "trackio", pytest.param("mlflow", marks=pytest.mark.slow)]
)
def test_every_tracker_has_each_point_once_of_a_run_that_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local: None, name: str
) -> None:
    pytest.importorskip(name)
    monkeypatch.setattr(trainer, "LOG_EVERY", 2)
    settings = replace(
        settings_of("memory", tmp_path),
        epochs=2,
        loggers=[name],
        project="contract",
        save_every=1000,
    )
    steps = 0

    def die() -> None:
        nonlocal steps
        steps += 1
        if steps == 9:  # in the second epoch; the last checkpoint is that of the start
            raise RuntimeError("killed")

    out = tmp_path / "named"
    with pytest.raises(RuntimeError, match="killed"):
        train(settings, out, hooks=Hooks(on_step=die))
    record = train(settings, out)
    found = READERS[name](out)
    assert found.config["optimizer.lr"] == pytest.approx(settings.optimizer.lr)
    if name != "tensorboard":
        assert found.group == "eca"
    for metric, points in found.points.items():
        at = [step for step, _ in points]
        assert at == sorted(set(at)), f"{metric} has a step twice"
    length = found.points["val_accuracy"][0][0]
    for metric in ("val_accuracy", "val_loss", "epoch"):
        expected = [((row["epoch"] + 1) * length, row[metric]) for row in record.epochs]
        assert found.points[metric] == [(s, pytest.approx(v, rel=1e-6)) for s, v in expected]
    assert len(found.points["train_loss"]) > 2, "lines within epochs"
    for metric in ("val_accuracy", "epoch", "train_seconds"):
        final = [(2 * length, pytest.approx(record.final[metric], rel=1e-6))]
        assert found.points[f"final/{metric}"] == final


def test_a_tracker_that_fails_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Full(tracking._Tracker):
        def __init__(self, run: TrackedRun) -> None:
            self.left = 1

        def log(self, metrics: dict[str, float], step: int) -> None:
            self.left -= 1
            if self.left < 0:
                raise OSError("no room\nfor more")

    def broken(run: TrackedRun) -> tracking._Tracker:
        raise ValueError("no such store")

    kept: list[tuple[int, dict[str, float]]] = []

    class Kept(tracking._Tracker):
        def __init__(self, run: TrackedRun) -> None: ...

        def log(self, metrics: dict[str, float], step: int) -> None:
            kept.append((step, metrics))

    monkeypatch.setattr(
        tracking, "_TRACKERS", {"a": ("A", Full), "b": ("B", broken), "c": ("C", Kept)}
    )
    run = TrackedRun(tmp_path, None, None, {})
    with open_trackers("abc", run) as trackers:
        for step in (1, 2, 3):
            trackers.log({"loss": 1.0}, step)
        trackers.log_final({"accuracy": 0.5, "loss": float("nan")}, 3)
    assert [
        record.getMessage() for record in caplog.records if record.levelno == logging.WARNING
    ] == [
        "B cannot be opened (ValueError: no such store): the run continues without it, and metrics.csv has "
        "everything",
        "A takes no more metrics (OSError: no room for more): the run continues without it, and metrics.csv "
        "has everything",
    ]
    assert kept == [*((step, {"loss": 1.0}) for step in (1, 2, 3)), (3, {"final/accuracy": 0.5})]
    again = TrackedRun(tmp_path, None, None, {})
    assert again.id == run.id
    with open_trackers("c", again) as trackers:
        trackers.log({"loss": 1.0}, 3)
        trackers.log({"loss": 1.0, "accuracy": 0.5}, 4)
    assert kept[4:] == [(4, {"loss": 1.0, "accuracy": 0.5})]


def test_no_tracker_no_file(tmp_path: Path) -> None:
    with open_trackers([], TrackedRun(tmp_path, None, None, {})) as trackers:
        trackers.log({"loss": 1.0}, 1)
    assert not (tmp_path / STATE).exists()


@pytest.mark.slow
def test_an_mlflow_server_that_cannot_be_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with open_trackers(["mlflow"], TrackedRun(tmp_path, "p", None, {"lr": 0.1})) as trackers:
        trackers.log({"loss": 1.0}, 1)
    assert "MLflow cannot be reached" in caplog.text
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("p").experiment_id])
    assert run.data.metrics == {"loss": 1.0}


@pytest.mark.parametrize("name", READERS)
def test_a_missing_logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    settings = replace(settings_of("memory", tmp_path), loggers=[name])
    with pytest.raises(UserError, match=rf"pip install 'ecanet\[{name}\]'"):
        train(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_loggers_in_the_settings_are_those_that_there_are() -> None:
    assert set(tracking._TRACKERS) == set(READERS)
    check_trackers([name for name in ("tensorboard",) if importlib.util.find_spec(name)])
