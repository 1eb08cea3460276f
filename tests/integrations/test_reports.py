"""What a trainer may report, and what becomes of it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from ecanet.errors import UserError
from ecanet.integrations.reports import EPOCHS, Report, checked_metrics, judged_metric, read_rows
from ecanet.record import Row
from ecanet.training.task import Hooks


def test_numbers_of_every_kind_are_taken() -> None:
    found = checked_metrics(
        {"a": 1, "b": torch.tensor(0.5), "c": np.float32(0.25), "d": torch.ones(1, 1)}, "mine"
    )
    assert found == {"a": 1.0, "b": 0.5, "c": 0.25, "d": 1.0}
    assert all(type(value) is float for value in found.values())


@pytest.mark.filterwarnings("error")
def test_a_loss_with_its_graph_is_taken_without_a_warning() -> None:
    assert checked_metrics({"loss": torch.ones(1, requires_grad=True) * 2}, "mine") == {"loss": 2.0}


@pytest.mark.parametrize("value", ["0.5", None, True, [1], torch.ones(2), {"a": 1}])
def test_what_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(UserError, match=r"mine: a is .*, not a number"):
        checked_metrics({"a": value}, "mine")


@pytest.mark.parametrize("value", [0.5, None, [("accuracy", 1)]])
def test_metrics_are_a_dictionary(value: object) -> None:
    with pytest.raises(UserError, match="return a dictionary"):
        checked_metrics(value, "mine")


def test_the_judged_metric_must_be_there_and_a_share_within_1() -> None:
    assert judged_metric({"mIoU": 0.5}, "mIoU", "mine") == 0.5
    assert math.isnan(judged_metric({"accuracy": math.nan}, "accuracy", "mine"))
    assert judged_metric({"psnr": 31.0}, "psnr", "mine") == 31.0
    with pytest.raises(UserError, match=r"returned no accuracy \(it returned f1 and loss\)"):
        judged_metric({"loss": 1, "f1": 0.5}, "accuracy", "mine")
    with pytest.raises(UserError, match=r"mAP50-95 is 42\.1, .* divide percent by 100"):
        judged_metric({"mAP50-95": 42.1}, "mAP50-95", "mine")


def test_epochs_are_kept_timed_and_passed_on(tmp_path: Path) -> None:
    passed: list[Row] = []
    report = Report(tmp_path, Hooks(on_epoch=passed.append), "accuracy", "mine")
    report(0, accuracy=0.5, loss=torch.tensor(2.0))
    report(1, accuracy=0.75)
    assert [row["accuracy"] for row in passed] == [0.5, 0.75]
    assert read_rows(tmp_path / EPOCHS) == [
        {"epoch": 0, "accuracy": 0.5, "loss": 2.0, "seconds": passed[0]["seconds"]},
        {"epoch": 1, "accuracy": 0.75, "seconds": passed[1]["seconds"]},
    ]


def test_a_trainer_that_resumes_adds_epochs_and_one_that_starts_again_replaces_them(
    tmp_path: Path,
) -> None:
    first = Report(tmp_path, Hooks(), "accuracy", "mine")
    for epoch, accuracy in enumerate((0.5, 0.6, 0.7)):
        first(epoch, accuracy=accuracy)
    seconds = [row["seconds"] for row in first.rows]

    resumed = Report(tmp_path, Hooks(), "accuracy", "mine")
    resumed(2, accuracy=0.7)  # reported before, and killed before it was saved
    resumed(3, accuracy=0.8)
    assert [row["accuracy"] for row in resumed.rows] == [0.5, 0.6, 0.7, 0.8]
    assert [row["seconds"] for row in resumed.rows[:3]] == seconds

    again = Report(tmp_path, Hooks(), "accuracy", "mine")
    again(0, accuracy=0.4)
    assert [row["accuracy"] for row in again.rows] == [0.4]


def test_several_calls_share_an_epoch(tmp_path: Path) -> None:
    report = Report(tmp_path, Hooks(), "accuracy", "mine")
    report(0, loss=1.0)
    report(0, accuracy=0.5)
    report(1, loss=math.nan, seconds=99)
    report(1, loss=math.nan, seconds=99)
    report(0, loss=1.0, accuracy=0.5, top5=0.9)  # of a table whose line was completed later
    rows = [{name: row[name] for name in row if name != "seconds"} for row in report.rows]
    assert rows[0] == {"epoch": 0, "loss": 1.0, "accuracy": 0.5, "top5": 0.9}
    assert rows[1].keys() == {"epoch", "loss"}
    assert sum(row["seconds"] for row in report.rows) < 9


@pytest.mark.parametrize("epoch", [-1, 0.5, True, "1", None])
def test_epochs_are_whole_numbers(tmp_path: Path, epoch: object) -> None:
    with pytest.raises(UserError, match="give a whole number from 0"):
        Report(tmp_path, Hooks(), "accuracy", "mine")(epoch, accuracy=1.0)  # type: ignore[arg-type]


def test_what_a_hook_raises_ends_the_run(tmp_path: Path) -> None:
    def lost() -> None:
        raise RuntimeError("lost")

    report = Report(tmp_path, Hooks(on_step=lost), "accuracy", "mine")
    with pytest.raises(RuntimeError, match="lost"):
        report(0, accuracy=1.0)
    assert not (tmp_path / EPOCHS).exists()


def test_tables_of_others_are_read_as_far_as_they_are_written(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    assert read_rows(file) == []
    file.write_text("  epoch,   metrics/mAP50(B), lr, note\n1, 0.25, 0.1, good\n2, 0.5,,\n3, 0.")
    whole = [
        {"epoch": 1, "metrics/mAP50(B)": 0.25, "lr": 0.1},
        {"epoch": 2, "metrics/mAP50(B)": 0.5},
    ]
    assert read_rows(file, ended=False) == whole
    assert read_rows(file) == [*whole, {"epoch": 3, "metrics/mAP50(B)": 0.0}]
    file.write_text("epoch,accuracy\n0,0.5\n,\n")
    assert read_rows(file) == [{"epoch": 0, "accuracy": 0.5}]
    file.write_text("accuracy\n0.5\nnan\n")
    first, second = read_rows(file)
    assert first == {"epoch": 0, "accuracy": 0.5}
    assert second["epoch"] == 1
    assert math.isnan(second["accuracy"])


def test_lines_of_one_epoch_are_one_row(tmp_path: Path) -> None:
    """As Lightning's CSVLogger writes them."""
    file = tmp_path / "metrics.csv"
    file.write_text("\ufeffepoch,loss,val_accuracy\n0,2.0,\n0,,0.5\n1,1.5,\n1,1.0,0.6\n")
    assert read_rows(file) == [
        {"epoch": 0, "loss": 2.0, "val_accuracy": 0.5},
        {"epoch": 1, "loss": 1.0, "val_accuracy": 0.6},
    ]
