import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
from helpers.commands import Refuse, Run

from ecanet import __version__
from ecanet.errors import ProcessLost


def test_help_names_every_command(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for command in ("compare", "report", "worker", "train", "evaluate", "list"):
        assert f"  {command}" in out
        code, text, _ = run(command, "--help")
        assert code == 0
        assert "usage: ecanet " + command in text


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"ecanet {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "shows", "light"),
    [(["--help"], "profile", []), (["profile", "--help"], "--check-claims", [])],
)
def test_help_imports_nothing_heavy(arguments: list[str], shows: str, light: list[str]) -> None:
    """Importing torch alone takes seconds."""
    script = (
        "import sys\n"
        "from ecanet.cli.main import main\n"
        f"try:\n    main({arguments})\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'timm', 'numpy', 'optuna', 'jsonargparse'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert shows in out.stdout
    assert out.stdout.splitlines()[-1] == str(light)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("compair", "unknown command 'compair'. Did you mean compare"),
        ("detect trian", "unknown command detect 'trian'. Did you mean train"),
        ("compare --epoch 3", "unknown flag --epoch. Did you mean --epochs"),
        ("compare --epochs many", "--epochs: expected int or null, got many"),
        ("compare --epochs 0", "--epochs 0: give a whole number from 1"),
        ("compare --seeds 0", "--seeds 0"),
        ("compare --jobs 0", "--jobs 0"),
        ("compare --precision bf17", "expected one of 'auto', 'float32', 'bf16', 'fp16', got bf17"),
        ("compare --recipe cifar10/resnet21", "Did you mean cifar10/resnet20"),
        ("compare --recipe no/such.yaml", "no recipe or file"),
        ("compare --attention none,ecca", "eca"),
        ("compare --attention none,eca:kernel=3", "kernel_size"),
        ("compare --attention none,eca,eca", "more than once"),
        ("compare --attention ,", "--attention is empty"),
        ("compare --model resnet21", "resnet20"),
        ("compare --data cifar11", "cifar10"),
        ("compare --data no/such/folder", "no/such/folder"),
        ("compare --device cuda:77", "CUDA devices"),
        ("compare --project x", "W&B has no key"),
        ("compare --batch-size 5000", "batch-size 5000"),
        ("compare --plugin no_such_file.py", "no_such_file.py"),
        ("compare stray", "stray"),
        ("compare --out=", "--out has no value"),
        ("compare --optimizer.lr .nan", "--optimizer.lr nan: give a number above 0"),
        ("compare --image-size many", "--image-size: expected int or null, got many (see"),
        ("compare --seeds -1", "--seeds -1: give a whole number from 1"),
        ("compare --seeds 1000000000000000000000000000000", "give a whole number from 1 to 100000"),
        ("compare --seeds 50000", "a study may have 100000 runs"),
        (
            "compare --optimizer os.system",
            "--optimizer takes settings of its own: layer_decay, lr, momentum",
        ),
        (f"compare --out {'x' * 5000}", "File name too long"),
        ("compare --out /dev/null/below", "/dev/null/below"),
        (f"compare --recipe {'x' * 5000}", "no recipe or file"),
        (f"compare --model {'x' * 5000}", "resnet20"),
        ("convert / out.safetensors", "/"),
        ("train digits --out /dev/null/below", "/dev/null/below"),
        ("list modules", "invalid choice"),
        ("report nowhere", "there is no folder nowhere: give the folder that was --out of a study"),
        ("worker nowhere", "there is no folder nowhere: give the folder that was --out of a study"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    refuse: Refuse, workdir: Path, arguments: str, says: str
) -> None:
    refuse(says, *arguments.split(), after_logs=True)
    assert os.listdir(workdir) == [], "nothing is left behind"


def test_a_recipe_of_settings_in_memory_trains_in_memory(
    run: Run, workdir: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data: ./none\nvalidation: 0.2\nselect: best\n")
    (workdir / "none").mkdir()
    code, _, err = run("train", "--recipe", str(recipe))
    assert code == 2
    assert "reading ./none" in err, "as compare reads it"


def test_an_empty_argument_is_refused(refuse: Refuse) -> None:
    """``--out "$OUT"`` where the shell's variable holds nothing."""
    refuse("is empty: does a variable of the shell hold nothing?", "compare", "--out", "")


@pytest.mark.parametrize(
    ("yaml", "says"),
    [
        ("epoch: 3\n", "unknown setting epoch"),
        ("optimizer: {lrr: 3}\n", "unknown setting optimizer.lrr"),
        ("epochs: [\n", "recipe.yaml is no YAML: "),
        ("epochs: many\n", "expected int or null, got many"),
    ],
)
def test_a_wrong_recipe_is_refused(refuse: Refuse, tmp_path: Path, yaml: str, says: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml)
    refuse(says, "compare", "--recipe", recipe)


@pytest.mark.parametrize(
    "broken", ["raise RuntimeError('boom')", "import no_such_package", "def ("]
)
def test_a_plugin_that_raises_is_one_line(refuse: Refuse, tmp_path: Path, broken: str) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(f"import torch\n\n{broken}\n")
    refuse("mine.py, line 3", "compare", "--plugin", plugin, "--out", tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_lists(run: Run) -> None:
    assert "eca" in run("list", "attention")[1].split()
    assert "eca_resnet50" in run("list", "models")[1].split()
    assert "smoke/digits" in run("list", "recipes")[1]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "out of memory: the system gave no more"),
        (
            RuntimeError("operator torchvision::nms does not exist"),
            "do not fit together: install both",
        ),
        (MemoryError("Unable to allocate 12 GiB"), "out of memory: Unable to allocate 12 GiB"),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
            "command resumes",
        ),
        (ProcessLost("a process of the run was lost"), "lost; the same command resumes"),
    ],
)
def test_lost_processes_and_memory_end_in_one_line(
    refuse: Refuse, monkeypatch: pytest.MonkeyPatch, error: Exception, says: str
) -> None:
    monkeypatch.setattr("ecanet.cli.list.run", Mock(side_effect=error))
    refuse(says, "list", "models")
