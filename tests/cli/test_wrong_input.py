"""What every command does first: its help, and wrong input, both at once and without torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ecanet.cli.commands import COMMANDS

_HELP = """
import sys
from ecanet.cli.main import main
from ecanet.cli.commands import COMMANDS
from ecanet.cli.detect import _COMMANDS as DETECT
from ecanet.cli.yolo import _COMMANDS as YOLO
commands = [[], *([name] for name in COMMANDS)]
commands += [["detect", name] for name in DETECT] + [["yolo", name] for name in YOLO]
commands += [["study", name] for name in ("list", "show", "status", "watch", "cancel", "retry")]
for command in commands:
    try:
        main([*command, "--help"])
    except SystemExit as end:
        assert end.code == 0, command
    assert "torch" not in sys.modules, command
"""
_RUN = """
import resource, sys
from ecanet.cli.main import main
try:
    main(sys.argv[1:])
finally:
    used = resource.getrusage(resource.RUSAGE_SELF)
    print("torch" in sys.modules, used.ru_utime + used.ru_stime)
"""
_WRONG = [
    ("compare --seeds 0", "--seeds 0"),
    ("compare --attention none,ecaa", "Did you mean eca"),
    ("compare --model resnet19", "resnet18"),
    ("compare --data nowhere/images", "nowhere"),
    ("compare --epoch 3", "--epochs"),
    ("compare --learning-rte 0.1", "lr"),
    ("compare --precision fp8", "precision"),
    ("sweep nowhere.yaml", "nowhere.yaml"),
    ("plan nowhere", "there is no folder nowhere"),
    ("explain nowhere --images x", "there is no study, run folder or weight file nowhere"),
    ("study show nowhere", "nowhere"),
    ("worker nowhere", "nowhere"),
    ("report nowhere", "nowhere"),
    ("train nowhere/images", "nowhere"),
    ("evaluate nowhere/images --weights nowhere.pth", "nowhere"),
    ("predict nowhere.jpg --weights nowhere.pth", "nowhere"),
    ("explain nowhere.pth", "nowhere.pth"),
    ("fold nowhere.pth --out folded.safetensors", "nowhere.pth"),
    ("export nowhere.pth", "nowhere.pth"),
    ("publish nowhere.pth --to folder --license mit", "nowhere.pth"),
    ("detect train nowhere", "nowhere"),
    ("detect evaluate nowhere --weights nowhere.pth", "nowhere"),
    ("detect predict nowhere.jpg --weights nowhere.pth", "nowhere"),
    ("detect compare nowhere", "nowhere"),
    ("detect sweep nowhere.yaml", "nowhere.yaml"),
    ("yolo train nowhere.yaml --model yolo11n.yaml --attention eca", "nowhere.yaml"),
    ("yolo compare nowhere.yaml --model yolo11n.yaml", "nowhere.yaml"),
    ("profile -m resnet19", "resnet18"),
    ("convert nowhere.pth out.safetensors", "nowhere.pth"),
    ("download nowhere", "nowhere"),
    ("list nowhere", "nowhere"),
]


@pytest.mark.parametrize("columns", ["40", "200"])
def test_every_help_text_fits_80_columns_and_needs_no_torch(columns: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _HELP],
        env={**os.environ, "COLUMNS": columns},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: ") > len(COMMANDS)
    assert [line for line in done.stdout.splitlines() if len(line) > 80] == []


@pytest.mark.slow
@pytest.mark.parametrize(("command", "says"), _WRONG, ids=[command for command, _ in _WRONG])
def test_wrong_input_is_one_line_at_once(command: str, says: str, tmp_path: Path) -> None:
    """In under half a second of a processor's time, the best of three, and without torch."""
    seconds = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", _RUN, *command.split()],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        line = done.stderr.strip()
        assert done.returncode == 2, line
        assert line.startswith("ecanet: ")
        assert "\n" not in line
        assert says in line
        has_torch, used = done.stdout.split()
        assert has_torch == "False"
        seconds.append(float(used))
        if seconds[-1] < 0.5:
            break
    assert min(seconds) < 0.5
    assert list(tmp_path.iterdir()) == []


def test_quiet_and_verbose(tmp_path: Path) -> None:
    """Of a wrong flag, --quiet shows the line and --verbose also where it was found."""
    lines = {}
    for level in ("--quiet", "--verbose"):
        command = [sys.executable, "-m", "ecanet", "compare", "--seeds", "0", level]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2
        lines[level] = done.stderr.strip().splitlines()
    assert len(lines["--quiet"]) == 1
    assert "Traceback" in lines["--verbose"][0]
    assert lines["--verbose"][-1] == lines["--quiet"][0]
