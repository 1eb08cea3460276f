"""``ecanet sweep`` as a user meets it, and ``ecanet train`` as a W&B agent does."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.commands import Refuse, Run

SWEEP = """\
program: train.py
method: random
metric: {name: acc}
parameters:
  att: {values: [ECA, SE]}
  lr: {min: 0.01, max: 0.1}
"""
QUICK = ["--epochs", "1", "--batch_size=256", "--device", "cpu", "--precision", "float32"]


def test_bad_input_is_one_line(tmp_path: Path, refuse: Refuse) -> None:
    file, out = tmp_path / "sweep.yaml", str(tmp_path / "out")
    file.write_text(SWEEP)

    def changed(old: str, new: str) -> str:
        path = tmp_path / f"changed{len(list(tmp_path.iterdir()))}.yaml"
        path.write_text(SWEEP.replace(old, new))
        return str(path)

    cases: list[tuple[list[str], str]] = [
        ([], "which sweep?"),
        ([str(tmp_path / "nowhere.yaml")], "no recipe or file"),
        (["sweeps/reproduction2002"], "Did you mean sweeps/reproduction2020"),
        ([changed("lr:", "lrr:")], "unknown parameter lrr. Did you mean lr"),
        ([changed("[ECA, SE]", "[ECA, SEE]")], "parameter att: unknown attention module 'see'"),
        ([changed("att", "[")], "is no YAML"),
        ([str(file), "--trails", "3"], "Did you mean --trials"),
        ([str(file), "--trials", "0"], "--trials 0"),
        ([str(file), "--data", "nothing"], "Unknown data 'nothing'"),
        ([str(file), "--optimizer.lr", "0.1"], "--optimizer.lr and the sweep's parameter lr"),
    ]
    for arguments, says in cases:
        out_flag = ["--out", out] if arguments else []
        refuse(says, "sweep", *arguments, *out_flag, after_logs=True)
        assert not Path(out).exists()
    # The folder of the file is another's.
    refuse("holds no study", "sweep", file, "--out", tmp_path, after_logs=True)


@pytest.mark.slow
def test_two_workers_sweep_and_their_report(tmp_path: Path, run: Run) -> None:
    file, out = tmp_path / "sweep.yaml", tmp_path / "out"
    file.write_text(SWEEP)
    code, said, err = run(
        "sweep", file, *QUICK, "--trials", "3", "--jobs", "2", "--confirm", "1",
        "--confirm-seeds", "2", "--out", out,
    )  # fmt: skip
    assert (code, said.strip()) == (0, str(out / "report/index.html")), err
    assert "[5/5]" in err
    assert "Trained again with 2 fresh seeds" in err
    report = json.loads((out / "report/report.json").read_text())
    assert [t["state"] for t in report["trials"]] == ["finished"] * 3
    code, _, err = run(
        "compare", "--recipe", out / "report/best.yaml", "--attention", "none", "--seeds", "1",
        "--jobs", "1", "--out", tmp_path / "study",
    )  # fmt: skip
    assert code == 0, err


# ---- W&B's agent


def agent_command(values: dict[str, object]) -> list[str]:
    """The command line that ``wandb agent`` makes of a sweep's ``command``, with ``${args}`` last."""
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    made = utils.create_sweep_command_args({"args": {k: {"value": v} for k, v in values.items()}})
    return [sys.executable, "-m", "ecanet", "train", "digits", "--epochs", "1", *made["args"]]


def log_records(content: bytes) -> Iterator[bytes]:
    """The records of a W&B run file: LevelDB's log format, behind a header of seven bytes."""
    place, parts = 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768  # no header fits into the rest of a block
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


@pytest.mark.slow
def test_a_wandb_agent_trains_and_gets_its_metric(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    command = agent_command({"att": "ECA", "optimizer": "adam", "batch_size": 256, "flip": False})
    assert {"--att=ECA", "--optimizer=adam", "--batch_size=256", "--flip=False"} <= set(command)
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={
            **os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true", "HOME": str(tmp_path),
            "WANDB_SWEEP_ID": "sweep12345", "WANDB_RUN_ID": "run67890", "WANDB_PROJECT": "p",
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    out = tmp_path / "run/run67890"
    assert done.stdout.strip().endswith("run/run67890/last.safetensors"), "each run has its folder"
    settings = json.loads((out / "settings.json").read_text())
    assert settings["attention"] == "eca"
    assert settings["augmentation"]["flip"] is False
    assert settings["optimizer"]["lr"] == 1e-3, "the rate follows the optimizer"
    record = json.loads((out / "record.json").read_text())
    # What went to W&B: the agent's own run, and the metric by any of its names.
    (log,) = (out / "wandb").glob("offline-run-*/run-run67890.wandb")
    logged: dict[str, float] = {}
    for data in log_records(log.read_bytes()):
        entry = wandb_internal_pb2.Record()
        entry.ParseFromString(data)
        for item in entry.history.item:
            logged[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
    for names, metric in ((("loss", "validation_loss"), "val_loss"), (("acc",), "val_accuracy")):
        for name in (*names, metric):
            assert logged[name] == pytest.approx(record["epochs"][0][metric])


def test_train_in_memory_resumes_and_refuses_other_settings(
    tmp_path: Path, run: Run, refuse: Refuse
) -> None:
    out = tmp_path / "run"
    command = ["train", "digits", "--model", "resnet20", "--att=SE", *QUICK, "--out", out]
    code, said, err = run(*command)
    assert (code, said.strip()) == (0, f"{out}/last.safetensors"), "the tested weights" + err
    assert "epoch 1/1" in err
    assert "test accuracy" in err
    code, _, err = run(*command)
    assert code == 0
    assert "epoch 1/1" not in err, "there is nothing left to train"
    refuse(
        "optimizer.name: sgd there, adam requested", *command, "--optimizer=adam", after_logs=True
    )
    train = ("train", "digits", "--attention=see", "--out", tmp_path / "x")
    refuse("unknown attention module 'see'", *train, after_logs=True)
    assert not (tmp_path / "x").exists()
