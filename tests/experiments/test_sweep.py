"""Sweeps as they run: real trainings of a small network on the digits."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from helpers.commands import Run
from helpers.plugins import write_plugin
from helpers.runs import draw_shapes
from optuna.trial import TrialState

from ecanet.config import Augmentation, ClassificationSettings, SweepSettings
from ecanet.data import load_data
from ecanet.errors import UserError
from ecanet.experiments.dryrun import dry_run_sweep
from ecanet.experiments.plans.sweep import SweepPlan
from ecanet.experiments.plans.sweep_file import parse_sweep
from ecanet.experiments.study.plan import plan_from_dict
from ecanet.experiments.study.study import load_study
from ecanet.experiments.sweep import planned_trials, sweep
from ecanet.record import Record
from ecanet.training.classification import resolve

SETTINGS = ClassificationSettings(
    epochs=1,
    batch_size=256,
    device="cpu",
    precision="float32",
    compile="off",
    augmentation=Augmentation(flip=False, crop_padding=1),
)
GRID = {
    "method": "grid",
    "metric": {"name": "loss", "goal": "minimize"},
    "parameters": {"att": {"values": ["None", "ECA"]}, "lr": {"values": [1e-4, 0.05]}},
}


def write(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


def plan(content: dict[str, Any], **changes: Any) -> SweepPlan:
    found = parse_sweep(content)
    values: dict[str, Any] = {
        "settings": SETTINGS, "data_fingerprint": "", "skipped_images": [],
        "plugin": [], "metric": found.metric, "sweep": found.content, "trials": 8,
        "direction": "maximize" if found.maximize else "minimize", **changes,
    }  # fmt: skip
    return SweepPlan(**values)


def test_a_grid_from_the_file_to_the_confirmed_winner(
    tmp_path: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ecanet")
    file, out = write(tmp_path / "sweep.yaml", GRID), tmp_path / "out"
    found = sweep(file, out, SETTINGS, SweepSettings(trials=2), jobs=1)
    assert [t.state for t in found.trials] == ["finished"] * 2
    assert [t.values for t in found.trials] == [{"att": "none", "lr": lr} for lr in (1e-4, 0.05)]
    for trial in load_study(out).trials.get_trials():
        record = trial.user_attrs["record"]
        assert record["final"].get("test_accuracy") is None, "no trial reads the test split"
        assert trial.value == record["final"]["val_loss"] == record["epochs"][-1]["val_loss"]

    # The same command with another trial, and the best confirmed.
    before = {t.name: t.metric for t in found.trials}
    more = SweepSettings(trials=3, confirm=1, confirm_seeds=1)
    found = sweep(file, out, SETTINGS, more, jobs=1)
    assert len(found.trials) == 3
    assert before.items() <= {t.name: t.metric for t in found.trials}.items()
    (best,) = found.confirmed
    assert best.trial == found.ranked()[0].name
    assert list(best.records) == [1], "a seed that no trial has seen"
    assert math.isfinite(best.finals("test_accuracy")[0])
    assert len(load_study(out).trials.get_trials()) == 4
    trained = sum("validation loss" in line for line in caplog.messages)
    assert trained == 4, "nothing is trained twice"

    # Another sweep in the same folder is refused, with what differs.
    other = {**GRID, "parameters": {**GRID["parameters"], "lr": {"values": [1e-4, 0.06]}}}
    with pytest.raises(UserError, match=r"parameters\.lr\.values: \[0.0001, 0.05\] there"):
        sweep(write(tmp_path / "other.yaml", other), out, SETTINGS, more, jobs=1)
    with pytest.raises(UserError, match="seed: 0 there, 5 requested"):
        sweep(file, out, replace(SETTINGS, seed=5), more, jobs=1)
    with pytest.raises(UserError, match="epochs: 1 there, 2 requested"):
        sweep(file, out, replace(SETTINGS, epochs=2), more, jobs=1)
    assert dry_run_sweep(file, out, SETTINGS, more, jobs=1).done == 4
    code, _, err = run("compare", "digits", "--seeds", "3", "--device", "cpu", "--out", str(out))
    assert (code, err.splitlines()[-1]) == (2, f"ecanet: {out} is a sweep: choose another --out")

    report = json.loads((out / "report/report.json").read_text())
    assert report["winner"] == best.trial
    # The recipe trains the very run that was confirmed.
    recipe = out / "report/best.yaml"
    flags = ["--recipe", recipe, "--device", "cpu"]
    code, _, err = run("train", *flags, "--seed", "1", "--out", tmp_path / "run")
    assert code == 0, err
    again = Record.from_dict(json.loads((tmp_path / "run/record.json").read_text()))
    assert again.final["test_loss"] == best.finals("test_loss")[0]
    written = yaml.safe_load(recipe.read_text())
    assert (written["attention"], written["epochs"]) == ([best.values["att"]], 1)


def test_there_are_no_more_trials_than_the_file_has(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "ecanet")
    grid = parse_sweep(GRID)
    assert planned_trials(grid, SweepSettings()) == 4
    assert planned_trials(grid, SweepSettings(trials=3)) == 3
    assert not caplog.messages
    assert planned_trials(grid, SweepSettings(trials=9)) == 4
    assert caplog.messages == ["--trials 9: running 4 trials, all of the grid"]
    capped = parse_sweep({**GRID, "method": "random", "run_cap": 7})
    assert planned_trials(capped, SweepSettings()) == 7
    assert planned_trials(capped, SweepSettings(trials=9)) == 7
    assert planned_trials(parse_sweep({**GRID, "method": "bayes"}), SweepSettings()) == 20


def test_a_trial_that_fails_is_reported_and_the_others_run(tmp_path: Path) -> None:
    forward = "if len(x) == 256:\n    raise RuntimeError('first line\\nsecond line')\nreturn x"
    settings = replace(SETTINGS, plugin=[write_plugin(tmp_path / "mine.py", "breaks", forward)])
    content = {**GRID, "parameters": {"att": {"values": ["breaks", "none"]}}}
    found = sweep(write(tmp_path / "sweep.yaml", content), tmp_path / "out", settings, jobs=1)
    assert [t.state for t in found.trials] == ["failed", "finished"]
    assert found.trials[0].error == "RuntimeError: first line second line"
    assert found.winner() == "trial-0001"


def test_time_and_target_end_a_sweep(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "ecanet")
    # More trials than end in the second between two looks.
    many = {"lr": {"values": [0.001 * number for number in range(1, 41)]}}
    content = {**GRID, "parameters": many, "metric": {"name": "acc", "target": 0.0}}
    file = write(tmp_path / "sweep.yaml", content)
    found = sweep(file, tmp_path / "out", SETTINGS, jobs=1)
    done = [t.state for t in found.trials].count("finished")
    assert 1 <= done < 40, "the first trial reaches the target"
    assert "not run" in [t.state for t in found.trials]
    assert any("reached the target" in line for line in caplog.messages)
    timed = write(tmp_path / "timed.yaml", GRID)
    found = sweep(
        timed, tmp_path / "timed", SETTINGS, SweepSettings(timeout=1e-6, confirm=1), jobs=1
    )
    assert {t.state for t in found.trials} == {"not run"}
    assert not found.confirmed, "first the trials"
    assert any("--timeout is over: 4 runs are left" in line for line in caplog.messages)


def test_nothing_is_left_behind_by_what_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "sweep.yaml", GRID)
    bad: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({"lr": {"values": [0.1, -1.0]}}, {}, "parameter lr: --optimizer.lr -1.0"),
        ({"epochs": {"values": [0, 1]}}, {}, "parameter epochs: --epochs 0"),
        ({"att": {"values": ["eca", "ecca"]}}, {}, "parameter att: .*eca"),
        ({"batch_size": {"values": [8, 4096]}}, {}, "give a number from 1 to 1295"),
        ({"model": {"values": ["resnet20", "resnet21"]}}, {}, "resnet20"),
        (GRID["parameters"], {"trials": 0}, "--trials 0"),
        (GRID["parameters"], {"confirm": -1}, "--confirm -1"),
        (GRID["parameters"], {"timeout": 0}, "--timeout 0"),
    ]
    for parameters, chosen, says in bad:
        write(file, {**GRID, "parameters": parameters})
        with pytest.raises(UserError, match=says):
            sweep(file, tmp_path / "out", SETTINGS, SweepSettings(**chosen), jobs=1)
        assert not (tmp_path / "out").exists(), says


@pytest.mark.slow
def test_detectors_are_swept(tmp_path: Path, run: Run) -> None:
    """Over attention and learning rate, and the best confirmed, by the command."""
    parameters = {"att": {"values": ["none", "eca"]}, "lr": {"values": [0.001, 0.01]}}
    content = {"method": "grid", "metric": {"name": "box_AP"}, "parameters": parameters}
    file = write(tmp_path / "sweep.yaml", content)
    code, _, err = run(
        "detect", "sweep", file, "--data", draw_shapes(tmp_path / "shapes"),
        "--detector", "faster_rcnn", "--model", "resnet18", "--width", "16", "--anchor-size", "8",
        "--min-size", "64", "--max-size", "64", "--proposals", "20", "--box-samples", "16",
        "--epochs", "1", "--limit", "8", "--batch-size", "4", "--workers", "0", "--device", "cpu",
        "--precision", "float32", "--jobs", "1", "--confirm", "1", "--confirm-seeds", "1",
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 0, err
    report = json.loads((tmp_path / "out/report/report.json").read_text())
    assert [trial["state"] for trial in report["trials"]] == ["finished"] * 4
    trials = load_study(tmp_path / "out").trials.get_trials()
    used = [trial.user_attrs["record"]["settings"] for trial in trials]
    swept = [(s["attention"], s["optimizer"]["lr"]) for s in used[:4]]
    assert swept == list(itertools.product(["none", "eca"], [0.001, 0.01]))
    assert [s["seed"] for s in used] == [0, 0, 0, 0, 1]
    for trial in trials:
        assert trial.value == trial.user_attrs["record"]["final"]["box_AP"]


# ---- The plan


def drawn(content: dict[str, Any], order: list[int], **changes: Any) -> dict[int, dict[str, Any]]:
    """What the trials of these numbers would train, each given by a sampler of its own."""
    made = plan(content, **changes)
    study = optuna.create_study(direction=made.direction)
    found = {}
    for number in order:
        study.sampler = made.sampler(number)
        job = made.job(study.ask())
        found[number] = {"lr": job.settings.optimizer.lr, "batch": job.settings.batch_size}
    return found


def test_a_random_trial_depends_on_seed_and_number_alone() -> None:
    content = {
        "method": "random",
        "parameters": {
            "lr": {"min": 0.001, "max": 0.1},
            "batch_size": {"distribution": "q_log_uniform_values", "min": 32, "max": 256},
        },
    }
    first = drawn(content, [0, 1, 2, 3])
    assert drawn(content, [3, 1, 0, 2]) == first
    assert len({v["lr"] for v in first.values()}) == 4
    assert all(type(v["batch"]) is int for v in first.values())
    assert drawn(content, [0], settings=replace(SETTINGS, seed=1))[0] != first[0]


def test_bayes_closes_in() -> None:
    content = {
        "method": "bayes",
        "metric": {"name": "loss"},
        "parameters": {"lr": {"min": 1e-4, "max": 1.0, "distribution": "log_uniform_values"}},
    }
    made = plan(content)
    study = optuna.create_study(direction="minimize")
    far = []
    for number in range(40):
        study.sampler = made.sampler(number)
        trial = study.ask()
        value = abs(math.log10(made.job(trial).settings.optimizer.lr) + 2)
        study.tell(trial, value)
        far.append(value)
    assert sum(far[-10:]) < 0.6 * sum(far[:10])


def test_the_rate_follows_optimizer_and_batch_unless_it_is_given() -> None:
    parameters = {"optimizer": {"values": ["adam", "sgd"]}, "batch_size": {"values": [64, 256]}}
    made = plan({"method": "grid", "parameters": parameters}, trials=4)
    jobs, data = [made.job_of(run.params, {}) for run in made.runs()], load_data("digits")
    rates = [resolve(job.settings, data).optimizer.lr for job in jobs]
    assert rates == [1e-3, 1e-3, 0.05, 0.2]
    made.settings = replace(SETTINGS, optimizer=replace(SETTINGS.optimizer, lr=0.3))
    assert made.job_of(made.runs()[0].params, {}).settings.optimizer.lr == 0.3


@pytest.mark.parametrize(("strict", "pruned"), [(True, [False, True, True, False]), (False, None)])
def test_the_worse_runs_end_early(strict: bool, pruned: list[bool] | None) -> None:
    content = {
        "method": "random",
        "metric": {"name": "loss"},
        "parameters": {"lr": {"min": 0.1, "max": 1.0}},
        "early_terminate": {"type": "hyperband", "min_iter": 1, "eta": 2, "strict": strict},
    }
    made = plan(content, settings=replace(SETTINGS, epochs=4))
    pruner = made.pruner()
    assert pruner is not None
    study = optuna.create_study(direction="minimize", pruner=pruner)
    ended = []
    for loss in (1.0, 2.0, 3.0, 0.5) if strict else [float(i % 7) for i in range(40)]:
        trial = study.ask()
        early = False
        for epoch in range(1, 5):
            trial.report(loss, epoch)
            if trial.should_prune():
                assert epoch < 4, "a run that has ended is no longer cut short"
                early = True
                break
        study.tell(trial, None if early else loss, state=TrialState.PRUNED if early else None)
        ended.append(early)
    assert ended == pruned if strict else 0 < sum(ended) < 40
    # Runs that confirm are let be; and what lies behind the last epoch never acts.
    trial = study.ask()
    trial.set_user_attr("of", "trial-0000")
    trial.report(1e9, 1)
    assert not trial.should_prune()
    content["early_terminate"] = {"type": "hyperband", "min_iter": 9}
    assert plan(content).pruner() is None


def test_a_plan_survives_its_way_through_the_storage() -> None:
    made = plan(GRID, confirmed=[{"trial": "trial-0001", "params": {"att": "eca", "lr": 0.05}}])
    again = plan_from_dict(json.loads(json.dumps(made.to_dict())))
    assert again == made
    assert [run.name for run in again.runs()][-3:] == [f"trial-0001-seed{n}" for n in (1, 2, 3)]
