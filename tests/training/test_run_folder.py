"""A run's folder: claimed by one process, put in order, and nobody else's files touched."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest
from helpers.damage import DAMAGE

from ecanet.config import ClassificationSettings
from ecanet.errors import UserError
from ecanet.training.checkpoint import save_checkpoint
from ecanet.training.run_folder import claim_folder, put_in_order

SETTINGS = ClassificationSettings(epochs=3)


def claim(folder: Path) -> None:
    """Claim the folder and leave it."""
    with claim_folder(folder, SETTINGS, accept=False):
        pass


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_settings(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    claim(tmp_path)
    claim(tmp_path)
    save_checkpoint(tmp_path / "checkpoints", (1, 0, 0), {"epoch": 0})
    DAMAGE[damage](tmp_path / "settings.json")
    claim(tmp_path)
    (line,) = caplog.messages
    assert "settings.json is damaged: renamed to settings.json.damaged" in line
    assert json.loads((tmp_path / "settings.json").read_text()) == asdict(SETTINGS)
    claim(tmp_path)
    assert caplog.messages == [line]


def test_the_files_of_others_are_left_alone(tmp_path: Path) -> None:
    """Among them a settings.json that is no JSON, as editors keep."""
    for name in ("settings.json", "record.json.txt", "thesis.txt"):
        folder = tmp_path / name.split(".")[0]
        folder.mkdir()
        (folder / name).write_text("// mine")
        with pytest.raises(UserError, match="choose another --out"):
            claim(folder)
        assert [path for path in os.listdir(folder) if path != ".lock"] == [name]
        assert (folder / name).read_text() == "// mine"


def test_what_is_damaged_below_is_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As in a study's run of a detector, whose own files are one folder below."""
    kept = [
        save_checkpoint(tmp_path / "run/checkpoints", (1, 0, 0), {"epoch": 0}),
        tmp_path / "run/metrics.csv",
        tmp_path / "run/wandb/output.log",
        tmp_path / "run/last.ckpt",
    ]
    for path in kept[1:]:
        path.parent.mkdir(exist_ok=True)
        path.write_text("{")
    cut = save_checkpoint(tmp_path / "run/checkpoints", (2, 0, 0), {"epoch": 1})
    DAMAGE["cut"](cut)
    (tmp_path / "run/record.json").write_text("{")
    put_in_order(tmp_path)
    assert ["damaged" in line for line in caplog.messages] == [True, True]
    assert all(path.exists() for path in kept)
    assert not cut.exists()
    assert not (tmp_path / "run/record.json").exists()


def test_settings_of_another_version_are_refused(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text('{"optimizer": "sgd", "epochs": [3]}')
    with pytest.raises(UserError, match="holds a run of another version of ecanet"):
        claim(tmp_path)


def test_a_folder_below_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("x" * 5000)):
        with pytest.raises((UserError, OSError)):
            claim(out)


def test_a_folder_that_is_gone_is_not_made_again(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with claim_folder(out, SETTINGS, accept=False) as check_place:
        check_place()
        out.rename(tmp_path / "moved")
        with pytest.raises(UserError, match="was moved, deleted or replaced"):
            check_place()
        out.mkdir()
        with pytest.raises(UserError, match="was moved, deleted or replaced"):
            check_place()
    assert list(out.iterdir()) == []
