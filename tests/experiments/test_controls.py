"""Controls: the plain network, longer trained or wider, for the cost of a module."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.synthetic import make_summary

import ecanet
from ecanet.attention import register_attention, registry
from ecanet.config import Augmentation, ClassificationSettings, DetectionSettings, StudySettings
from ecanet.errors import UserError
from ecanet.experiments import controls as settling
from ecanet.experiments.analysis.controls import against_controls
from ecanet.experiments.analysis.statistics import study_statistics
from ecanet.experiments.controls import measure_and_match
from ecanet.experiments.plans.compare import ComparePlan, run_name
from ecanet.experiments.plans.controls import (
    WITHIN,
    Control,
    check_controls,
    control_name,
    parse_control,
)
from ecanet.experiments.report.compare import write_report
from ecanet.experiments.study.study import load_study
from ecanet.models.weights.load import build_from_weights
from ecanet.record import Cost
from ecanet.training.classification import read, resolve

SETTINGS = ClassificationSettings(
    epochs=4,
    batch_size=256,
    device="cpu",
    precision="float32",
    augmentation=Augmentation(flip=False, crop_padding=1),
)


@pytest.fixture
def ge_takes_a_quarter_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ge take 1.24 times the time of none, and anything else 1.1 times, on any machine."""
    real = settling.measure

    def measure(*arguments: Any, **how: Any) -> list[Cost]:
        costs = real(*arguments, **how | {"repeats": 1})
        plain = costs[0].train
        slower = {"none": 1.0, "ge": 1.24}
        for cost in costs:
            cost.train = replace(plain, median=plain.median / slower.get(cost.attention, 1.1))
        return costs

    monkeypatch.setattr(settling, "measure", measure)


def test_names() -> None:
    assert control_name("control") == "control:time"
    assert control_name("control:macs") == "control:macs"
    assert parse_control("control:macs=eca:kernel_size=9") == ("macs", "eca:kernel_size=9")
    assert run_name("control:macs=se", 3) == "control-macs=se-seed3"


@pytest.mark.parametrize("name", ["control:width", "control:", "control:time=", "control:by=macs"])
def test_a_control_of_something_else_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"a control is control:time, control:macs or control:par"):
        parse_control(name)


def test_a_module_may_not_be_called_control(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    register_attention("control")(lambda channels: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(UserError, match="give it another name"):
        parse_control("control:time")


@pytest.mark.parametrize(
    ("arms", "says"),
    [
        (["se", "eca", "control:time"], "name none too, and a control after it"),
        (["control:time", "none", "eca"], "name none too, and a control after it"),
        (["none", "control:time"], "name one, such as none,eca,control:time"),
        (["none", "eca", "control:time=se"], "se is not compared"),
    ],
)
def test_controls_that_match_nothing_are_refused(arms: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        check_controls(arms)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_one_study_with_every_control(
    ge_takes_a_quarter_more: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ecanet")
    arms = ["none", "ema", "ge", "control", "control:macs", "control:parameters=ge"]
    folder = tmp_path / "study"
    study = StudySettings(arms, seeds=1, keep_weights="last")
    summary = ecanet.compare(folder, SETTINGS, study, jobs=1)
    plan = load_study(folder).plan()
    assert isinstance(plan, ComparePlan)
    time, macs, parameters = plan.controls.values()
    assert list(plan.controls) == ["control:time", *arms[4:]]
    assert [c.module for c in (time, macs, parameters)] == ["ge", "ema", "ge"]
    costs = {cost.attention: cost for cost in summary.costs}
    assert list(costs) == plan.attention == ["none", "ema", "ge", *plan.controls]

    # Steps of the longer training, multiply-adds and parameters are within 2 % of the module's.
    runs = {record.attention: record for record in summary.records}
    assert runs["control:time"].settings["epoch_length"] == pytest.approx(1.24)
    assert time.reached == pytest.approx(1.24, rel=WITHIN)
    assert costs["control:time"].train == costs["none"].train
    assert costs["control:macs"].macs == pytest.approx(costs["ema"].macs, rel=WITHIN)
    assert costs["control:macs"].macs / costs["none"].macs == macs.reached
    wide = costs["control:parameters=ge"].parameters
    assert wide == pytest.approx(costs["ge"].parameters, rel=WITHIN)
    assert all(runs[name].settings["attention"] == "none" for name in plan.controls)
    assert len(runs["control:time"].epochs) == len(runs["none"].epochs), "as many choices"

    # Said in the log and in the report.
    line = (
        "the control, control:time, is none trained for 4.96 passes over the images in place of 4"
    )
    assert any(line in message for message in caplog.messages)
    page = (folder / "report/index.html").read_text()
    assert "The control, control:macs, is none with" in page
    assert any(text.startswith("For the same cost, ge: ") for text in caplog.messages)

    # The weights of a wider network describe it.
    weights = build_from_weights(folder / "runs/control-macs-seed0/last.safetensors")
    assert weights.layer3[0].conv1.out_channels == macs.channels[2]  # type: ignore[index]

    # Resumed and extended, it has the same controls; others that come later are settled then.
    caplog.clear()
    more = replace(study, attention=[*arms, "control:time=ema"])
    again = ecanet.compare(folder, SETTINGS, more, jobs=1)
    assert len(again.records) == len(summary.records) + 1
    assert {name: again.controls[name] for name in plan.controls} == plan.controls
    assert again.controls["control:time=ema"].cost == pytest.approx(1.1)
    assert sum("measuring" in message for message in caplog.messages) == 1


def test_what_costs_nothing_has_no_control(tmp_path: Path) -> None:
    study = StudySettings(["none", "eca", "control:macs"], seeds=1)
    with pytest.raises(
        UserError, match=r"eca takes 0.0 % more multiply-adds than none.*take contr"
    ):
        ecanet.compare(tmp_path / "study", SETTINGS, study)
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            replace(SETTINGS, weights="best.safetensors"),
            "there are no weights to start from; take c",
        ),
        (replace(SETTINGS, model="regnety_002"), "regnety_002 cannot be widened, as ecanet's own"),
    ],
)
def test_what_cannot_be_widened_is_refused(settings: ClassificationSettings, says: str) -> None:
    data = read(replace(settings, weights=None))
    if not settings.weights:
        settings = resolve(settings, data)
    with pytest.raises(UserError, match=says):
        measure_and_match(settings, ["none", "ema", "control:macs"], data)


def test_detectors_are_not_widened() -> None:
    with pytest.raises(UserError, match="detectors are not widened; take control:time"):
        measure_and_match(DetectionSettings(), ["none", "se", "control:macs"], None)
    with pytest.raises(UserError, match="detectors are not widened"):
        Control("macs", "se", 1.1, 1.1, channels=[1]).settings(DetectionSettings())


def test_too_few_steps_to_match_are_refused(ge_takes_a_quarter_more: None) -> None:
    data = read(SETTINGS)
    settings = resolve(replace(SETTINGS, epochs=1, batch_size=len(data.train)), data)
    with pytest.raises(UserError, match=r"the nearest is off by 19\.4 %: train for more epochs"):
        measure_and_match(settings, ["none", "ge", "control:time"], data)


def test_a_module_against_its_control(tmp_path: Path) -> None:
    found = make_summary(
        {
            "none": [0.90, 0.91, 0.905],
            "eca": [0.92, 0.93, 0.925],
            "control:time": [0.919, 0.931, 0.9255],
        }
    )
    found.controls = {"control:time": Control("time", "eca", 1.24, 1.24, epoch_length=1.24)}
    for record in found.records:
        # The machine was three times as slow in one of the seeds.
        record.final["train_seconds"] = 3.0 if record.seed else 9.0
        if record.attention == "control:time":
            record.final["train_seconds"] *= 1.1
    (sentence,) = against_controls(found, study_statistics(found))
    assert sentence.startswith("for about the same cost, eca: equivalent to control:time within ")
    assert sentence.endswith(
        "a run of control:time took 1.10 times as long as that of eca with the same seed (median), so their "
        "training times differ by 10 %"
    )
    for record in found.records:
        if record.attention == "control:time":
            record.final["train_seconds"] *= 1.01 / 1.1
    (sentence,) = against_controls(found, study_statistics(found))
    assert sentence.startswith("for the same cost, eca: ")
    assert sentence.endswith("with the same seed (median)")
    write_report(found, tmp_path)
    answer = json.loads((tmp_path / "report.json").read_text())["answer"]
    assert ["trained 1.24 × as long" in line for line in answer] == [False, False, True]
    found.records = []
    assert "nothing to compare" in against_controls(found, study_statistics(found))[0]


def test_a_plan_whose_control_is_lost_is_refused() -> None:
    plan = ComparePlan(
        settings=SETTINGS,
        data_fingerprint="",
        skipped_images=[],
        plugin=[],
        attention=["none", "eca", "control:time"],
        seeds=[0],
    )
    with pytest.raises(UserError, match="control:time has no settings: start the comparison again"):
        plan.check()
    plan.controls = {"control:time": Control("time", "eca", 1.2, 1.2, epoch_length=0.1)}
    with pytest.raises(UserError, match=r"--epoch-length 0\.1"):
        plan.check()
