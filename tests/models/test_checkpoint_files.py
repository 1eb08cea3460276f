"""Weight files of all kinds are read, and none of them is ever run."""

from __future__ import annotations

import argparse
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from ecanet.errors import UserError
from ecanet.models.checkpoint_files import read_checkpoint

TENSORS = {"conv1.weight": torch.arange(6.0).reshape(2, 3), "fc.bias": torch.ones(2)}


def saved(path: Path, content: Any, **kwargs: Any) -> Path:
    torch.save(content, path, **kwargs)
    return path


def assert_read(path: Path) -> None:
    tensors = read_checkpoint(path).tensors
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize(
    "content",
    [
        TENSORS,
        {"state_dict": TENSORS, "epoch": 3, "optimizer": {"state": {}}},
        {"model": TENSORS, "args": argparse.Namespace(lr=0.1, model="resnet50")},
        {"model_state": TENSORS},
        {"model": {"state_dict": TENSORS}},
        {"state_dict": {"conv1.weight": torch.zeros(1)}, "state_dict_ema": TENSORS},
        {"model": {"conv1.weight": torch.zeros(1)}, "model_ema": TENSORS},
        {"state_dict": TENSORS, "best": np.float64(77.4), "meta": {"CLASSES": ("a", "b")}},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_containers_are_unwrapped(tmp_path: Path, content: Any, zipped: bool) -> None:
    path = tmp_path / "weights.pth.tar"
    assert_read(saved(path, content, _use_new_zipfile_serialization=zipped))


def test_safetensors_are_read_whatever_their_name(tmp_path: Path) -> None:
    for name in ("weights.safetensors", "weights.bin"):
        safetensors.torch.save_file(TENSORS, tmp_path / name, {"model": "resnet18"})
        assert_read(tmp_path / name)
        assert read_checkpoint(tmp_path / name).metadata == {"model": "resnet18"}


def test_hub_folders_are_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a folder without"):
        read_checkpoint(tmp_path)
    saved(tmp_path / "pytorch_model.bin", TENSORS)
    assert_read(tmp_path)


def test_what_the_file_says_is_kept(tmp_path: Path) -> None:
    content = {"epoch": 99, "arch": "se_resnet50", "best_prec1": torch.tensor(77.5)}
    checkpoint = read_checkpoint(saved(tmp_path / "x.pth", {**content, "state_dict": TENSORS}))
    assert checkpoint.metadata == {"epoch": "99", "arch": "se_resnet50", "best_prec1": "77.5"}


class Evil:
    """Makes a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    proof = tmp_path / "proof"
    content = {"state_dict": TENSORS, "extra": Evil(proof)}
    path = saved(tmp_path / "evil.pth.tar", content, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"refused.*posix\.system") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert not proof.exists()
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Evil(proof)))
    with pytest.raises(UserError):
        read_checkpoint(tmp_path / "plain.pkl")
    assert not proof.exists()


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "module.pth", torch.nn.Linear(2, 2))
    with pytest.raises(UserError, match="refused"):
        read_checkpoint(path)


def test_a_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.pt"
    torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(str(path))
    with pytest.raises(UserError, match="TorchScript"):
        read_checkpoint(path)


def damaged(path: Path) -> list[bytes]:
    whole = path.read_bytes()
    return [b"", b"PK", whole[: len(whole) // 2], whole[:-30], b"<html>not found</html>"]


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_damaged_files_are_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("x.safetensors" if kind == "safetensors" else "x.pth")
    if kind == "safetensors":
        safetensors.torch.save_file(TENSORS, path)
    else:
        saved(path, TENSORS, _use_new_zipfile_serialization=kind == "zip")
    for content in damaged(path):
        path.write_bytes(content)
        with pytest.raises(UserError) as caught:
            read_checkpoint(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [{}, [], 3, {"epoch": 3}, {"state_dict": {}}, Tensor([1.0])])
def test_files_without_weights_are_one_line(tmp_path: Path, content: Any) -> None:
    with pytest.raises(UserError, match="no weights"):
        read_checkpoint(saved(tmp_path / "x.pth", content))


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no weight file"):
        read_checkpoint(tmp_path / "nowhere.pth")
