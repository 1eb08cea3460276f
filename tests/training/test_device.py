from pathlib import Path

import pytest
import torch

from ecanet.environment import environment
from ecanet.errors import UserError
from ecanet.training import device as device_module
from ecanet.training.device import (
    computes_in_bf16,
    fastest_convolutions,
    resolve_device,
    resolve_precision,
)

CPU = torch.device("cpu")


def test_auto_takes_what_there_is() -> None:
    expected = "cuda" if torch.cuda.is_available() else None
    assert expected is None or resolve_device("auto").type == expected
    assert resolve_device("cpu") == CPU


@pytest.mark.parametrize("name", ["cuda:99", "toaster", "meta"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="use"):
        resolve_device(name)


def test_auto_precision_follows_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    for has, expected in ((True, "bf16"), (False, "float32")):
        monkeypatch.setattr(device_module, "computes_in_bf16", lambda device, has=has: has)
        assert resolve_precision("auto", CPU) == expected
    assert resolve_precision("float32", CPU) == "float32"
    with pytest.raises(UserError, match="CUDA"):
        resolve_precision("fp16", CPU)


def test_bf16_is_seen_on_this_processor() -> None:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        pytest.skip("no /proc/cpuinfo to compare with")
    flags = info.read_text()
    if not flags.count("flags"):
        pytest.skip("/proc/cpuinfo lists no flags on this processor")
    assert computes_in_bf16(CPU) == ("avx512_bf16" in flags or "amx_tile" in flags)


def test_environment_names_versions_and_device() -> None:
    described = environment(CPU)
    assert described["versions"]["torch"] == torch.__version__
    assert "cores" in described["device"]
    assert set(described) == {"versions", "commit", "device", "platform", "host", "date"}


def test_full_float32_wins_over_autocast_and_leaves_things_as_they_were() -> None:
    matrix = torch.randn(8, 8)
    before = torch.backends.cudnn.allow_tf32
    with torch.autocast("cpu", torch.bfloat16):
        with device_module.full_float32(CPU):
            assert (matrix @ matrix).dtype == torch.float32
            assert not torch.backends.cudnn.allow_tf32
        assert (matrix @ matrix).dtype == torch.bfloat16
    assert torch.backends.cudnn.allow_tf32 == before


@pytest.mark.parametrize("deterministic", ["no", "cudnn", "torch"])
def test_convolutions_are_timed_unless_they_must_be_deterministic(
    monkeypatch: pytest.MonkeyPatch, deterministic: str
) -> None:
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "deterministic", deterministic == "cudnn")
    monkeypatch.setattr(
        torch, "are_deterministic_algorithms_enabled", lambda: deterministic == "torch"
    )
    before = cudnn.benchmark
    with fastest_convolutions():
        assert cudnn.benchmark == (deterministic == "no")
    assert cudnn.benchmark == before
