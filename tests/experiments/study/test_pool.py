"""How many runs fit on this machine at once, and whether workers would know what they are to train."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers.plugins import write_plugin
from helpers.stub_study import make_plan
from helpers.synthetic import make_cost
from torch import nn

from ecanet.attention import registry
from ecanet.config import ClassificationSettings
from ecanet.data import load_data
from ecanet.errors import UserError
from ecanet.experiments.costs import estimate_step_memory, measure
from ecanet.experiments.plans.compare import ComparePlan
from ecanet.experiments.run import open_study
from ecanet.experiments.study import pool
from ecanet.experiments.study.location import Location
from ecanet.experiments.study.pool import fitting_jobs, runs_on_a_gpu
from ecanet.training.classification import resolve

GIB = 2**30
PLAN = make_plan(kind=ComparePlan, settings=ClassificationSettings(device="cpu", threads=1))


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "cpu_cores", lambda: 6)
    monkeypatch.setattr(pool, "available_memory", lambda: 16 * GIB)


@pytest.mark.parametrize(
    ("settings", "step", "jobs"),
    [
        *[({}, 0, 6), ({}, 1 * GIB, 4), ({}, 4 * GIB, 1), ({}, 40 * GIB, 1)],
        *[({"devices": 2}, 0, 3), ({"devices": 2}, 1 * GIB, 2)],
        *[({"threads": 2}, 0, 3), ({"threads": 4}, 0, 1), ({"threads": 12}, 0, 1)],
        # One job per GPU of a run.
        *[({"device": "cuda"}, 0, 8), ({"device": "cuda", "devices": 4}, 0, 2)],
        ({"device": "cuda:1"}, 0, 1),
    ],
)
def test_cores_memory_and_gpus_bound_the_jobs(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], step: int, jobs: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    settings = replace(PLAN.settings, **settings)
    assert fitting_jobs(replace(PLAN, settings=settings, step_bytes=step)) == jobs


@pytest.mark.parametrize(
    ("share", "step", "free", "cores", "runs"),
    [
        *[(1.0, 0, 80, 16, 1), (0.7, 0, 80, 16, 1), (0.6, 0, 80, 16, 2), (0.34, 0, 80, 16, 3)],
        *[(0.1, 0, 80, 16, 10), (0.01, 0, 80, 16, 16), (0.01, 0, 80, 2, 2), (0.01, 0, 80, 0, 1)],
        *[(0.1, 1, 80, 16, 10), (0.1, 10, 80, 16, 3), (0.1, 39, 80, 16, 1), (0.1, 0, 1, 16, 1)],
    ],
)
def test_time_memory_and_cores_bound_the_runs_on_a_gpu(
    share: float, step: int, free: int, cores: int, runs: int
) -> None:
    assert runs_on_a_gpu(share, step * GIB, free * GIB, cores) == runs


@pytest.mark.parametrize(
    ("settings", "gpus", "jobs"),
    [
        *[({"device": "cuda"}, 1, 4), ({"device": "cuda"}, 2, 6), ({"device": "cuda:1"}, 2, 4)],
        # Of two GPUs each, and where there is none.
        *[({"device": "cuda", "devices": 2}, 4, 2), ({"device": "cuda"}, 0, 1)],
        ({"device": "mps"}, 0, 1),
    ],
)
def test_small_runs_share_a_gpu(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], gpus: int, jobs: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (80 * GIB, 80 * GIB))
    settings = replace(PLAN.settings, **settings)
    plan = replace(PLAN, settings=settings, step_bytes=GIB)
    assert fitting_jobs(replace(plan, gpu_share=0.25)) == jobs
    alone = max(1, (gpus if settings.device == "cuda" else 1) // settings.devices)
    assert fitting_jobs(plan) == alone


def test_the_largest_share_that_was_measured_counts(tmp_path: Path) -> None:
    costs = [replace(make_cost("none", 0), gpu_share=share) for share in (0.2, None, 0.4)]
    study, _ = open_study(
        Location(tmp_path / "a"), make_plan(attention=["none"]), lambda: (costs, 0), jobs=1
    )
    assert study.plan().gpu_share == 0.4
    study, _ = open_study(
        Location(tmp_path / "b"), make_plan(attention=["none"]), lambda: ([], 0), jobs=1
    )
    assert study.plan().gpu_share == 1


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["none", "eca", "cbam"])
def test_a_sweep_estimates_about_the_memory_that_a_comparison_measures(attention: str) -> None:
    data = load_data("digits")
    settings = ClassificationSettings(device="cpu", precision="float32", compile="off")
    settings = resolve(settings, data)
    (cost,) = measure(settings, [attention], data)
    assert cost.train_peak_bytes is not None
    # What is fused saves less, and is estimated as if it were not.
    assert 0.8 < estimate_step_memory(settings, attention, data) / cost.train_peak_bytes < 1.3


class Halve(nn.Module):
    """An attention module that somebody registers."""

    def __init__(self, channels: int) -> None:
        super().__init__()


def register(name: str, factory: type[nn.Module], home: str) -> None:
    """Register an attention module as the Python module ``home`` does."""
    names = {"__name__": home, "register": registry.register_attention(name), "factory": factory}
    exec("register(factory)", names)


def open_with(location: Location, jobs: int, attention: str = "none", **values: Any) -> None:
    """Open a study of this module, as a command with so many jobs does."""
    open_study(location, make_plan(attention=[attention], **values), lambda: ([], 0), jobs=jobs)


@pytest.mark.parametrize("home", ["__main__", "my_library.modules"])
def test_a_module_that_workers_would_not_know_is_refused_before_anything_is_made(
    own_registry: None, tmp_path: Path, home: str
) -> None:
    register("halve_it", Halve, home)
    location = Location(tmp_path / "study")
    with pytest.raises(UserError) as error:
        open_with(location, 2, "halve_it")
    for words in ("halve_it", "plugin=", "jobs=1"):
        assert words in str(error.value)
    assert ("this script or notebook" if home == "__main__" else home) in str(error.value)
    assert not location.folder.exists()
    open_with(location, 1, "halve_it")
    with pytest.raises(UserError, match="halve_it is registered in"):
        open_with(location, 2, "halve_it")


def test_a_module_of_a_library_that_a_script_has_registered_is_refused(
    own_registry: None, tmp_path: Path
) -> None:
    """Workers have the class, and would not know it by that name."""
    register("mysq", timm.layers.SEModule, "__main__")
    with pytest.raises(UserError, match="mysq is registered in this script or notebook"):
        open_with(Location(tmp_path / "study"), 2, "mysq")


def test_a_model_that_workers_would_not_know_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mine() -> None: ...

    mine.__module__ = "__main__"
    monkeypatch.setitem(timm.models._registry._model_entrypoints, "my_cnn", mine)
    with pytest.raises(UserError, match="the model my_cnn is registered in this script"):
        open_with(Location(tmp_path / "a"), 2, settings=ClassificationSettings(model="my_cnn"))
    for model in ("resnet50", "resnet20", "torchvision/resnet18", "regnety_002"):
        open_with(Location(tmp_path / model), 2, settings=ClassificationSettings(model=model))


def test_a_module_from_a_plugin_is_known_to_workers_that_get_the_plugin(
    own_registry: None, tmp_path: Path
) -> None:
    plugin = write_plugin(tmp_path / "plugin.py", "halve_it")
    registry.load_plugin(Path(plugin))
    location = Location(tmp_path / "study")
    with pytest.raises(UserError, match="halve_it is registered in"):
        open_with(location, 2, "halve_it")
    open_with(location, 2, "halve_it", plugin=[plugin])
