"""Weights of the Hugging Face Hub, from a server that answers as the Hub does, and without one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers.commands import Refuse
from helpers.hub import COMMITS, Hub, connect
from helpers.networks import equal
from huggingface_hub import constants
from timm.models import save_for_hf
from torch import nn

from ecanet.errors import UserError
from ecanet.inputs import is_on_hub
from ecanet.models import create_model
from ecanet.models.weights.convert import convert_weights
from ecanet.models.weights.files import read_checkpoint
from ecanet.models.weights.hub import resolve_weights
from ecanet.models.weights.identify import read_weights
from ecanet.models.weights.load import build_from_weights, load_weights


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub(tmp_path / "repositories")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    connect(monkeypatch, server.url, tmp_path / "cache")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")
    monkeypatch.setattr(
        time, "sleep", lambda seconds: pytest.fail(f"waits {seconds} s to try again")
    )


def publish(hub: Hub, name: str, model: nn.Module, **config: Any) -> Path:
    """Put a model of timm's into a repository as timm does."""
    folder = hub.root / name
    save_for_hf(model, str(folder), model_config=config, safe_serialization=True)
    return folder


def test_names() -> None:
    assert is_on_hub("hf-hub:a/b")
    assert is_on_hub(Path("hf_hub:a/b@c"))
    assert not is_on_hub("./hf-hub:a/b")
    assert not is_on_hub("weights.pth")
    assert resolve_weights(None) is None
    assert resolve_weights("weights.pth") == str(Path("weights.pth").resolve())


@pytest.mark.parametrize("name", ["resnetblur18", "mobilenetv3_small_050", "seresnet18"])
def test_a_model_of_timm_needs_no_name(hub: Hub, name: str) -> None:
    torch.manual_seed(0)
    reference = timm.create_model(name, num_classes=3).eval()
    publish(hub, "owner/net", reference, label_names=["a", "b", "c"])
    weights = read_weights("hf-hub:owner/net")
    assert (weights.model, weights.num_classes) == (name, 3)
    assert json.loads(weights.metadata["label_names"]) == ["a", "b", "c"]
    model = build_from_weights("hf-hub:owner/net").eval()
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(model(images), reference(images))


def test_a_name_is_pinned_to_its_commit(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = create_model("eca_resnet18", kernel_sizes="3577", num_classes=3, stem="cifar")
    torch.save(reference.state_dict(), tmp_path / "x.pth")
    convert_weights(tmp_path / "x.pth", hub.root / "owner" / "ours", "hub")
    assert resolve_weights("hf-hub:owner/ours@v1") == f"hf-hub:owner/ours@{COMMITS['v1']}"
    pinned = resolve_weights("hf_hub:owner/ours")
    assert pinned == f"hf-hub:owner/ours@{COMMITS['main']}"
    assert resolve_weights(pinned) == pinned
    hub.asked.clear()
    checkpoint = read_checkpoint(pinned)
    assert hub.asked == [], "it is read from the cache"
    assert str(checkpoint) == pinned
    model = create_model("eca_resnet18", kernel_sizes="3577", num_classes=3, stem="cifar")
    load_weights(model, checkpoint)
    assert equal(model.state_dict(), reference.state_dict())
    assert read_weights(pinned).model_args == {"stem": "cifar"}
    converted = convert_weights(checkpoint, tmp_path / "out.safetensors")
    assert converted.weights.kernel_sizes == (3, 5, 7, 7)
    connect(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")
    assert resolve_weights("hf-hub:owner/ours") == pinned, "the commit of the last visit"


def test_files_of_other_programs(hub: Hub) -> None:
    folder = hub.root / "owner" / "plain"
    folder.mkdir(parents=True)
    with pytest.raises(UserError, match=r"hf-hub:owner/plain has no model\.safetensors or pytorch"):
        read_checkpoint("hf-hub:owner/plain")
    torch.save(create_model("resnet18", num_classes=2).state_dict(), folder / "pytorch_model.bin")
    assert read_weights("hf-hub:owner/plain").model == "resnet18"
    # Of timm before 0.9, whose config.json is flat, and of a program that names what timm does not have.
    for config in ({"architecture": "resnet18", "input_size": [3, 96, 96]}, {"architecture": "x"}):
        (folder / "config.json").write_text(json.dumps(config))
        shutil.rmtree(constants.HF_HUB_CACHE)
        weights = read_weights("hf-hub:owner/plain")
        assert weights.model == "resnet18"
        assert ("96" in weights.metadata["pretrained_cfg"]) == ("input_size" in config)


def test_arguments_that_shapes_do_not_show_are_used_or_refused(hub: Hub) -> None:
    model = timm.create_model("resnet18d", num_classes=3, global_pool="max")
    folder = publish(hub, "owner/net", model, model_args={"global_pool": "max"})
    assert build_from_weights("hf-hub:owner/net").global_pool.pool_type == "max"
    config = json.loads((folder / "config.json").read_text())
    config["model_args"] = {"act_layer": "silu"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"model_args in config\.json has 'act_layer'"):
        build_from_weights(folder)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "nobody/nothing",
            "there is no repository hf-hub:nobody/nothing on the Hub, or it is private",
        ),
        ("gated/net", "is gated: request access"),
        ("owner/net@v7", "has no such revision"),
        ("broken/net", "cannot be downloaded and is not in the cache"),
        ("owner/a/b", "is not the name of a repository on the Hub: write hf-hub:OWNER/NAME"),
        ("", "is not the name of a repository on the Hub"),
    ],
)
def test_names_that_the_hub_does_not_have_are_one_line(hub: Hub, name: str, line: str) -> None:
    (hub.root / "owner" / "net").mkdir(parents=True)
    with pytest.raises(UserError, match=line) as caught:
        resolve_weights(f"hf-hub:{name}")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    "command",
    [
        ("train", "--data", "digits", "--weights", "hf-hub:timm/resnet18", "--out", "run"),
        ("evaluate", "digits", "--weights", "hf-hub:timm/resnet18"),
        ("convert", "hf-hub:timm/resnet18", "out.safetensors"),
        ("export", "hf-hub:timm/resnet18", "--out", "out.onnx"),
    ],
    ids=lambda command: " ".join(command[:2]),
)  # fmt: skip
def test_without_a_network_it_is_one_line(
    refuse: Refuse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    refuse(
        "hf-hub:timm/resnet18 cannot be downloaded and is not in the cache (",
        *command,
        after_logs=True,
    )
    assert not [
        path for path in tmp_path.rglob("*") if path.is_file() and "cache" not in path.parts
    ]


@pytest.mark.slow
def test_a_command_reads_from_the_endpoint_in_the_environment(hub: Hub, tmp_path: Path) -> None:
    publish(hub, "owner/net", timm.create_model("resnet18", num_classes=3))
    environment = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
    command = ("convert", "hf-hub:owner/net", "out.safetensors")
    done = subprocess.run(
        [sys.executable, "-m", "ecanet", *command],
        cwd=tmp_path, env={**os.environ, **environment}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "resnet18, 3 classes" in done.stdout
    assert (tmp_path / "out.safetensors").is_file()
