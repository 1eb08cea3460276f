"""The scripts are run by a real shell."""

import subprocess
import sys
from pathlib import Path

import pytest

COMPLETE = """
source {script}
COMP_WORDS=({words})
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_shtab_ecanet
echo "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("shtab")
    file = tmp_path_factory.mktemp("shell") / "ecanet.bash"
    command = [sys.executable, "-m", "ecanet", "completion", "bash"]
    file.write_text(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return file


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("ecanet comp", "compare completion"),
        ("ecanet detect tr", "train"),
        ("ecanet study wa", "watch"),
        ("ecanet compare --atte", "--attention"),
        ("ecanet compare --attention cb", "cbam"),
        ("ecanet train digits -m eca_resnet50", "eca_resnet50"),
        ("ecanet detect train --detector ret", "retinanet"),
        ("ecanet sweep --optimizer.name adamw", "adamw"),
        ("ecanet list mo", "models"),
    ],
)
def test_bash_completes_commands_flags_and_names(script: Path, words: str, offered: str) -> None:
    text = COMPLETE.format(script=script, words=words)
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout.split() == offered.split()


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_get_a_script(shell: str) -> None:
    pytest.importorskip("shtab")
    command = [sys.executable, "-m", "ecanet", "completion", shell]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "compare" in done.stdout
