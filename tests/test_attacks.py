"""Attacks: files, folders and addresses that were made to do harm. None gets in.

Each test is one attack. The commands run as processes of their own whose writes, requests and programs
are recorded (``isolated.py``).
"""

from __future__ import annotations

from pathlib import Path

import pytest
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


def decoys(folder: Path) -> Path:
    """Make a folder of files named as libraries are, each of which leaves a trace where it is run."""
    folder.mkdir()
    for name in ("filelock", "json", "multiprocessing", "optuna", "pickle", "socket", "torch"):
        code = f"open(__file__ + '.ran', 'w')\nraise SystemExit('{name}.py was run')\n"
        (folder / f"{name}.py").write_text(code)
    return folder


def test_what_ecanet_starts_imports_nothing_from_the_current_folder(tmp_path: Path) -> None:
    """``ecanet``, ``python -m ecanet`` in somebody's folder, and every process that they start."""
    import subprocess
    import sys

    from ecanet.children import command

    folder = decoys(tmp_path / "mine")
    for start in (command("list", "recipes"), [sys.executable, "-m", "ecanet", "list", "recipes"]):
        done = subprocess.run(start, cwd=folder, capture_output=True, text=True, check=True)
        assert "smoke/digits" in done.stdout
    assert not list(folder.glob("*.ran"))


def test_a_checkout_that_only_the_current_folder_names_is_the_one_that_workers_run(
    tmp_path: Path,
) -> None:
    """``python -m ecanet`` in a checkout finds it there, and hands it on though the folder is left out."""
    import shutil
    import subprocess
    import sys

    import ecanet

    checkout = tmp_path / "checkout"
    shutil.copytree(Path(ecanet.__file__).parent, checkout / "ecanet")
    with (checkout / "ecanet/cli/list.py").open("a") as file:
        file.write(
            "\n\ndef run(arguments):\n"
            "    import subprocess, sys\n"
            "    from ecanet.children import command\n"
            "    print(__file__, flush=True)\n"
            "    return subprocess.run(command('list', 'more')).returncode if not arguments else 0\n"
        )
    start = [sys.executable, "-m", "ecanet", "list"]
    done = subprocess.run(start, cwd=checkout, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(checkout / "ecanet/cli/list.py")] * 2


def test_processes_of_multiprocessing_import_nothing_from_the_current_folder(
    isolated: Isolated, tmp_path: Path
) -> None:
    """They start by ``python -c``, for which the current folder comes first: ranks and image readers."""
    folder = decoys(tmp_path / "mine")
    seen = isolated.call(
        "import multiprocessing, operator\n"
        "from ecanet.children import keep_current_folder_out\n"
        "keep_current_folder_out()\n"
        "spawn = multiprocessing.get_context('spawn')\n"
        "process = spawn.Process(target=operator.add, args=(1, 2))\n"
        "spawn.Lock()\n"
        "process.start(); process.join()\n"
        "assert process.exitcode == 0, process.exitcode\n",
        folder,
    )
    assert seen.code == 0, seen.err
    assert not list(folder.glob("*.ran"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "compare --recipe smoke/digits --epochs 1 --seeds 1 --attention none,eca --jobs 2",
        "train digits --epochs 1 --devices 2 --device cpu",
    ],
)
def test_workers_and_ranks_import_nothing_from_the_current_folder(
    isolated: Isolated, tmp_path: Path, command: str
) -> None:
    folder = decoys(tmp_path / "mine")
    seen = isolated.run(*command.split(), "--out", tmp_path / "out", folder=folder, timeout=250)
    assert seen.code == 0, seen.err
    assert not list(folder.glob("*.ran"))


def test_a_plugin_does_not_make_its_folder_importable(isolated: Isolated, tmp_path: Path) -> None:
    """What lies beside ``mine.py`` does not replace libraries that are imported after it."""
    folder = decoys(tmp_path / "mine")
    (folder / "mine.py").write_text("")
    seen = isolated.call(
        "import sys; path = list(sys.path)\n"
        "from ecanet.plugins import load_plugins\n"
        f"load_plugins([{str(folder / 'mine.py')!r}])\n"
        "assert sys.path == path\n",
        tmp_path,
    )
    assert seen.code == 0, seen.err


# ---- A study, recipe or plugin from elsewhere


# ---- Secrets


# ---- Images and shards


# ---- Annotations


# ---- Checkpoints that are structures without end


# ---- YAML, sweeps and settings


# ---- Names shown in a terminal
