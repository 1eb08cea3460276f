"""Commands that train: their words, their metrics, and that none of them outlives its worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from helpers.waiting import wait_until

from ecanet.errors import UserError
from ecanet.integrations.command import run_command, words
from ecanet.integrations.containment import OUTPUT
from ecanet.integrations.reports import Report
from ecanet.record import Row
from ecanet.training.task import Hooks


def run(folder: Path, code: str, hooks: Hooks | None = None) -> dict[str, object]:
    report = Report(folder, hooks or Hooks(), "accuracy", "train.py")
    command = [sys.executable, "-c", code, str(folder)]
    return run_command(command, folder, report, directory=str(folder), threads=1)


def test_words_are_split_before_values_are_put_in() -> None:
    found = words("python train.py '--attn {attention}' --out={out}", "a b", 3, Path("/x y"))
    assert found == [sys.executable, "train.py", "--attn a b", "--out=/x y"]
    assert words("sh -c 'train {seed} {other}'", "a", 3, Path()) == ["sh", "-c", "train 3 {other}"]
    with pytest.raises(UserError, match="No closing quotation"):
        words("train 'a", "a", 3, Path())


def test_metrics_are_read_from_json_or_the_last_line(tmp_path: Path) -> None:
    table = (
        "import sys, os; os.chdir(sys.argv[1])\n"
        "open('metrics.csv', 'w').write('accuracy\\n0.5\\n0.75\\n')"
    )
    passed: list[Row] = []
    assert run(tmp_path, table, Hooks(on_epoch=passed.append)) == {"accuracy": 0.75}
    assert [(row["epoch"], row["accuracy"]) for row in passed] == [(0, 0.5), (1, 0.75)]
    both = f"{table}\nopen('metrics.json', 'w').write('{{\"accuracy\": 0.9}}')"
    assert run(tmp_path, both) == {"accuracy": 0.9}


def test_a_last_line_without_an_end_counts_once_the_command_has_ended(tmp_path: Path) -> None:
    code = (
        "import sys, os; os.chdir(sys.argv[1])\n"
        "open('metrics.csv', 'w').write('epoch,accuracy\\n0,0.1\\n1,0.5')"
    )
    assert run(tmp_path, code) == {"accuracy": 0.5}


@pytest.mark.parametrize(
    ("text", "says"), [("{'accuracy': 1,}", "metrics.json is not JSON"), ("", "is not JSON")]
)
def test_metrics_that_are_no_json_are_no_reason_to_take_others(
    tmp_path: Path, text: str, says: str
) -> None:
    (tmp_path / "metrics.csv").write_text("accuracy\n0.1\n")
    code = f"import sys, os; os.chdir(sys.argv[1]); open('metrics.json', 'w').write({text!r})"
    with pytest.raises(UserError, match=says):
        run(tmp_path, code)


def test_metrics_of_an_attempt_that_failed_are_not_those_of_the_next(tmp_path: Path) -> None:
    code = (
        "import sys, os; os.chdir(sys.argv[1])\n"
        "open('metrics.json', 'w').write('{\"accuracy\": 0.99}'); sys.exit(1)"
    )
    with pytest.raises(RuntimeError, match="exit code 1"):
        run(tmp_path, code)
    with pytest.raises(UserError, match="has written neither"):
        run(tmp_path, "pass")


def test_epochs_are_passed_on_while_it_runs(tmp_path: Path) -> None:
    code = (
        "import sys, os, time; os.chdir(sys.argv[1])\n"
        "open('metrics.csv', 'w').write('accuracy\\n0.5\\n')\n"
        "while not os.path.exists('seen'): time.sleep(0.01)\n"
    )
    assert run(tmp_path, code, Hooks(on_epoch=lambda row: (tmp_path / "seen").touch()))


def test_one_that_fails_is_named_with_its_last_line(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ended with exit code 1: ValueError: too small"):
        run(tmp_path, "print('begun'); raise ValueError('too small')")
    assert "begun" in (tmp_path / OUTPUT).read_text()
    (tmp_path / OUTPUT).unlink()
    with pytest.raises(RuntimeError, match="was killed by SIGSEGV: it printed nothing"):
        run(tmp_path, "import os; os.kill(os.getpid(), 11)")


def test_one_that_writes_no_metrics_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither .*metrics\.json nor metrics\.csv"):
        run(tmp_path, "pass")


def test_one_that_is_to_end_can_save_first(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time\n"
        "def save(*_): open(sys.argv[1] + '/saved', 'w').close(); raise SystemExit\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "open(sys.argv[1] + '/begun', 'w').close()\n"
        "time.sleep(600)\n"
    )

    def stop() -> None:
        if (tmp_path / "begun").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, code, Hooks(on_step=stop))
    assert (tmp_path / "saved").exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_none_outlives_its_worker(tmp_path: Path, number: int) -> None:
    """Neither the command nor what it has started."""
    (tmp_path / "train.py").write_text(
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "open('pids', 'w').write(f'{os.getpid()} {child.pid}\\n')\n"
        "time.sleep(600)\n"
    )
    worker = subprocess.Popen(
        [
            sys.executable, "-c",
            "import sys; from pathlib import Path\n"
            "from ecanet.integrations.command import run_command\n"
            "from ecanet.integrations.reports import Report\n"
            "from ecanet.signals import deferred_signals\n"
            "from ecanet.training.task import Hooks\n"
            "with deferred_signals():\n"
            "    run_command([sys.executable, 'train.py'], Path('.'),\n"
            "        Report(Path('.'), Hooks(), 'accuracy', 'x'), directory='.', threads=1)\n",
        ],
        cwd=tmp_path, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    pids = tmp_path / "pids"
    wait_until(lambda: pids.exists() and pids.read_text().endswith("\n"))
    found = [int(pid) for pid in pids.read_text().split()]
    assert all(map(psutil.pid_exists, found))
    os.kill(worker.pid, number)
    worker.wait(60)
    wait_until(lambda: not any(map(_runs, found)))


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
