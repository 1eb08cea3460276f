"""How many runs fit on this machine at once, and whether workers would know what they are to train."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers.stub_study import make_plan
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
from ecanet.experiments.study.pool import fitting_jobs
from ecanet.training.classification import resolve

GIB = 2**30
PLAN = make_plan(kind=ComparePlan, settings=ClassificationSettings(device="cpu", threads=1))


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "cpu_cores", lambda: 6)
    monkeypatch.setattr(pool, "available_memory", lambda: 16 * GIB)


@pytest.mark.parametrize(
    ("step", "devices", "jobs"),
    [(0, 1, 6), (1 * GIB, 1, 4), (4 * GIB, 1, 1), (40 * GIB, 1, 1), (0, 2, 3), (1 * GIB, 2, 2)],
)
def test_cores_and_memory_bound_the_jobs(step: int, devices: int, jobs: int) -> None:
    settings = replace(PLAN.settings, devices=devices)
    assert fitting_jobs(replace(PLAN, settings=settings, step_bytes=step)) == jobs


def test_one_job_per_gpu_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    for device, devices, jobs in (("cuda", 1, 8), ("cuda", 4, 2), ("cuda:1", 1, 1)):
        settings = replace(PLAN.settings, device=device, devices=devices)
        assert fitting_jobs(replace(PLAN, settings=settings)) == jobs


def test_a_run_of_several_threads_takes_as_many_cores() -> None:
    for threads, jobs in ((1, 6), (2, 3), (4, 1), (12, 1)):
        settings = replace(PLAN.settings, threads=threads)
        assert fitting_jobs(replace(PLAN, settings=settings)) == jobs


@pytest.mark.parametrize("attention", ["none", "eca", "cbam"])
def test_a_sweep_estimates_about_the_memory_that_a_comparison_measures(attention: str) -> None:
    data = load_data("digits")
    settings = ClassificationSettings(device="cpu", precision="float32", compile="off")
    settings = resolve(settings, data)
    (cost,) = measure(settings, [attention], data)
    assert cost.train_peak_bytes is not None
    assert 0.8 < estimate_step_memory(settings, attention, data) / cost.train_peak_bytes < 1.1


@pytest.fixture
def halve(monkeypatch: pytest.MonkeyPatch) -> type[nn.Module]:
    """An attention module that somebody registers."""
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))

    class Halve(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()

    return Halve


def register(name: str, factory: type[nn.Module], home: str) -> None:
    """Register an attention module as the Python module ``home`` does."""
    names = {"__name__": home, "register": registry.register_attention(name), "factory": factory}
    exec("register(factory)", names)


def stub_plan(attention: str = "none", model: str = "resnet20", plugin: str = "") -> Any:
    plugins = [plugin] if plugin else []
    return make_plan(
        settings=ClassificationSettings(model=model), plugin=plugins, attention=[attention]
    )


@pytest.mark.parametrize("home", ["__main__", "my_library.modules"])
def test_a_module_that_workers_would_not_know_is_refused_before_anything_is_made(
    tmp_path: Path, halve: type[nn.Module], home: str
) -> None:
    register("halve_it", halve, home)
    location = Location(tmp_path / "study")
    with pytest.raises(UserError) as error:
        open_study(location, stub_plan("halve_it"), lambda: ([], 0), jobs=2)
    for words in ("halve_it", "plugin=", "jobs=1"):
        assert words in str(error.value)
    assert ("this script or notebook" if home == "__main__" else home) in str(error.value)
    assert not location.folder.exists()
    open_study(location, stub_plan("halve_it"), lambda: ([], 0), jobs=1)
    with pytest.raises(UserError, match="halve_it is registered in"):
        open_study(location, stub_plan("halve_it"), lambda: ([], 0), jobs=2)


def test_a_module_of_a_library_that_a_script_has_registered_is_refused(
    tmp_path: Path, halve: type[nn.Module]
) -> None:
    """Workers have the class, and would not know it by that name."""
    register("mysq", timm.layers.SEModule, "__main__")
    with pytest.raises(UserError, match="mysq is registered in this script or notebook"):
        open_study(Location(tmp_path / "study"), stub_plan("mysq"), lambda: ([], 0), jobs=2)


def test_a_model_that_workers_would_not_know_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(name: str) -> object:
        return lambda: None

    mine = build("mine")
    mine.__module__ = "__main__"
    monkeypatch.setitem(timm.models._registry._model_entrypoints, "my_cnn", mine)
    with pytest.raises(UserError, match="the model my_cnn is registered in this script"):
        open_study(Location(tmp_path / "a"), stub_plan(model="my_cnn"), lambda: ([], 0), jobs=2)
    for model in ("resnet50", "resnet20", "torchvision/resnet18", "regnety_002"):
        open_study(Location(tmp_path / model), stub_plan(model=model), lambda: ([], 0), jobs=2)


def test_a_module_from_a_plugin_is_known_to_workers_that_get_the_plugin(
    tmp_path: Path, halve: type[nn.Module]
) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(
        "import torch\nfrom ecanet import register_attention\n\n"
        "@register_attention('halve_it')\nclass Halve(torch.nn.Module):\n"
        "    def __init__(self, channels):\n        super().__init__()\n"
    )
    registry.load_plugin(plugin)
    location = Location(tmp_path / "study")
    with pytest.raises(UserError, match="halve_it is registered in"):
        open_study(location, stub_plan("halve_it"), lambda: ([], 0), jobs=2)
    open_study(location, stub_plan("halve_it", plugin=str(plugin)), lambda: ([], 0), jobs=2)
