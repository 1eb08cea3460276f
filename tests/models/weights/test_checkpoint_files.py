"""Weight files of all kinds are read without running code from them."""

from __future__ import annotations

import argparse
import datetime
import logging
import os
import pickle
import random
import re
import sys
from array import array
from collections import OrderedDict, defaultdict, deque
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from ecanet.errors import UserError
from ecanet.models.weights.files import read_checkpoint

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
        {"module": TENSORS},
        {"model": {"conv1.weight": torch.zeros(1)}, "ema": {"module": TENSORS, "updates": 3}},
        {"model": TENSORS, "ema": {"decay": 0.9999}},
        # MMEngine swaps the two when it saves.
        {
            "meta": {"mmengine_version": "0.10.4"},
            "state_dict": TENSORS,
            "ema_state_dict": {"module.conv1.weight": torch.zeros(1), "steps": torch.tensor(3)},
        },
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


def test_plain_values_are_kept_as_metadata(tmp_path: Path) -> None:
    content = {"epoch": 99, "arch": "se_resnet50", "best_prec1": torch.tensor(77.5)}
    checkpoint = read_checkpoint(saved(tmp_path / "x.pth", {**content, "state_dict": TENSORS}))
    assert checkpoint.metadata == {"epoch": "99", "arch": "se_resnet50", "best_prec1": "77.5"}


class Unknown:
    """A class that the reader of the file does not have, as far as torch can see."""

    def __init__(self) -> None:
        self.history = [1.0, 2.0]


class KindOfDict(dict[str, Any]):
    pass


class History:
    """Holds arrays and methods, as that of MMEngine."""

    def __init__(self) -> None:
        self.values, self.steps = np.arange(5.0), np.ones(5, np.int64)
        self.statistics = {"current": self.current, "mean": History.mean}

    def current(self) -> None:
        pass

    def mean(self) -> None:
        pass


@pytest.mark.parametrize(
    "beside",
    [
        np.arange(5),
        Path("runs/1"),
        Unknown(),
        [Unknown(), {"deep": Unknown()}],
        KindOfDict(lr=0.1),
        [KindOfDict(lr=0.1), np.arange(3), np.array(["a", {}], dtype=object), History()],
        [defaultdict(list, a=[1]), deque([1, 2], maxlen=3), np.random.RandomState(0)],
        [random.Random(0), logging.getLogger("x"), re.compile("a"), array("f", [1]), int | None],
        ZoneInfo("UTC"),
        defaultdict(list, a=[1]),
        datetime.datetime(2020, 1, 1),
        torch.optim.lr_scheduler.StepLR(
            torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1), 1
        ),
    ],
    ids=lambda beside: type(beside).__name__,
)
@pytest.mark.parametrize("zipped", [True, False])
def test_objects_beside_the_weights_are_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: Any, zipped: bool
) -> None:
    content = {"state_dict": TENSORS, "beside": beside}
    path = saved(tmp_path / "x.pth", content, _use_new_zipfile_serialization=zipped)
    before = torch.serialization.get_safe_globals()
    # What makes such an object, should the reader call it.
    monkeypatch.setattr(Unknown, "__setstate__", lambda *_: pytest.fail("run"), raising=False)
    monkeypatch.setattr(Unknown, "__new__", lambda *_: pytest.fail("run"))
    assert_read(path)
    assert set(torch.serialization.get_safe_globals()) == set(before)


def test_weights_in_a_subclass_of_dict_are_read(tmp_path: Path) -> None:
    assert_read(saved(tmp_path / "x.pth", {"state_dict": KindOfDict(TENSORS), "o": Unknown()}))


def test_numpy_scalars_are_kept_as_metadata(tmp_path: Path) -> None:
    content = {"a": np.float32(1.5), "b": np.int64(3), "c": np.bool_(True), "state_dict": TENSORS}
    metadata = read_checkpoint(saved(tmp_path / "x.pth", content)).metadata
    assert metadata == {"a": "1.5", "b": "3"}


def test_an_attribute_does_not_hide_a_method(tmp_path: Path) -> None:
    """A pickle can set attributes of an OrderedDict, such as `get` and `items`."""

    class Hidden:
        def __reduce__(self) -> Any:
            return OrderedDict, (), {"items": 3, "get": 3}, None, iter(TENSORS.items())

    assert_read(saved(tmp_path / "x.pth", {"model": Hidden()}))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.eye(3).to_sparse(),
        torch.empty(10**6, 10**6, device="meta"),
        torch.ones(3, dtype=torch.complex64),
        torch.zeros(1).expand(10**6, 10**6),
    ],
    ids=["sparse", "meta", "complex", "expanded"],
)
def test_tensors_that_are_not_plain_are_refused(tmp_path: Path, tensor: Tensor) -> None:
    path = saved(tmp_path / "x.pth", {**TENSORS, "w": tensor})
    with pytest.raises(UserError, match=r"w is (not a plain dense tensor|larger than its data)"):
        read_checkpoint(path)


def test_gradients_and_views_are_read(tmp_path: Path) -> None:
    tied = torch.ones(5)
    content = {"a": torch.nn.Parameter(torch.ones(3)), "b": tied, "c": tied[:2]}
    tensors = read_checkpoint(saved(tmp_path / "x.pth", content)).tensors
    assert not tensors["a"].requires_grad
    assert [len(t) for t in tensors.values()] == [3, 5, 2]


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


class Runs:
    """Calls a function of a module when unpickled."""

    def __init__(self, function: Any, proof: Path) -> None:
        self.function, self.proof = function, proof

    def __reduce__(self) -> Any:
        return self.function, (self.proof,)


@pytest.mark.parametrize("zipped", [True, False])
def test_functions_of_other_modules_are_neither_run_nor_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    (tmp_path / "beside.py").write_text("def run(path):\n    path.touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    import beside

    proof = tmp_path / "proof"
    content = {"state_dict": TENSORS, "history": [Runs(beside.run, proof)]}
    path = saved(tmp_path / "x.pth", content, _use_new_zipfile_serialization=zipped)
    monkeypatch.delitem(sys.modules, "beside")
    assert_read(path)
    assert "beside" not in sys.modules
    assert not proof.exists()


def test_an_old_torch_reads_no_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "x.pth", TENSORS)
    safetensors.torch.save_file(TENSORS, tmp_path / "x.safetensors")
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(UserError, match=r"CVE-2026-24747.* upgrade to torch 2\.10") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert_read(tmp_path / "x.safetensors")
    monkeypatch.setattr(torch, "__version__", "2.10.0+cpu")
    assert_read(path)


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "module.pth", torch.nn.Linear(2, 2))
    line = r"refused: .* outside of objects such as torch\.nn\.modules"
    with pytest.raises(UserError, match=line):
        read_checkpoint(path)


def test_a_torchscript_program_is_refused(tmp_path: Path) -> None:
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


def test_a_folder_without_the_usual_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"without model\.safetensors or pytorch_model\.bin: name a file"
    ):
        read_checkpoint(tmp_path)
    (tmp_path / "best.safetensors").touch()
    with pytest.raises(UserError, match=r"name one of its files: best\.safetensors$"):
        read_checkpoint(tmp_path)
