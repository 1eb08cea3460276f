"""Attacks: files, folders and addresses that were made to do harm. None gets in.

Each test is one attack. The commands run as processes of their own whose writes, requests and programs
are recorded (``isolated.py``).
"""

from __future__ import annotations

from pathlib import Path

from isolated import Isolated

# ---- The tools that watch are themselves watched


def test_what_a_command_touches_is_seen(isolated: Isolated, tmp_path: Path) -> None:
    """The recorder records: else every test below would pass in silence."""
    code = (
        "import socket, subprocess, sys\n"
        "open('here', 'w'); open('/dev/null', 'w')\n"
        "subprocess.run([sys.executable, '-c', ''])\n"
        "socket.create_connection(('127.0.0.1', 9), timeout=1)\n"
    )
    seen = isolated.call(code, tmp_path)
    assert seen.code == 1
    assert "ConnectionRefusedError" in seen.err
    assert str(tmp_path / "here") in seen.wrote
    assert seen.wrote_outside(tmp_path) == []
    assert seen.wrote_outside(tmp_path / "there") != []
    assert any("127.0.0.1" in address for address in seen.contacted)
    assert len(seen.started) == 1


# ---- A weight file


# ---- The current folder


# ---- A study, recipe or plugin from elsewhere


# ---- Secrets


# ---- Images and shards


# ---- Annotations


# ---- Checkpoints that are structures without end


# ---- YAML, sweeps and settings


def test_a_recipe_imports_nothing(isolated: Isolated, tmp_path: Path) -> None:
    """A class in place of a group of settings: its module would be imported, and so be run."""
    (tmp_path / "evil.py").write_text("open('ran', 'w')")
    recipes = {
        "text": "optimizer: evil.Thing",
        "mapping": "optimizer: {class_path: evil.Thing, init_args: {}}",
        "inner": "optimizer: {lr: {class_path: evil.Thing}}",
        "other": "recipe: text.yaml",
        "tag": "epochs: !!python/object/apply:os.system ['touch ran']",
    }
    for name, text in recipes.items():
        (tmp_path / f"{name}.yaml").write_text(text)
        others = (
            [["train", "x"], ["detect", "train", "x"], ["sweep", "x"]] if name == "text" else []
        )
        for command in (["compare"], *others):
            seen = isolated.run(
                *command, "--recipe", f"{name}.yaml", folder=tmp_path, env={"PYTHONPATH": "."}
            )
            assert seen.is_one_line(), seen.err
            assert not (tmp_path / "ran").exists()
    seen = isolated.run("compare", "--optimizer", "evil.Thing", folder=tmp_path)
    assert seen.is_one_line()
    assert not (tmp_path / "ran").exists()


def test_yaml_that_is_small_to_write_and_endless_to_read(
    isolated: Isolated, tmp_path: Path
) -> None:
    """Aliases of aliases, brackets without end, numbers without end, devices: refused at once."""
    laughs = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 10)}]\n"
        for i in range(12)
    )
    texts = {
        "laughs": laughs,
        "itself": "a: &a [*a]",
        "brackets": "[" * 100_000,
        "braces": "{a: " * 100_000,
        "dashes": "- " * 100_000,
        "digits": f"epochs: {'9' * 100_000}",
        "hexadecimal": f"epochs: 0x{'f' * 100_000}",
        "sexagesimal": "epochs: 1" + ":59" * 50_000,
        "large": f"epochs: 3 {'#' * 2**21}",
        "twice": "epochs: 3\nepochs: 300",
        "nul": 'data: "a\\0b"',
        "values": f"milestones: {list(range(300_000))}",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    with open(tmp_path / "holes", "wb") as file:
        file.truncate(2**30)
    for name in [*texts, "holes", "/dev/zero"]:
        everywhere = [["sweep"], ["train", "x", "--recipe"]] if name in ("laughs", "holes") else []
        for command in (["compare", "--recipe"], *everywhere):
            seen = isolated.run(*command, name, folder=tmp_path, timeout=20)
            assert seen.is_one_line(), (name, command, seen.err[-300:])
            assert seen.seconds < 10
            assert seen.memory < 2**30, (name, command)
            assert len(seen.err) < 5000


def test_a_sweep_without_end(isolated: Isolated, tmp_path: Path) -> None:
    """Grids of 10^12 points, steps that no float can count, bounds that are no numbers."""
    import json

    values = list(range(1, 1001))
    parameters = {
        "points": {name: {"values": values} for name in ("seed", "epochs", "cutout", "batch_size")},
        "steps": {"lr": {"distribution": "q_uniform", "min": 0.1, "max": 1.0, "q": 1e-9}},
        "no steps": {"lr": {"distribution": "q_uniform", "min": 0.0, "max": 1.0, "q": 1e-320}},
        "nan": {"lr": {"min": float("nan"), "max": 1.0}},
        "infinity": {"lr": {"min": 0.1, "max": float("inf")}},
        "wide": {"lr": {"min": -1e308, "max": 1e308}},
        "whole": {"seed": {"min": 0, "max": 10**30}},
        "logarithm": {"lr": {"distribution": "log_uniform", "min": -1000, "max": -900}},
        "normal": {"lr": {"distribution": "log_normal", "mu": 100_000}},
    }
    for name, swept in parameters.items():
        method = "grid" if name in ("points", "steps") else "random"
        sweep = json.dumps({"method": method, "parameters": swept})
        sweep = sweep.replace("NaN", ".nan").replace("Infinity", ".inf")
        (tmp_path / "sweep.yaml").write_text(sweep)
        seen = isolated.run("sweep", "sweep.yaml", "--out", "out", folder=tmp_path, timeout=20)
        assert seen.is_one_line(), (name, seen.err[-300:])
        assert seen.seconds < 10
        assert not (tmp_path / "out").exists()


# ---- Names shown in a terminal

_STEERING = "\x1b]0;title\x07\x1b[2J\r\u202egnp.exe\x9b31m\nall is well"


def test_a_files_name_does_not_steer_the_terminal(isolated: Isolated, tmp_path: Path) -> None:
    """Escape sequences, carriage returns, lines of their own and turned writing are written out."""
    (tmp_path / _STEERING).write_text("[")
    for command in (
        ["compare", "--recipe", _STEERING],
        ["compare", "--data", f"./{_STEERING}"],
        ["sweep", _STEERING],
        ["convert", _STEERING, "out.safetensors"],
        ["train", "digits", "--attention", _STEERING],
        ["study", "list", _STEERING],
        ["report", _STEERING],
        [_STEERING],
    ):
        for env in ({}, {"PYTHONIOENCODING": "ascii"}):
            seen = isolated.run(*command, folder=tmp_path, env=env)
            assert seen.is_one_line(), (command, seen.err)
            shown = seen.out + seen.err
            assert "\\x1b" in shown, command
            assert not set(shown) & set("\x1b\x07\r\x9b\u202e"), command
            assert "\nall is well" not in shown, command


def test_a_name_that_is_no_utf8_is_shown(isolated: Isolated, tmp_path: Path) -> None:
    """Bytes of a Latin file system: an escape each, in every encoding of the terminal."""
    import os

    name = os.fsdecode(b"caf\xe9")
    for encoding in ("utf-8", "ascii", "latin-1"):
        seen = isolated.run(
            "report", name, folder=tmp_path, env={"PYTHONIOENCODING": encoding, "LANG": "C"}
        )
        assert seen.is_one_line(), seen.err
        assert "caf\\udce9" in seen.err


def test_a_studys_name_is_no_markup(isolated: Isolated, tmp_path: Path) -> None:
    """``[/red]`` and escapes in a cell of a table are text, on a terminal as in a file."""
    code = (
        "from rich.table import Table; from rich.text import Text\n"
        "from ecanet.cli.terminal import console\n"
        f"table = Table('study'); table.add_row('[/red] :smile:' + {_STEERING!r})\n"
        f"console().print(table); console().print(Text({_STEERING!r}, style='red'))\n"
    )
    for env in ({}, {"FORCE_COLOR": "1"}):
        seen = isolated.call(f"import os; os.environ.update({env!r})\n{code}", tmp_path)
        assert seen.code == 0, seen.err
        assert "[/red] :smile:\\x1b]0;title" in seen.out
        assert not set(seen.out) & set("\x07\r\x9b\u202e")
        assert "\x1b[2J" not in seen.out
