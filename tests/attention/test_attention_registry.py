"""Specs, names, refused arguments, the user's own modules, and plugins."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from ecanet.attention import (
    ECA,
    SE,
    NoAttention,
    create_attention,
    list_attention,
    load_plugin,
    parse_attention,
    register_attention,
    registry,
)

# Specs


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("eca", ("eca", {})),
        (" eca ", ("eca", {})),
        ("eca:kernel_size=9", ("eca", {"kernel_size": 9})),
        ("eca:gamma=2.5:b=1", ("eca", {"gamma": 2.5, "b": 1})),
        ("eca:kernel_size=None", ("eca", {"kernel_size": None})),
        ("se:bias=False", ("se", {"bias": False})),
        ("ge:variant=minus", ("ge", {"variant": "minus"})),
    ],
)
def test_parse(spec: str, expected: tuple[str, dict[str, Any]]) -> None:
    assert parse_attention(spec) == expected


def test_create() -> None:
    module = create_attention("eca:kernel_size=9", 64)
    assert isinstance(module, ECA)
    assert module.conv.kernel_size == (9,)
    assert isinstance(create_attention("se", 64, reduction=4), SE)
    assert isinstance(create_attention("none", 64), NoAttention | nn.Identity)


@pytest.mark.parametrize(
    ("spec", "channels", "message"),
    [
        ("ec", 64, "unknown attention module 'ec'. Did you mean ec"),
        ("zzz", 64, "Known: cbam, coord, eca"),
        ("", 64, "unknown attention module ''"),
        ("eca:9", 64, "write NAME:ARGUMENT=VALUE, not '9'"),
        ("eca:kernel_size=", 64, "write NAME:ARGUMENT=VALUE"),
        ("eca:", 64, "write NAME:ARGUMENT=VALUE"),
        ("eca:b=1:b=2", 64, "gives b twice"),
        ("eca:k_size=3", 64, "no argument 'k_size'; eca takes kernel_size=None, gamma=2, b=1"),
        ("simam:reduction=3", 64, "simam takes e_lambda=0.0001"),
        ("eca:dims=3", 64, "dims, which follows from the network"),
        ("se_var2:x=3", 64, "se_var2 takes no arguments"),
        ("se:reduction=four", 64, "reduction must be int | None, got 'four'; se takes"),
        ("se:reduction=True", 64, "reduction must be int | None, got True"),
        ("se:bias=1", 64, "bias must be bool, got 1"),
        ("se:reduction=2.0", 64, "reduction must be int | None, got 2.0"),
        ("ge:variant=best", 64, "variant must be Literal['minus', 'theta', 'plus'], got 'best'"),
        # Arguments that would change nothing
        ("eca:kernel_size=5:gamma=3", 64, "gamma and b change nothing with kernel_size=5"),
        ("eca_circular:kernel_size=5:b=2", 64, "change nothing"),
        ("eca_ns:kernel_size=5:b=2", 64, "change nothing"),
        ("ge:variant=minus:reduction=4", 64, "reduction changes nothing for variant=minus"),
        ("ge:variant=theta:reduction=4", 64, "reduction changes nothing for variant=theta"),
        ("ge:size=7", 64, "size changes nothing"),
        ("ge:variant=minus:extent=0:size=7", 64, "size changes nothing"),
        # Arguments out of range
        ("eca:kernel_size=4", 64, "kernel_size must be odd, got 4"),
        ("eca:kernel_size=-1", 64, "kernel_size must be at least 1, got -1"),
        ("eca:kernel_size=9", 4, "too large for 4 channels, at most 7"),
        ("eca_circular:kernel_size=9", 8, "too large for 8 channels, at most 8"),
        ("eca:gamma=0", 64, "gamma must be positive"),
        ("eca:b=1e999", 64, "finite"),
        (
            "se:reduction=65",
            64,
            "0 of 64 channels, at least 1 needed; the largest that works is 64",
        ),
        ("se:reduction=0", 64, "reduction must be at least 1, got 0"),
        (
            "gc:reduction=64",
            64,
            "1 of 64 channels, at least 2 needed; the largest that works is 32",
        ),
        ("cbam:kernel_size=2", 64, "kernel_size must be odd"),
        ("triplet:kernel_size=6", 64, "kernel_size must be odd"),
        ("coord:reduction=100", 64, "leaves 0 of 64"),
        ("ge:extent=6", 64, "power of two"),
        ("ge:extent=1", 64, "power of two"),
        ("ge:extent=0", 64, "needs the size of its kernel, such as size=7"),
        ("simam:e_lambda=0", 64, "e_lambda must be positive"),
        ("fca", 24, "frequencies=16 does not divide 24 channels, 8 does"),
        ("fca:frequencies=5", 64, "must be 1, 2, 4, 8, 16 or 32"),
        ("fca:size=6", 64, "size must be at least 7"),
        ("ema:groups=5", 64, "groups=5 does not divide 64 channels"),
        ("ela:conv_width=3", 64, "conv_width=3 does not divide 64 channels"),
        ("ela:norm_groups=3", 64, "norm_groups=3 does not divide 64 channels"),
        ("se_gc1", 24, "groups=16 does not divide 24 channels"),
        ("se_gc2", 8, "groups must be at least 1, got 0"),
        ("eca", 0, "channels must be at least 1"),
        ("none", -3, "channels must be at least 1"),
        ("gct", 2.5, "channels must be an int"),
    ],
)
def test_refused_in_one_line(spec: str, channels: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        create_attention(spec, channels)
    text = str(caught.value)
    assert message in text
    assert "\n" not in text
    if ":" in spec and "NAME" not in text and "twice" not in text and "dims" not in text:
        assert f"{spec.split(':')[0]} takes " in text


@pytest.mark.parametrize("name", list_attention())
@pytest.mark.parametrize("channels", [0, -1, True, 2.5, "16"])
def test_channels_are_checked(name: str, channels: Any) -> None:
    with pytest.raises(ValueError, match=r"at least 1|must be an int"):
        create_attention(name, channels)


def test_spec_and_arguments_must_not_overlap() -> None:
    with pytest.raises(ValueError, match="kernel_size given both"):
        create_attention("eca:kernel_size=9", 64, kernel_size=9)


# Registering


@pytest.mark.usefixtures("own_registry")
def test_register_class_function_and_name() -> None:
    @register_attention
    class MyGate(nn.Module):
        def __init__(self, channels: int, power: float = 1.0) -> None:
            super().__init__()
            self.power = power

        def forward(self, x: Tensor) -> Tensor:
            return x * x.mean((2, 3), keepdim=True).sigmoid() ** self.power

    @register_attention("other_name")
    def build(channels: int, **arguments: Any) -> nn.Module:
        return ECA(channels, **arguments)

    @register_attention()
    def plain(channels: int) -> nn.Module:
        return nn.Identity()

    assert {"my_gate", "other_name", "plain"} <= set(list_attention())
    assert MyGate.__name__ == "MyGate"  # the decorator returns what it got
    assert create_attention("my_gate:power=2", 8)(torch.ones(1, 8, 2, 2)).shape == (1, 8, 2, 2)
    assert create_attention("other_name:kernel_size=5", 8).conv.kernel_size == (5,)
    with pytest.raises(ValueError, match=r"power must be float, got 'x'; my_gate takes power=1\.0"):
        create_attention("my_gate:power=x", 8)
    # A function that passes arguments on is checked by whatever receives them.
    with pytest.raises(ValueError, match=r"other_name.*unexpected keyword argument 'k'"):
        create_attention("other_name:k=5", 8)


@pytest.mark.usefixtures("own_registry")
def test_annotations_that_cannot_be_resolved_check_nothing() -> None:
    @register_attention
    def odd_types(channels: int, a: Literal["x"] = "x", b: Missing = 3) -> nn.Module:  # type: ignore[name-defined]  # noqa: F821
        return nn.Identity()

    create_attention("odd_types:b=4", 8)


@pytest.mark.usefixtures("own_registry")
def test_register_refuses() -> None:
    def build(channels: int) -> nn.Module:
        return nn.Identity()

    for bad in ("My", "a-b", "a:b", "9a", "", "a,b"):
        with pytest.raises(ValueError, match="lower-case letters"):
            register_attention(bad)(build)
    with pytest.raises(ValueError, match=r"'eca' is already registered by .*eca\.py: choose"):
        register_attention("eca")(build)
    with pytest.raises(TypeError, match="must take channels"):
        register_attention("nothing")(lambda: nn.Identity())
    with pytest.raises(TypeError, match="must take channels"):
        register_attention("keywords")(lambda **kw: nn.Identity())
    register_attention("twice")(build)
    register_attention("twice")(build)  # the same object: nothing happens

    def another(channels: int) -> nn.Module:
        return nn.Identity()

    with pytest.raises(ValueError, match="already registered"):
        register_attention("twice")(another)
    register_attention("no_module")(lambda channels: channels)  # type: ignore[arg-type,return-value]
    with pytest.raises(TypeError, match=r"built a int, not an nn\.Module"):
        create_attention("no_module", 8)


@pytest.mark.usefixtures("own_registry")
def test_reloading_our_own_file_is_allowed() -> None:
    from ecanet.attention import simam

    old = simam.SimAM
    try:
        importlib.reload(simam)
        assert type(create_attention("simam", 8)) is simam.SimAM is not old
    finally:
        simam.SimAM = old  # type: ignore[misc]


# Plugins

PLUGIN = """
import torch
from torch import nn
from ecanet.attention import register_attention

@register_attention("halve")
class Halve(nn.Module):
    def __init__(self, channels: int, factor: float = 0.5):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor
"""


def write(folder: Path, text: str, name: str = "my_module.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.usefixtures("own_registry")
def test_plugin(tmp_path: Path) -> None:
    path = write(tmp_path, PLUGIN)
    assert load_plugin(path) == ["halve"]
    module = create_attention("halve:factor=0.25", 4)
    assert module(torch.ones(1, 4, 1, 1)).sum() == 1
    torch.save(module, tmp_path / "module.pt")
    assert type(torch.load(tmp_path / "module.pt", weights_only=False)) is type(module)
    # An edited file replaces what it registered, renamed classes too, even with the same size and time.
    written = path.stat()
    write(tmp_path, PLUGIN.replace("Halve", "Half").replace("= 0.5", "= 0.75"))
    assert path.stat().st_size == written.st_size
    os.utime(path, ns=(written.st_atime_ns, written.st_mtime_ns))
    assert load_plugin(str(path)) == ["halve"]
    assert create_attention("halve", 4).factor == 0.75
    # Two files with the same name coexist; an attention module belongs to one of them.
    (tmp_path / "b").mkdir()
    other = write(tmp_path / "b", PLUGIN)
    with pytest.raises(ValueError, match=r"'halve' is already registered by .*my_module\.py"):
        load_plugin(other)
    write(tmp_path / "b", PLUGIN.replace("halve", "halve_too"))
    assert load_plugin(other) == ["halve_too"]
    assert {"halve", "halve_too"} <= set(list_attention())


@pytest.mark.usefixtures("own_registry")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PLUGIN + "\nx = 1 / 0\n", "line 15: ZeroDivisionError: division by zero"),
        ("def f(:\n", "line 1: SyntaxError:"),
        ("import no_such_package\n", "line 1: ModuleNotFoundError: No module named 'no_such"),
        ("\n\nraise SystemExit('stop')\n", "line 3: SystemExit: stop"),
        ("raise RuntimeError('two\\nlines')\n", "line 1: RuntimeError: two lines"),
        (
            "from ecanet.attention import register_attention, ECA\n\n"
            "def mine(channels):\n    return ECA(channels)\n\nregister_attention('eca')(mine)\n",
            "line 6: ValueError: attention module 'eca' is already registered",
        ),
    ],
)
def test_plugin_that_raises(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    names, modules = list_attention(), set(sys.modules)
    with pytest.raises(ValueError, match="plugin") as caught:
        load_plugin(path)
    line = str(caught.value)
    assert line.startswith(f"plugin {path}, {message}")
    assert "\n" not in line
    # Nothing remains registered or imported.
    assert list_attention() == names
    assert not [name for name in set(sys.modules) - modules if "plugin" in name]


@pytest.mark.usefixtures("own_registry")
def test_failed_reload_keeps_the_old_modules(tmp_path: Path) -> None:
    path = write(tmp_path, PLUGIN)
    load_plugin(path)
    write(tmp_path, "raise OSError('gone')")
    with pytest.raises(ValueError, match="OSError: gone"):
        load_plugin(path)
    assert isinstance(create_attention("halve", 4), nn.Module)


def test_plugin_that_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no plugin file .*absent\.py"):
        load_plugin(tmp_path / "absent.py")
    with pytest.raises(ValueError, match=r"must end in \.py"):
        load_plugin(write(tmp_path, PLUGIN, "plugin.txt"))


def test_interrupt_passes_through(tmp_path: Path) -> None:
    names = list_attention()
    with pytest.raises(KeyboardInterrupt):
        load_plugin(write(tmp_path, PLUGIN + "\nraise KeyboardInterrupt\n"))
    assert list_attention() == names


# The docs' example, and the cost of the import


@pytest.mark.usefixtures("own_registry")
def test_the_docs_example_works(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "attention.md").read_text()
    block = text.split('```python title="my_module.py"\n')[1].split("```")[0]
    assert len([line for line in block.splitlines() if line.strip()]) <= 10
    assert load_plugin(write(tmp_path, block)) == ["my_gate"]
    x = torch.randn(2, 16, 5, 4)
    module = create_attention("my_gate:power=2", 16)
    torch.testing.assert_close(module(x), x * 0.25)


def test_import_brings_no_heavy_library() -> None:
    code = (
        "import sys, ecanet.attention;"
        "print([m for m in ('timm', 'torchvision', 'pytorch_lightning', 'numpy.testing')"
        " if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd()
    )
    assert run.stdout.strip() == "[]"


def test_attention_imports_nothing_of_ours() -> None:
    for file in Path(registry.__file__).parent.glob("*.py"):
        for line in file.read_text().splitlines():
            assert not line.startswith(("from ..", "import ecanet", "from ecanet")), (file, line)
