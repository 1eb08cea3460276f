import random
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.damage import DAMAGE

from ecanet.training.checkpoint import KEEP, load_checkpoint, save_checkpoint


def state(step: int) -> dict[str, object]:
    return {"weights": torch.arange(1000) + step, "step": step}


def loaded(folder: Path) -> dict[str, Any]:
    """Return the state of the last good checkpoint."""
    found = load_checkpoint(folder)
    assert found is not None
    return found[1]


def test_the_last_one_is_loaded_and_old_ones_go(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None
    for epoch, step in [(0, 0), (0, 10), (0, 9), (1, 2)]:
        save_checkpoint(tmp_path, (epoch, 0, step), state(step))
    assert loaded(tmp_path)["step"] == 2
    assert len(list(tmp_path.iterdir())) == KEEP


def test_after_a_return_to_an_earlier_step_that_one_is_loaded(tmp_path: Path) -> None:
    for returns, step in [(0, 7), (1, 3), (2, 3), (2, 4)]:
        save_checkpoint(tmp_path, (3, returns, step), {"place": [returns, step]})
        assert loaded(tmp_path) == {"place": [returns, step]}


def test_cut_anywhere_it_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    chance = random.Random(0)
    save_checkpoint(tmp_path, (0, 0, 1), state(1))
    path = save_checkpoint(tmp_path, (0, 0, 2), state(2))
    content = path.read_bytes()
    for _ in range(10):
        path.write_bytes(content[: chance.randrange(len(content))])
        caplog.clear()
        assert loaded(tmp_path)["step"] == 1
        (line,) = caplog.messages
        assert path.name in line


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    save_checkpoint(tmp_path, (0, 0, 1), state(1))
    path = save_checkpoint(tmp_path, (0, 0, 2), state(2))
    DAMAGE[damage](path)
    assert loaded(tmp_path)["step"] == 1
    assert path.with_name(path.name + ".damaged").exists()
    assert loaded(tmp_path)["step"] == 1
    (line,) = caplog.messages  # it is logged once
    assert str(path) in line
    save_checkpoint(tmp_path, (0, 0, 3), state(3))
    assert len(list(tmp_path.glob("*.ckpt"))) == KEEP


def test_a_full_disk_leaves_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, (0, 0, 1), state(1))
    monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        save_checkpoint(tmp_path, (0, 0, 2), state(2))
    monkeypatch.undo()
    assert loaded(tmp_path)["step"] == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_nothing_in_a_checkpoint_is_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    save_checkpoint(tmp_path, (0, 0, 1), {"weights": Evil()})
    with pytest.raises(Exception, match="Weights only load failed"):
        load_checkpoint(tmp_path)
    assert not (tmp_path / "ran").exists()
