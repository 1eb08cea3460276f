"""TensorBoard and W&B beside the CSV that every run writes."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.runs import settings_of

from ecanet.errors import UserError
from ecanet.training.train import train


def test_tensorboard_and_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    settings = replace(
        settings_of("memory", tmp_path), epochs=1, loggers=["tensorboard", "wandb"], project="test"
    )
    for seed in (0, 1):
        out = tmp_path / str(seed)
        train(replace(settings, seed=seed), out)
        assert list(out.rglob("events.out.tfevents.*"))
        assert len(list(out.glob("wandb/offline-run-*"))) == 1


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("lightning_fabric.loggers.TensorBoardLogger", missing)
    monkeypatch.setitem(sys.modules, "wandb", None)
    settings = replace(settings_of("memory", tmp_path), loggers=[name])
    with pytest.raises(UserError, match=rf"pip install 'ecanet\[{name}\]'"):
        train(settings, tmp_path / "run")
