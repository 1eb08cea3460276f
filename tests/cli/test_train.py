"""``ecanet train`` and ``ecanet evaluate`` as a user meets them."""

import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.commands import Refuse, Run
from helpers.photographs import draw_photographs
from helpers.waiting import wait_until

SMALL = [
    "-m", "resnet20", "--epochs", "1", "-b", "8", "--image-size", "16", "--eval-size", "16",
    "--workers", "0", "--device", "cpu", "--precision", "float32",
]  # fmt: skip


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return draw_photographs(tmp_path / "images", ["train", "val"], side=20)


def test_train_evaluate_and_go_on(images: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "run"
    code, said, err = run("train", images, *SMALL, "--out", out)
    assert (code, said.strip()) == (0, str(out / "best.safetensors")), err
    assert "epoch 1/1" in err
    flags = ("--workers", "0", "--device", "cpu", "--json", tmp_path / "found.json")
    code, said, err = run("evaluate", images, "--weights", out / "best.safetensors", *flags)
    assert code == 0, err
    assert said.startswith("top-1 ")
    assert "10 images of val" in said
    assert (tmp_path / "found.json").exists()
    code, _, err = run("train", images, *SMALL, "--out", out, "--resume")
    assert code == 0
    assert "epoch 1/1" not in err, "there is nothing left to train"


def test_bad_input_is_one_line(images: Path, tmp_path: Path, refuse: Refuse) -> None:
    out = str(tmp_path / "run")
    broken = tmp_path / "no_val"
    (broken / "train").mkdir(parents=True)
    data = str(images)
    wrong = tmp_path / "wrong.pth"
    wrong.write_bytes(b"nothing")
    cases: list[tuple[list[str], str]] = [
        (["train"], "which images?"),
        (["train", str(tmp_path / "nowhere")], "There is no folder"),
        (["train", str(broken)], "holds no class folder"),
        (["train", data, "--resume", "--out", out], "no run to resume"),
        (["train", data, "--attention", "ecca", "--out", out], "eca"),
        (["train", data, "--epochs", "0", "--out", out], "--epochs 0"),
        (["train", data, "--kernel-size", "3557"], "Did you mean --kernel-sizes"),
        (["train", data, *SMALL, "--weights", str(wrong), "--out", out], "wrong.pth"),
        (["train", data, *SMALL, "--out", str(wrong)], "is a file"),
        (["train", data, *SMALL, "--plugin", data, "--out", out], "no plugin file"),
        (["evaluate", data], "which weights?"),
        (["evaluate"], "which images?"),
        (["evaluate", data, "--weights", str(wrong)], "wrong.pth"),
    ]
    for arguments, says in cases:
        refuse(says, *arguments, after_logs=True)


def test_weights_for_other_classes_are_refused(
    images: Path, tmp_path: Path, run: Run, refuse: Refuse
) -> None:
    out = tmp_path / "run"
    assert run("train", images, *SMALL, "--out", out)[0] == 0
    weights = ("--weights", out / "last.safetensors", "--workers", "0", "--device", "cpu")
    refuse("no folder test/", "evaluate", images, *weights, "--split", "test")
    (images / "val/class1").rename(images / "val/wolf")
    refuse("do not have: wolf; they have class0, class1", "evaluate", images, *weights)


def train(
    images: Path, out: Path, *more: str, **environment: object
) -> subprocess.CompletedProcess[str]:
    """Train in a process with these variables of its environment."""
    return subprocess.run(
        [sys.executable, "-m", "ecanet", "train", images, *SMALL, "--out", out, *more],
        env=os.environ | {name: str(value) for name, value in environment.items()},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "1"])
def test_sigterm_has_its_own_exit_code(images: Path, tmp_path: Path, workers: str) -> None:
    """Also where it reaches the processes that read images, as from timeout and SLURM."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "ecanet", "train", str(images), *SMALL, "--out", str(out)]
    command[command.index("--epochs") + 1] = "500"
    command += ["--storage", "stream", "--workers", workers]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_until((out / "metrics.csv").exists, 120)
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert err.splitlines()[-1] == "ecanet: received SIGTERM and saved; the same command resumes"
    assert list((out / "checkpoints").glob("*.ckpt"))


@pytest.mark.slow
def test_a_taken_port_is_one_line(images: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = train(images, tmp_path / "run", "--devices", "2", MASTER_PORT=taken.getsockname()[1])
    assert done.returncode == 2, done.stderr
    assert "MASTER_PORT" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_an_error_of_all_processes_is_reported_once(images: Path, tmp_path: Path) -> None:
    done = train(images, tmp_path / "run", "--devices", "2", "-b", "2", "--attention", "srm")
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("ecanet: one image per step is too few for SRM") == 1


# ---- W&B


def wandb_run(images: Path, out: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("wandb")
    environment = {"WANDB_SILENT": "true", "HOME": str(out.parent), **environment}
    return train(images, out, "--project", "test", **environment)


@pytest.mark.slow
def test_wandb_offline_keeps_its_id(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    kept = set()
    for _ in range(2):
        done = wandb_run(images, out, WANDB_MODE="offline")
        assert done.returncode == 0, done.stderr
        kept.add((out / "tracking.json").read_text())
    assert len(kept) == 1
    names = {path.name.rsplit("-", 1)[1] for path in (out / "wandb").glob("offline-run-*")}
    assert len(names) == 1, "both ran under one id"


@pytest.mark.slow
def test_wandb_without_a_key_fails_at_once(images: Path, tmp_path: Path) -> None:
    done = wandb_run(images, tmp_path / "run", WANDB_MODE="online", WANDB_API_KEY="")
    assert done.returncode == 2
    assert "W&B has no key" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "run").exists()


class _Stalled(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        time.sleep(300)

    do_GET = do_POST

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def stalled_server() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Stalled)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_wandb_server_that_does_not_answer(
    images: Path, tmp_path: Path, stalled_server: str
) -> None:
    server = {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": stalled_server}
    done = wandb_run(images, tmp_path / "run", WANDB_MODE="online", **server)
    assert done.returncode == 0, done.stderr
    assert "W&B cannot be reached" in done.stderr
    assert list((tmp_path / "run/wandb").glob("offline-run-*"))
    assert (tmp_path / "run/best.safetensors").exists()
