from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ecanet.aliases import METRICS, SETTINGS
from ecanet.config import SHARED, ClassificationSettings, DetectionSettings
from ecanet.errors import UserError
from ecanet.experiments.plans.sweep import with_values
from ecanet.experiments.plans.sweep_file import parse_sweep, read_sweep, setting_of, setting_types

THE_2020_FILE = """\
program: train.py
method: bayes
metric:
  name: loss
  goal: minimize
parameters:
  att:
    values: [ECA, CBAM, SE, Triplet]
  optimizer:
    values: [adam, sgd]
  batch_size:
    values: [64, 128, 256]
"""


def content(**changes: Any) -> dict[str, Any]:
    base = {
        "method": "random",
        "metric": {"name": "loss"},
        "parameters": {"lr": {"min": 0.1, "max": 1.0}},
    }
    return {**base, **changes}


def test_the_2020_file(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(THE_2020_FILE)
    sweep = read_sweep(path)
    assert (sweep.method, sweep.metric, sweep.maximize) == ("bayes", "val_loss", False)
    assert {p.setting: p.bounds for p in sweep.parameters} == {
        "attention": ["eca", "cbam", "se", "triplet"],
        "optimizer.name": ["adam", "sgd"],
        "batch_size": [64, 128, 256],
    }
    assert sweep.notes == ["program is ignored: ecanet trains itself"]


def test_the_packaged_file_is_the_2020_file() -> None:
    import ecanet

    folder = Path(ecanet.__file__).parent / "recipes/sweeps"
    assert (folder / "reproduction2020.yaml").read_text().endswith(THE_2020_FILE)
    for path in folder.glob("*.yaml"):
        assert read_sweep(path).swept
        command = f"ecanet sweep sweeps/{path.stem}"
        assert command in path.read_text(), "its header holds the command"


NESTED = """\
optimizer:
  parameters:
    name: {values: [SGD, Adam]}
    learning_rate: {min: 1e-4, max: 1e-1, distribution: log_uniform_values}
schedule: {parameters: {milestones: {values: [[1, 2], [3]]}}}
wd: {value: 5e-4}
epochs: {value: 3}
batch-size: {distribution: q_log_uniform_values, min: 32, max: 256, q: 8.0}
augmentation.flip: {values: [true, false]}
data: {value: cifar10}
"""


def test_nested_parameters_constants_and_numbers_that_yaml_reads_as_text() -> None:
    parameters = yaml.safe_load(NESTED)
    assert parameters["wd"] == {"value": "5e-4"}
    sweep = parse_sweep(content(parameters=parameters))
    unchanged = ("optimizer.name", "schedule.milestones", "epochs", "augmentation.flip", "data")
    assert {p.name: p.setting for p in sweep.parameters} == {
        **{name: name for name in unchanged},
        "optimizer.learning_rate": "optimizer.lr",
        "wd": "optimizer.weight_decay",
        "batch-size": "batch_size",
    }
    assert sweep.constants == {"optimizer.weight_decay": 5e-4, "epochs": 3, "data": "cifar10"}
    settings = with_values(ClassificationSettings(), {**sweep.constants, "optimizer.name": "adam"})
    assert (settings.epochs, settings.optimizer.weight_decay) == (3, 5e-4)
    assert (settings.optimizer.name, settings.optimizer.momentum) == ("adam", 0.9)


def test_grid_points_are_all_combinations_once() -> None:
    values = {"att": {"values": ["SE", "ECA"]}, "epochs": {"min": 1, "max": 3}}
    sweep = parse_sweep(content(method="grid", parameters={**values, "lr": {"value": 0.1}}))
    assert sweep.grid_size() == 6
    points = [sweep.grid_point(i) for i in range(6)]
    assert points == [{"att": a, "epochs": e} for a in ("se", "eca") for e in (1, 2, 3)]


def test_every_alias_means_a_setting() -> None:
    types = setting_types(ClassificationSettings)
    assert set(SETTINGS.values()) <= set(types)
    assert set(types) | set(setting_types(DetectionSettings)) >= SHARED
    for alias, setting in SETTINGS.items():
        assert setting_of(alias, types) == setting
    assert setting_of("optimizer", types) == "optimizer.name"


@pytest.mark.parametrize(("metric", "names"), METRICS.items())
def test_metrics_have_the_goal_that_helps(metric: str, names: list[str]) -> None:
    cls = DetectionSettings if metric == "box_AP" else ClassificationSettings
    for name in names:
        sweep = parse_sweep(content(metric={"name": name}), cls)
        lower = ("val_loss", "val_calibration_error")
        assert (sweep.metric, sweep.maximize) == (metric, metric not in lower)
    odd = parse_sweep(content(metric={"name": "loss", "goal": "maximize"}))
    assert odd.maximize
    assert any("is that intended" in note for note in odd.notes)


def test_early_termination() -> None:
    def read(**config: Any) -> Any:
        return parse_sweep(content(early_terminate={"type": "hyperband", **config})).early

    early = read(min_iter=3)
    assert (early.first, early.last, early.eta, early.strict) == (3, None, 3, False)
    # W&B's example: of 27 epochs, brackets at 9 and 3.
    assert read(max_iter=27, s=2, eta=3, strict=True).first == 3
    assert read(max_iter=4, s=9, eta=2).first == 1


def parameter(name: str, **config: Any) -> dict[str, Any]:
    return {"parameters": {name: config}}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"method": "bayesian"}, "unknown method 'bayesian'. Did you mean bayes"),
        ({"method": None}, "method is missing"),
        ({"method": "custom"}, "unknown method 'custom'"),
        ({"metod": "grid"}, "unknown key metod. Did you mean method"),
        ({"scheduler": {}}, "method custom"),
        ({"metric": {"name": "los"}}, "no run reports the metric los. Did you mean loss"),
        ({"metric": {"name": "test_accuracy"}}, "validation split"),
        ({"metric": {"name": "loss", "goal": "min"}}, "minimize or maximize"),
        ({"metric": {"name": "acc", "target": 95}}, "fractions of 1"),
        ({"metric": {}}, "metric needs a name"),
        ({"parameters": {}}, "parameters is missing"),
        (parameter("lrr", values=[1, 2]), "unknown parameter lrr. Did you mean lr"),
        ({"parameters": {"lr": 3}}, "parameter lr: give value"),
        (parameter("lr", value=3), "nothing to sweep"),
        (parameter("lr", values=["a"]), "'a' is not a value of optimizer.lr, a number"),
        (parameter("optimizer", values=["adam", "sdg"]), "one of sgd, adamw, adam, lamb"),
        (parameter("batch_size", min=16.0, max=64.0), "a whole number: give values"),
        (parameter("flip", values=[1, 0]), "true or false"),
        (parameter("device", values=["cpu", "cuda"]), "all runs share device"),
        ({"parameters": {"lr": {"values": [1, 2]}, "learning_rate": {"value": 1}}}, "both set"),
        (parameter("optimizer", parameters={"x": {"value": 1}}), "unknown parameter"),
        ({"run_cap": 0}, "run_cap must be"),
        ({"early_terminate": {"type": "envelope"}}, "type must be hyperband"),
        ({"early_terminate": {"type": "hyperband"}}, "give min_iter, or max_iter and s"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 0}}, "whole number from 1"),
        ({"early_terminate": {"type": "hyperband", "min_iter": "a"}}, "whole number from 1"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 1, "eta": 1.5}}, "eta must be"),
        ({"early_terminate": {"type": "hyperband", "min_itr": 1}}, "Did you mean min_iter"),
        (
            {"early_terminate": {"type": "hyperband", "max_iter": 9, "s": 10**9}},
            "s must be a whole number from 1 to 100, got 1000000000",
        ),
        ({"metric": {"name": "loss", "target": float("nan")}}, "target must be a number, got nan"),
        (parameter("lr", values=list(range(1, 1002))), "1001 values, and may have 1000"),
        (parameter("seed", values=[1, 1.0]), "names one of them twice"),
        (parameter("seed", min=0, max=10**30), "is too large"),
        (parameter("seed", value=10**400), "is not a value of seed"),
        (parameter("lr", min=float("nan"), max=1.0), "min must be a number, got nan"),
        (parameter("lr", min=-1e308, max=1e308), "inf is not a value"),
        (
            parameter("lr", distribution="log_uniform", min=-1000, max=-900),
            "cannot be drawn from with min -1000, max -900: did you mean log_uniform_values?",
        ),
        (
            parameter("lr", distribution="log_normal", mu=100_000),
            "log_normal cannot be drawn from with mu 100000, sigma 1",
        ),
        (
            parameter("lr", distribution="q_uniform", min=0.0, max=1, q=1e-320),
            "cannot be drawn from",
        ),
        (
            parameter("lr", distribution="q_uniform", min=0.1, max=1, q=1e-9) | {"method": "grid"},
            "a grid over it has more than 1000 values",
        ),
        (
            parameter("seed", min=0, max=10**6) | {"method": "grid"},
            "a grid over it has more than 1000 values",
        ),
    ],
)
def test_bad_input_is_one_line(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as error:
        parse_sweep(content(**changes))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_learning_rate_over_one_is_noted() -> None:
    def notes(**lr: Any) -> list[str]:
        return parse_sweep(content(parameters={"lr": lr})).notes

    # Meant are rates of 0.001 to 0.3; W&B takes the exponential of the bounds.
    (note,) = notes(distribution="log_uniform", min=0.001, max=0.3)
    assert note == (
        "parameter lr: learning rates go from 1.001 to 1.34986, as log_uniform takes the logarithms "
        "of its bounds; log_uniform_values takes the bounds"
    )
    assert notes(values=[0.1, 20]) == ["parameter lr: learning rates go from 0.1 to 20"]
    assert notes(distribution="log_uniform_values", min=0.001, max=0.3) == []
    assert notes(distribution="log_uniform", min=-7.0, max=-1.2) == []


@pytest.mark.parametrize("file", [b"a: [", b"just text", b"", b"- 1\n- 2", b"\xff\xfe\x00", None])
def test_what_is_no_sweep_file(file: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    if file is not None:
        path.write_bytes(file)
    with pytest.raises(UserError) as error:
        read_sweep(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert ("cannot be read" in str(error.value)) == (file is None or b"\xff" in file)
