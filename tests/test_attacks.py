"""Attacks: files, folders and addresses that were made to do harm. None gets in.

Each test is one attack. The commands run as processes of their own whose writes, requests and programs
are recorded (``isolated.py``).
"""

from __future__ import annotations

import contextlib
import csv
import functools
import http.server
import json
import os
import pickle
import re
import shutil
import socket
import sqlite3
import struct
import subprocess
import sys
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import safetensors.torch
import torch
from helpers import commands
from helpers.isolated import Isolated, Result
from optuna.trial import TrialState
from PIL import Image
from safetensors.torch import save_file

import ecanet
from ecanet import children
from ecanet.config import ClassificationSettings
from ecanet.data import load_data
from ecanet.detection import create_detector, save_detector
from ecanet.detection.weights import DETECTOR_KEY
from ecanet.experiments.plans.compare import ComparePlan
from ecanet.experiments.study.location import Location, locate, write_pointer
from ecanet.experiments.study.locks import host_key
from ecanet.experiments.study.study import create_study, load_study
from ecanet.models import create_model
from ecanet.record import Record
from ecanet.training.classification import resolve

pytestmark = pytest.mark.slow

Run = Callable[..., Result]
Check = Callable[..., None]


@pytest.fixture
def run(isolated: Isolated, tmp_path: Path) -> Run:
    """Run a command in ``tmp_path``."""
    return functools.partial(isolated.run, folder=tmp_path)


def refused(seen: Result, *says: str) -> Result:
    """Assert that a command was refused in one line, which holds ``says``."""
    assert seen.is_one_line(), seen.err or seen.out
    assert all(part in seen.err for part in says), seen.err
    return seen


def done(seen: Result) -> Result:
    assert seen.code == 0, seen.err
    return seen


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


class _Server(http.server.BaseHTTPRequestHandler):
    """Answers with ``content``, or 404 without it, and notes what is asked for in ``asked``."""

    content: bytes
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200 if self.content else 404)
        self.end_headers()
        self.wfile.write(self.content)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def _server(content: bytes) -> Iterator[tuple[int, list[str]]]:
    """Serve ``content`` on every path; yield the port, and the list of what is asked for."""
    asked: list[str] = []
    handler = type("Handler", (_Server,), {"content": content, "asked": asked})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port, asked
        server.shutdown()


def _weights(path: Path, **metadata: str) -> Path:
    """Write a sound ResNet-18 of ours whose metadata say what they should not."""
    tensors = create_model("resnet18", num_classes=2).half().state_dict()
    said = {"ecanet_format": "1", "model": "resnet18", "attention": "none", "num_classes": "2"}
    save_file({n: torch.clone(t) for n, t in tensors.items()}, path, {**said, **metadata})
    return path


def _detector(path: Path, told: dict[str, object], **metadata: str) -> Path:
    """Write a sound RetinaNet of ours whose metadata say what they should not."""
    detector = create_detector("retinanet", "resnet18", 2, width=16, min_size=64, max_size=64)
    save_detector(path, detector)
    with safetensors.safe_open(path, "pt") as file:
        said = file.metadata()
    said[DETECTOR_KEY] = json.dumps({**json.loads(said[DETECTOR_KEY]), **told})
    safetensors.torch.save_file(detector.state_dict(), path, {**said, **metadata})
    return path


@pytest.fixture
def harmless(run: Run) -> Check:
    """Assert that a command refuses a file in one line, and touches and fetches nothing."""

    def check(*arguments: object, naming: str = "") -> None:
        seen = refused(run(*arguments), naming)
        assert len(seen.err) < 1500
        assert seen.wrote_outside() == seen.contacted == seen.started == []
        assert seen.seconds < 10
        assert seen.memory < 2 * 2**30, "the imports are 600 MB of it"

    return check


@pytest.fixture
def convert(harmless: Check) -> Check:
    """Assert that of ``convert``, to whose file the test gives the name."""
    return lambda file="x.safetensors", **naming: harmless(
        "convert", file, "y.safetensors", **naming
    )


@pytest.fixture
def predict(harmless: Check, tmp_path: Path) -> Check:
    """Assert that of ``detect predict`` with the weights x.safetensors."""
    Image.new("RGB", (32, 32)).save(tmp_path / "1.png")
    words = ("1.png", "--weights", "x.safetensors", "--out", "out", "--device", "cpu")
    return lambda **naming: harmless("detect", "predict", *words, **naming)


@pytest.mark.parametrize("command", ["convert", "evaluate", "export"])
@pytest.mark.parametrize(
    "args",
    [
        {"pretrained": True, "pretrained_cfg": {"url": "URL", "file": ""}},
        {"pretrained": True, "pretrained_cfg_overlay": {"url": "URL"}, "cache_dir": "elsewhere"},
        {"checkpoint_path": "/etc/passwd"},
        {"pretrained": False},
        {"stem": {"url": "URL"}},
    ],
    ids=lambda args: ",".join(args),
)
def test_weights_that_name_an_address_fetch_nothing(
    harmless: Check, tmp_path: Path, command: str, args: dict[str, object]
) -> None:
    """The arguments that the metadata give to the model's builder would download a file of their own."""
    with _server(b"bytes of another's choice") as (port, asked):
        told = json.dumps(args).replace("URL", f"http://127.0.0.1:{port}/payload")
        _weights(tmp_path / "x.safetensors", model_args=told)
        _pictures(tmp_path / "data", "val")
        words = {
            "convert": ["convert", "x.safetensors", "y.safetensors"],
            "evaluate": ["evaluate", "data", "--weights", "x.safetensors", "--device", "cpu"],
            "export": ["export", "x.safetensors"],
        }[command]
        harmless(*words, naming=next(iter(args)))
        assert asked == []


@pytest.mark.parametrize(
    "said",
    [
        # timm fetches a model whose name begins with hf-hub: from the internet.
        *({"model": f"{kind}:someone/something"} for kind in ("hf-hub", "hf_hub")),
        *({"model": name} for name in ("local-dir:/tmp", "http://127.0.0.1/x", "../../x")),
        *(
            {"model": name}
            for name in ("torchvision/../x", "resnet18.hf-hub:x", "resnet18.no_such_tag")
        ),
        *({"model": name} for name in ("x" * 100_000, "\x1b[31mred")),
        {"num_classes": "1000000000"},
        {"num_classes": "9" * 5000},
        {"in_chans": "1000000000"},
        {"in_chans": "-1"},
        {"kernel_sizes": "9999999,9999999,9999999,9999999"},
        {"kernel_sizes": ",".join("3" * 1_000_000)},
        {"attention": "eca:kernel_size=9999999"},
        {"attention": "se:reduction=" + "9" * 4000},
        {"attention": "fca:size=100000"},
        {"attention": "fca:size=512"},
        {"attention": f"ge:extent={2**13000}"},
        {"attention": "eca:gamma=1e999"},
        {"attention": "eca:kernel_size=" + "-" * 100_000 + "1"},
        {"attention": "eca:kernel_size=" + "[" * 190},
        {"attention": "no_such_module"},
        {"model_args": '{"stem_width": 10000000, "stem_type": "deep"}'},
        {"model_args": '{"stem_width": 1e9}'},
        {"model_args": "[" * 100_000},
        {"model_args": '{"stem":' * 100_000},
        {"model_args": "no JSON"},
        {"model_args": "[1, 2]"},
        {"model_args": "9" * 100_000},
        {"model_args": '{"drop_rate": NaN}'},
    ],
    ids=lambda said: "=".join(*said.items())[:40],
)
def test_weights_that_claim_too_much(convert: Check, tmp_path: Path, said: dict[str, str]) -> None:
    """A claim of a billion classes would take terabytes; a nested one, the stack."""
    _weights(tmp_path / "x.safetensors", **said)
    convert()


@pytest.mark.parametrize(
    "told",
    [
        {"pretrained": True},
        {"backbone": "hf-hub:someone/something"},
        {"backbone": "../x"},
        {"num_classes": 10**9},
        {"width": 10**7},
        {"width": True},
        {"anchor_size": 10**12},
        {"min_size": 10**6},
        {"min_size": [64] * 5000},
        {"max_size": "64"},
        {"kernel_sizes": [9999999] * 4, "attention": "eca"},
        {"attention": "fca:size=100000"},
        {"kind": "retinanet2"},
        {"checkpoint_path": "/etc/passwd"},
        {"frozen_stages": -1},
        {"norm": {"a": 1}},
    ],
    ids=lambda told: json.dumps(told)[:40],
)
def test_a_detector_that_claims_what_it_is_not_is_refused(
    predict: Check, tmp_path: Path, told: dict[str, object]
) -> None:
    _detector(tmp_path / "x.safetensors", told)
    predict(naming=next(iter(told)))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("detector", "[" * 100_000),
        ("detector", "3"),
        ("classes", "no JSON"),
        ("classes", '["a"]'),
        ("classes", '[["a"], "b"]'),
        ("category_ids", "[1e99, NaN]"),
        ("category_ids", '{"a": ' * 100_000),
    ],
)
def test_a_detector_with_bad_metadata(predict: Check, tmp_path: Path, key: str, value: str) -> None:
    _detector(tmp_path / "x.safetensors", {}, **{key: value})
    predict()


def test_a_hub_folders_config_is_not_acted_on(run: Run, tmp_path: Path) -> None:
    """timm would take its config.json for the model's builder; we read the weights alone."""
    with _server(b"bytes of another's choice") as (port, asked):
        url = f"http://127.0.0.1:{port}/payload"
        (tmp_path / "hub").mkdir()
        _weights(tmp_path / "hub" / "model.safetensors")
        config = {"architecture": "x", "pretrained_cfg": {"url": url}, "model_args": {"a": url}}
        (tmp_path / "hub" / "config.json").write_text(json.dumps(config))
        seen = done(run("convert", "hub", "y.safetensors"))
        assert seen.wrote_outside(tmp_path) == []
        assert asked == seen.contacted == []


def _headed(path: Path, header: dict[str, Any], size: int = 0, length: int = 0) -> None:
    """Write a safetensors file of ``size`` zeros whose header claims to be of another length."""
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write((length or len(text)).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + size)


@pytest.mark.parametrize(
    "shapes",
    [
        {f"layer{n}.{n}.conv1.weight": (1,) for n in range(30_000)},
        {f"layer1.{n}.attention.conv.weight": (1,) for n in range(50_000)},
        {"module." * 100_000 + "conv1.weight": (1,)},
        {".".join("a" * 300_000): (1,)},
        {"layer1." + "9" * 5000 + ".conv1.weight": (1,)},
        {"conv1.weight": (0, 10**15), "fc.weight": (10**15, 0)},
    ],
    ids=["stages", "blocks", "prefixes", "dots", "digits", "empty"],
)
def test_names_and_shapes_without_end_are_refused(
    convert: Check, tmp_path: Path, shapes: dict[str, tuple[int, ...]]
) -> None:
    """What the tensors imply is bounded too: a network of a million layers by its names alone."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 4 * int(0 not in shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    _headed(tmp_path / "x.safetensors", header, end)
    convert()


def test_a_header_that_claims_too_much_is_refused(convert: Check, tmp_path: Path) -> None:
    """Shapes and lengths beyond the end of the file, and 12 GB that take no place on the disk."""
    file, size = tmp_path / "x.safetensors", 12 * 10**9
    for length in (0, 2**40, 2**63):
        tensor = {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}
        _headed(file, {"conv1.weight": tensor}, length=length)
        convert()
    tensor = {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}
    _headed(file, {"fc.weight": tensor}, size)
    convert(naming="does not fit into memory")


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
    folder = decoys(tmp_path / "mine")
    module = [sys.executable, "-m", "ecanet", "list", "recipes"]
    for start in (children.command("list", "recipes"), module):
        done = subprocess.run(start, cwd=folder, capture_output=True, text=True, check=True)
        assert "smoke/digits" in done.stdout
    assert not list(folder.glob("*.ran"))


def test_a_checkout_that_only_the_current_folder_names_is_what_workers_run(
    tmp_path: Path,
) -> None:
    """``python -m ecanet`` in a checkout finds it there, and hands it on though the folder is left out."""
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


def test_processes_of_multiprocessing_import_nothing(isolated: Isolated, tmp_path: Path) -> None:
    """They start by ``python -c``, for which the current folder comes first: ranks and image readers."""
    folder = decoys(tmp_path / "mine")
    done(
        isolated.call(
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
    )
    assert not list(folder.glob("*.ran"))


def test_workers_import_nothing_from_the_current_folder(isolated: Isolated, tmp_path: Path) -> None:
    folder = decoys(tmp_path / "mine")
    command = "compare --recipe smoke/digits --epochs 1 --seeds 1 --attention none,eca --jobs 2"
    done(isolated.run(*command.split(), "--out", tmp_path / "out", folder=folder, timeout=250))
    assert not list(folder.glob("*.ran"))


def test_ranks_import_nothing_from_the_current_folder(tmp_path: Path) -> None:
    """They are started by the command's own command line, so it runs as a program of its own."""
    folder = decoys(tmp_path / "mine")
    command = [Path(sys.executable).with_name("ecanet"), "train", "digits", "--epochs", "1"]
    command += ["--devices", "2", "--device", "cpu", "--out", tmp_path / "out"]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=250)
    assert ended.returncode == 0, ended.stderr
    assert not list(folder.glob("*.ran"))


def test_a_plugin_does_not_make_its_folder_importable(isolated: Isolated, tmp_path: Path) -> None:
    """What lies beside ``mine.py`` does not replace libraries that are imported after it."""
    folder = decoys(tmp_path / "mine")
    (folder / "mine.py").write_text("")
    done(
        isolated.call(
            "import sys; path = list(sys.path)\n"
            "from ecanet.plugins import load_plugins\n"
            f"load_plugins([{str(folder / 'mine.py')!r}])\n"
            "assert sys.path == path\n",
            tmp_path,
        )
    )


# ---- A study, recipe or plugin from elsewhere


def _study(folder: Path, **plan: object) -> Path:
    """Make a study of one run on digits, as ``compare`` does, and put the run into its queue."""
    data = load_data("digits")
    how = {"device": "cpu", "precision": "float32", "compile": "off"}
    settings = ClassificationSettings(epochs=1, workers=0, **how)  # type: ignore[arg-type]
    values: dict[str, object] = {"attention": ["none"], "seeds": [0], "plugin": [], **plan}
    made = ComparePlan(resolve(settings, data), data.fingerprint, [], **values)  # type: ignore[arg-type]
    create_study(Location(folder), made, [], {"device": "x"})
    study = load_study(folder)
    study.queue.enqueue(made.runs())
    study.queue.engine.dispose()
    return folder


def _change(folder: Path, statement: str, *values: object) -> None:
    """Change a study's database behind its back."""
    with contextlib.closing(sqlite3.connect(folder / "study.db")) as database, database:
        assert database.execute(statement, values).rowcount


def _content(folder: Path) -> dict[str, bytes | None]:
    """Return all that is in a folder: files by their bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


READING = ("report {}", "study status {}", "study show {}", "study watch {} --once")
WRITING = ("worker {} --jobs 1 --no-wait", "study cancel {}", "study retry {}")


@pytest.mark.parametrize(
    ("name", "under_way"),
    [
        (name, False)
        for name in ("../../x", "{outside}", "..", ".ssh", "a\nb", "a\x1b[2J", "x" * 300, 5)
    ]
    + [("../../x", True), ("{outside}", True)],
)
def test_a_run_whose_name_leads_elsewhere_is_not_begun(
    isolated: Isolated, tmp_path: Path, name: object, under_way: bool
) -> None:
    """Neither by the worker that takes it, nor by one that finds it in the hands of a dead one."""
    folder = _study(tmp_path / "study")
    if isinstance(name, str):
        name = name.format(outside=tmp_path / "outside")
    if under_way:
        study = load_study(folder)
        study.queue.claim({"host_key": host_key(study)})
        study.queue.engine.dispose()
    changing = "UPDATE trial_user_attributes SET value_json = ? WHERE key = 'run'"
    _change(folder, changing, json.dumps(name))
    before = set(tmp_path.iterdir())
    seen = refused(isolated.run("worker", folder, "--jobs", 1, "--no-wait", folder=folder), "name")
    assert "\x1b" not in seen.err
    wrote = seen.wrote_outside(folder, tmp_path / "study.home")
    assert [path for path in wrote if not path.startswith(f"sqlite:file:{folder}/study.db")] == []
    assert set(tmp_path.iterdir()) - before <= {tmp_path / "study.home"}


@pytest.mark.parametrize("link", ["runs", "runs/none-seed0", "runs/none-seed0/.lock", "report"])
def test_links_in_a_study_lead_nowhere(isolated: Isolated, tmp_path: Path, link: str) -> None:
    folder, outside = _study(tmp_path / "study"), tmp_path / "outside"
    (folder / link).parent.mkdir(parents=True, exist_ok=True)
    if link.endswith(".lock"):
        outside.write_text("mine")
    else:
        outside.mkdir()
    (folder / link).symlink_to(outside)
    command = ("report",) if link == "report" else ("worker", "--jobs", 1, "--no-wait")
    refused(isolated.run(*command, folder, folder=folder), "link")
    assert outside.read_text() == "mine" if outside.is_file() else not list(outside.iterdir())


class _Listener:
    """A server on this machine that notes what is said to it, and refuses it as PostgreSQL does."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.said: list[bytes] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.socket.accept()
                with contextlib.suppress(OSError), connection:
                    self.said.append(connection.recv(1000))
                    connection.sendall(b"N")  # no encryption
                    self.said.append(connection.recv(1000))
                    connection.sendall(b"E\0\0\0\x17SFATAL\0C28000\0Mno\0\0")


@pytest.fixture
def listener() -> Iterator[_Listener]:
    server = _Listener()
    yield server
    server.socket.close()


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://me@127.0.0.1:{port}/x",
        "postgresql://me@localhost:{port}/x",
        "postgresql://me:pw@127.0.0.1:{port}/x",
        "postgresql:///x?host=127.0.0.1&port={port}",
        "postgresql://known/x?hostaddr=127.0.0.1&port={port}",
        "postgresql://known/x?host=127.0.0.1:{port}",
        "postgresql:///x?service=theirs",
        "postgresql+psycopg2://me@127.0.0.1:{port}/x",
        "http://127.0.0.1:{port}/x",
    ],
)
def test_a_study_that_names_a_host_gets_no_password(
    run: Run, tmp_path: Path, listener: _Listener, address: str
) -> None:
    """No connection even: the host is one that this user never gave as ``--storage``."""
    folder = tmp_path / "study"
    folder.mkdir()
    pointer = {"storage": address.format(port=listener.port), "study": "study"}
    (folder / "study.json").write_text(json.dumps(pointer))
    env = {"PGPASSWORD": "hunter2hunter2", "XDG_CONFIG_HOME": str(tmp_path / "config")}
    all_of_them = (*READING, *WRITING, "compare --out {}")
    for command in all_of_them if "localhost" in address else READING[:1]:
        refused(run(*command.format(folder).split(), env=env), "--storage")
    assert "--storage" in done(run("study", "list", folder, env=env)).out
    assert listener.said == []
    assert list(folder.iterdir()) == [folder / "study.json"]


def test_a_host_that_was_named_once_is_known(run: Run, tmp_path: Path, listener: _Listener) -> None:
    """Else the test above would pass where nothing ever connects."""
    pytest.importorskip("psycopg")
    folder = tmp_path / "study"
    folder.mkdir()
    address = f"postgresql://me@127.0.0.1:{listener.port}/x"
    env = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    refused(run("study", "list", "--storage", address, env=env))
    assert len(listener.said) > 0
    (folder / "study.json").write_text(json.dumps({"storage": address, "study": "study"}))
    before = len(listener.said)
    refused(run("report", folder, env=env))
    assert len(listener.said) > before


@pytest.mark.parametrize("kind", ["plain", "logged", "same names", "another Optuna", "no database"])
def test_another_programs_database_is_not_written(run: Run, tmp_path: Path, kind: str) -> None:
    """Whatever the command: no table is made in it, no byte changed, no file left beside it."""
    folder = tmp_path / "study"
    folder.mkdir()
    file = folder / "study.db"
    database = sqlite3.connect(file)
    if kind == "another Optuna":
        optuna.storages.RDBStorage(f"sqlite:///{file}").engine.dispose()
        database.execute("UPDATE alembic_version SET version_num = 'v0.9.0.a'")
    elif kind == "logged":
        database.execute("PRAGMA journal_mode = WAL")
    if kind != "another Optuna":
        database.execute("CREATE TABLE notes (text)")
    if kind == "same names":
        database.execute("CREATE TABLE studies (name)")
    database.commit()
    if kind != "logged":
        database.close()  # else its log stays open, as while the other program runs
    if kind == "no database":
        file.write_bytes(b"not a database " * 1000)
    before = _content(folder)
    for command in (*READING, *WRITING, "study list {}", "compare --epochs 1 --out {}"):
        seen = run(*command.format(folder).split())
        assert seen.is_one_line() or (command == "study list {}" and seen.code == 0), seen.err
        assert _content(folder) == before, command
    database.close()


def test_who_reads_a_study_leaves_it_as_it_was(run: Run, tmp_path: Path) -> None:
    """No byte, no time of change, no log beside it; so a study that is read-only can be read."""
    folder = _study(tmp_path / "study")
    before, changed = _content(folder), (folder / "study.db").stat().st_mtime_ns
    for command in (*READING[1:], "study list {}"):
        seen = done(run(*command.format(folder).split()))
        assert seen.wrote_outside() == [f"sqlite:file:{folder}/study.db?immutable=1"], command
    done(run("report", folder))
    for name in list(before):
        assert _content(folder)[name] == before[name]
    assert {path.name for path in folder.iterdir()} == {*before, "report"}
    assert (folder / "study.db").stat().st_mtime_ns == changed


_OF_THE_STUDY = "UPDATE study_user_attributes SET value_json = '{}' WHERE key = '{}'"
BREAKAGES = {
    "no heartbeat": "DELETE FROM study_user_attributes WHERE key = 'heartbeat'",
    "a text as heartbeat": _OF_THE_STUDY.format('"x"', "heartbeat"),
    "no grace": _OF_THE_STUDY.format('{"seconds": 20, "grace": null}', "heartbeat"),
    "endless grace": _OF_THE_STUDY.format('{"seconds": 20, "grace": Infinity}', "heartbeat"),
    "negative grace": _OF_THE_STUDY.format('{"seconds": 20, "grace": -1}', "heartbeat"),
    "no environment": "DELETE FROM study_user_attributes WHERE key = 'environment'",
    "a list as environment": _OF_THE_STUDY.format("[]", "environment"),
    "no costs": "DELETE FROM study_user_attributes WHERE key = 'costs'",
    "a number as costs": _OF_THE_STUDY.format("3", "costs"),
    "costs of numbers": _OF_THE_STUDY.format("[3]", "costs"),
    "no plan": "DELETE FROM study_user_attributes WHERE key = 'plan'",
    "no JSON": _OF_THE_STUDY.format("{", "plan"),
    "a run without a name": "DELETE FROM trial_user_attributes WHERE key = 'run'",
    "a mapping as name": "UPDATE trial_user_attributes SET value_json = '{}' WHERE key = 'run'",
    "a state of no kind": "UPDATE trials SET state = 'NONSENSE'",
    "a text as time": "UPDATE trials SET datetime_start = 'xx'",
    "a text as value": "UPDATE trial_values SET value = 'abc'",
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_study_of_odd_values_ends_in_one_line(
    workdir: Path, capsys: pytest.CaptureFixture[str], breakage: str
) -> None:
    """And hides no other study from the list."""
    odd = _study(workdir / "odd", seeds=[0, 1])
    _study(workdir / "sound")
    study = load_study(odd)
    claim = study.queue.claim({})
    assert claim
    study.queue.finish(claim, TrialState.COMPLETE, 0.5, {"record": {}})
    assert study.queue.claim({})
    study.queue.engine.dispose()
    _change(odd, BREAKAGES[breakage])
    for command in (*READING[:3], WRITING[0], WRITING[2]):
        code, _, err = commands.run(capsys, *command.format(odd).split())
        assert (code, err.count("\n")) == (2, 1) or (code == 0 and command != "report {}")
    code, out, _ = commands.run(capsys, "study", "list")
    assert code == 0
    listed = [line.split() for line in out.splitlines()]
    assert ["sound", "compare", "0/1"] in [words[:3] for words in listed]
    assert "odd" in [words[0] for words in listed]


@pytest.mark.parametrize("kind", ["pipe", "link", "device", "folder"])
def test_a_study_that_is_no_file_is_refused(run: Run, tmp_path: Path, kind: str) -> None:
    folder, file = tmp_path / "study", tmp_path / "study/study.db"
    folder.mkdir()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        other = _study(tmp_path / "other") / "study.db"
        file.symlink_to(other if kind == "link" else "/dev/zero")
    for command in ("report", "worker", "compare --out"):
        refused(run(*command.split(), folder, timeout=60), "study")
    assert [path.name for path in folder.iterdir()] == ["study.db"]


def _plugin(folder: Path) -> Path:
    plugin = folder / "theirs.py"
    plugin.write_text("open(__file__ + '.ran', 'w')\n")
    return plugin


def test_a_plugin_that_a_study_names_needs_trust(run: Run, tmp_path: Path) -> None:
    plugin = _plugin(tmp_path)
    folder = _study(tmp_path / "study", plugin=[str(plugin)])
    for command in (
        "worker {} --jobs 1",
        "worker {} --jobs 2",
        "worker {} --plugin other.py",
        "compare --device cpu --precision float32 --epochs 1 --seeds 1 --attention none --out {}",
        *READING,
    ):
        seen = run(*command.format(folder).split())
        if command in READING:
            assert seen.code == 0, seen.err
        else:
            assert seen.is_one_line(), seen.err
            assert "--trust-plugins" in seen.err
        assert not plugin.with_name("theirs.py.ran").exists(), command
    for trust in ("--trust-plugins", f"--plugin={plugin}"):
        run("worker", folder, "--jobs", 1, "--data", "nowhere", trust)
        plugin.with_name("theirs.py.ran").unlink()


@pytest.mark.parametrize(
    "command",
    [
        "compare",
        "sweep x.yaml",
        "train x",
        "train digits",
        "evaluate x",
        "detect train x",
        "export x",
    ],
)
def test_a_plugin_that_a_recipe_names_needs_trust(run: Run, tmp_path: Path, command: str) -> None:
    plugin, recipe = _plugin(tmp_path), tmp_path / "recipe.yaml"
    for more in ("", "trust_plugins: true\n"):
        recipe.write_text(f"plugin: [{plugin}]\n{more}")
        refused(run(*command.split(), "--recipe", recipe), "--trust-plugins")
        assert not plugin.with_name("theirs.py.ran").exists()
    recipe.write_text(f"plugin: [{plugin}]\nattention: [nonesuch]\n")
    refused(run("compare", "--recipe", recipe, "--trust-plugins"))
    assert plugin.with_name("theirs.py.ran").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"settings": {"threads": 10**9}}, {"settings": {"threads": "2"}},
        {"seeds": list(range(1001)), "attention": ["none"] * 1000},
        {"seeds": ["0"]}, {"attention": 5}, {"attention": ["x" * 300]}, {"metric": "__class__"},
        {"plugin": "abc"}, {"kind": "sweep"}, {"kind": "os:system"}, {"settings": []}, {"more": 1},
        {"settings": {"epochs": 1e9}}, {"settings": {"epochs": 0}}, {"settings": {"batch_size": True}},
        {"settings": {"optimizer": {"class_path": "os.system"}}}, {"settings": {"device": None}},
    ],
)  # fmt: skip
def test_a_plan_whose_values_cannot_be(run: Run, tmp_path: Path, change: dict[str, object]) -> None:
    """What stands in a study's database is checked as what stands on the command line."""
    folder = _study(tmp_path / "study")
    plan = load_study(folder).plan().to_dict()
    settings = change.get("settings")
    if isinstance(settings, dict):
        change = {"settings": {**plan["settings"], **settings}}
    changing = "UPDATE study_user_attributes SET value_json = ? WHERE key = 'plan'"
    _change(folder, changing, json.dumps({**plan, **change}))
    for command in ("worker", "report"):
        refused(run(command, folder), "the study")
    assert "the study" in done(run("study", "list", folder)).out


def test_a_report_shows_what_a_study_says_and_runs_none_of_it(run: Run, tmp_path: Path) -> None:
    """Scripts among names and errors in its page, formulas in its tables."""
    script = "x</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    folder = _study(tmp_path / "study", seeds=[0, 1])
    study = load_study(folder)
    settings = {"attention": script, "seed": 0}
    final = {"test_accuracy": 0.5, "test_loss": 0.5, "epoch": 0, "train_seconds": 1.0, script: 1.0}
    record = Record(settings, {"device": script}, [{"epoch": 0, "train_loss": 1.0}], final)
    for state, kept in (
        (TrialState.COMPLETE, {"record": record.to_dict(), "attention": script}),
        (TrialState.FAIL, {"error": script}),
    ):
        claim = study.queue.claim({})
        assert claim is not None
        study.queue.finish(claim, state, 0.5, kept)
    plan = study.plan().to_dict() | {"attention": [script, "=cmd|' /C calc'!A0"]}
    plan["settings"] |= {"data": script, "model": script}
    study.queue.change_study("plan", lambda there: plan)
    study.queue.engine.dispose()
    done(run("report", folder))
    page = (folder / "report/index.html").read_text()
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>alert(1)" not in page
    assert "<img src=x" not in page
    for file in (folder / "report").glob("*.csv"):
        for row in csv.reader(file.open(newline="")):
            assert not [cell for cell in row if cell.startswith(("=", "@"))]
    json.loads((folder / "report/report.json").read_text())


def test_a_recipe_names_no_database(run: Run, tmp_path: Path, listener: _Listener) -> None:
    """It would be sent the password of the user's own."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"epochs: 1\nstorage: postgresql://me@127.0.0.1:{listener.port}/db\n")
    for command in (["compare", "--data", "digits"], ["detect", "compare", "shapes"]):
        refused(run(*command, "--recipe", recipe, env={"PGPASSWORD": SECRET}), "--storage")
    assert listener.said == []


def test_the_current_folders_matplotlibrc_draws_nothing(isolated: Isolated, tmp_path: Path) -> None:
    """It could have the text of a report's pictures set by a program: latex, with a preamble of its own."""
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    drawn = done(
        isolated.call(
            "from ecanet.experiments.report.image import draw\n"
            "from ecanet.experiments.report.style import Chart, new_figure\n"
            "import matplotlib\n"
            "matplotlib.rc_file('matplotlibrc')\n"  # as at its import, which was before
            "figure = new_figure(200)\n"
            "figure.update_xaxes(title_text='title')\n"
            "draw([Chart('name', 'title', '', figure)])\n",
            tmp_path,
        )
    )
    # The first time, matplotlib lists the fonts.
    assert set(drawn.started) <= {"fc-list"}


def test_a_wandb_folder_chooses_no_server(run: Run, tmp_path: Path, listener: _Listener) -> None:
    """``wandb/settings`` in the current folder can name a server, to which W&B sends the key."""
    pytest.importorskip("wandb")
    (tmp_path / "wandb").mkdir()
    settings = f"[default]\nbase_url = http://127.0.0.1:{listener.port}\n"
    (tmp_path / "wandb" / "settings").write_text(settings)
    env = {"WANDB_API_KEY": "0" * 40, "WANDB_MODE": "online"}
    refused(run("train", "digits", "--epochs", 1, "--loggers", "wandb", env=env), "WANDB_BASE_URL")
    assert listener.said == []


# ---- Secrets

SECRET = "hunter2hunter2"


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://me:{}@nobody.invalid/x",
        "postgresql://me@nobody.invalid/x?password={}",
        "postgresql://me@nobody.invalid/x?sslpassword={}",
        "postgresql://me:{}%40more@nobody.invalid/x",
        "postgresql://me:more@{}@nobody.invalid/x",
        "postgresql://me:more/{}@nobody.invalid/x",
        "postgresql://me:more@more/{}@nobody.invalid/x",
        "postgresql://a/b:{}@nobody.invalid/x",
        "postgresql://me:{}:more@nobody.invalid/x",
        "postgresql://me:more {}@nobody.invalid/x",
        "postgresql://me:{}@one:1,two:2/x",
        "postgresql://me:{}@nobody.invalid:port/x",
        "postgresql://me:{}@nobody.invalid/x?options={}",
        "postgresql://me:{}/x",
        "postgresql:me:{}@127.0.0.1/x",
        "mysql://me:{}@127.0.0.1/x",
        "host=127.0.0.1 password={}",
        "me:{}@127.0.0.1",
    ],
)
def test_an_addresss_password_is_in_no_line_or_file(run: Run, tmp_path: Path, address: str) -> None:
    """However it is written, and whether the address can be read or not."""
    address = address.replace("{}", SECRET)
    for command in ("study list", "worker --study x", "compare --epochs 1 --out x"):
        seen = refused(run(*command.split(), "--storage", address))
        assert SECRET not in seen.out + seen.err
    for path in (tmp_path.with_name(tmp_path.name + ".home"), tmp_path):
        content = _content(path).items()
        assert not [name for name, data in content if SECRET.encode() in (data or b"")]


def test_workers_get_a_password_where_ps_does_not_show_it(tmp_path: Path) -> None:
    for address in ("postgresql://me:{}@h/x", "postgresql://me@h/x?password={}&sslmode=require"):
        location = locate(tmp_path, address.format(SECRET), "s")
        assert location.secrets() == {"PGPASSWORD": SECRET}
        assert location.url().password == SECRET
        write_pointer(location, tmp_path / "study.json")
        kept = json.loads((tmp_path / "study.json").read_text())
        assert kept["storage"].startswith("postgresql://me@h/x")
        assert SECRET not in f"{kept} {location.flags()} {location} {location!r}"
        # What the folder tells is what was named.
        assert locate(tmp_path).storage == location.storage


@pytest.mark.parametrize(
    "mirror", ["http://me:{}@127.0.0.1:{port}/x", "http://me:{}@", "me:{}@h/x"]
)
def test_a_mirrors_password_is_in_no_line(run: Run, mirror: str) -> None:
    with _server(b"") as (port, _):
        address = mirror.replace("{port}", str(port)).replace("{}", SECRET)
        for flags, env in ((["--mirror", address], {}), ([], {"ECANET_MIRROR": address})):
            seen = refused(run("download", "cifar10", *flags, env=env))
            assert SECRET not in seen.out + seen.err


def test_keys_of_the_environment_are_in_no_line(run: Run) -> None:
    """Whatever quotes them, an error of a library for one."""
    for name in ("WANDB_API_KEY", "PGPASSWORD", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        refused(run("report", f"at-{SECRET}", env={name: SECRET}), "at-***")


# ---- Images and shards


Tag = tuple[int, int, int, int]


def _png(width: int, height: int, further: bytes = b"") -> bytes:
    """Return a black PNG; of a huge one the first rows, as nothing is to look at the others."""
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    deflate = zlib.compressobj(1)
    filled = min(height, 1 + 2**20 // width)
    rows = b"".join(deflate.compress(bytes(width + 1)) for _ in range(filled)) + deflate.flush()
    return b"\x89PNG\r\n\x1a\n" + header + further + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    check = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)


def _jpeg(width: int, height: int, segments: bytes = b"", scans: int = 1) -> bytes:
    """Return a progressive JPEG of a size that only its header claims."""
    frame = b"\xff\xc2" + struct.pack(">HBHHB", 11, 8, height, width, 1) + b"\x01\x11\x00"
    scan = b"\xff\xda" + struct.pack(">HB", 8, 1) + b"\x01\x00\x00\x00\x00" + b"\x00" * 8
    return b"\xff\xd8" + segments + frame + scan * scans + b"\xff\xd9"


def _tiff(tags: list[Tag], content: bytes = b"") -> bytes:
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + content


def _grey(width: int, height: int, *tags: Tag) -> list[Tag]:
    eight_bits, plain, black_is_zero = (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)
    size = (256, 4, 1, width), (257, 4, 1, height)
    return [*size, eight_bits, plain, black_is_zero, *tags]


def _gif(content: bytes) -> bytes:
    return b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0x80, 0, 0) + bytes(6) + content + b";"


_FRAME = _chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 8, 8, 0, 0, 1, 10, 0, 0))
BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "of one pixel by 60,000": (lambda: _png(1, 60_000), "1 x 60000 pixels"),
    "of 60,000 pixels by one": (lambda: _png(60_000, 1), "60000 x 1 pixels"),
    "of a hundred million pixels": (lambda: _png(10_000, 10_000), "make it smaller"),
    "of 900 million pixels": (lambda: _png(30_000, 30_000), "make it smaller"),
    "of a JPEG's most pixels": (lambda: _jpeg(65_500, 65_500), "make it smaller"),
    "of a TIFF's most pixels": (lambda: _tiff(_grey(2**31, 2**31, (273, 4, 1, 8))), "make it smaller"),
    "of a GIF's most pixels": (
        lambda: _gif(b"")[:6] + b"\xff" * 4 + _gif(b",\0\0\0\0\x08\0\x08\0\0\2\2D\1\0")[10:],
        "make it smaller",
    ),
    "with text that unfolds": (
        lambda: _png(8, 8, _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**27), 1))),
        "too large",
    ),
    "with many such texts": (
        lambda: _png(8, 8, _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**6), 1)) * 100),
        "text",
    ),
    "with a colour profile that unfolds": (
        lambda: _png(8, 8, _chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**27), 1))),
        "too large",
    ),
    "of a million chunks": (lambda: _png(8, 8, _chunk(b"abCd", b"") * 10**6), "chunks"),
    "of a million segments": (lambda: _jpeg(8, 8, b"\xff\xfe\x00\x02" * 10**6), "segments"),
    "with ten million bytes before its header": (lambda: _jpeg(8, 8, b"\xff" * 10**7), "truncated"),
    "that goes over itself ten thousand times": (lambda: _jpeg(8000, 8000, scans=10**4), "scans"),
    "of twenty million strips": (
        lambda: _tiff(_grey(5000, 5000, (273, 4, 2 * 10**7, 200)), bytes(8 * 10**7)),
        "values in one tag",
    ),
    "of a tile that is a gigabyte": (
        lambda: _tiff(
            [
                *_grey(64, 64)[:3], (259, 3, 1, 8), (262, 3, 1, 1), (322, 4, 1, 32_000),
                (323, 4, 1, 32_000), (324, 4, 1, 200), (325, 4, 1, 1000),
            ],
            zlib.compress(bytes(10**7), 1),
        ),
        "tiles larger",
    ),
    "whose tags are all the whole file": (
        lambda: _tiff([(tag, 1, 10**6, 8) for tag in range(5000)], bytes(10**6)),
        "repeat the same bytes",
    ),
    "with orientation thirty million times": (
        lambda: _png(
            8,
            8,
            _chunk(b"eXIf", _tiff([(274, 3, 3 * 10**7, 26)], bytes(6 * 10**7))),
        ),
        "values in one tag",
    ),
    "of plain text that takes a minute": (
        lambda: b"P3 3000 3000 255\n" + b"0 " * (27 * 10**6),
        "plain text",
    ),
    "of a hundred thousand comments": (
        lambda: _gif((b"!\xfe\xff" + bytes(255) + b"\0") * 10**5),
        "extensions",
    ),
    # Of an animation the first frame is read, and no other looked at.
    "of a million frames in a GIF": (
        lambda: _gif(b",\0\0\0\0\1\0\1\0\0\2\2D\1\0" * 10**6),
        "[3, 8, 8]",
    ),
    "of a million frames in a PNG": (
        lambda: _png(8, 8, _chunk(b"acTL", struct.pack(">II", 10**6, 0)) + _FRAME)[:-12]
        + _FRAME * 10**6 + _chunk(b"IEND", b""),
        "[3, 8, 8]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_picture_that_is_a_bomb(isolated: Isolated, tmp_path: Path, bomb: str) -> None:
    """Refused at once, and before memory is taken for what the file claims."""
    made, reason = BOMBS[bomb]
    (tmp_path / "picture.png").write_bytes(made())
    seen = isolated.call(
        "from pathlib import Path\n"
        "from ecanet.data.decode import decode_image, read_file\n"
        "try:\n"
        "    print(decode_image(read_file(Path('picture.png'))).shape)\n"
        "except ValueError as error:\n"
        "    print(error)\n",
        tmp_path,
    )
    assert seen.code == 0, seen.err
    assert reason in seen.out
    assert seen.out.count("\n") == 1
    assert seen.seconds < 10
    assert seen.memory < 2**30


def _pictures(root: Path, *splits: str) -> Path:
    """Make a folder of two classes, and return the path for a picture that is to do harm."""
    for split in splits:
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (32, 32), (60 * i, 9, 9)).save(root / split / name / f"{i}.png")
    return root / splits[0] / "cat" / "bad.png"


EPS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    b"(../../proof) (w) file closefile\nshowpage\n%%EOF\n"
)
IN_MEMORY = ["compare", "--data", "data", "--out", "study", "--seeds", "1", "--epochs", "1"]
STREAMED = [
    "train", "data", "--out", "run", "--model", "eca_resnet18", "--epochs", "1", "--batch-size", "9",
    "--image-size", "32", "--eval-size", "32", "--device", "cpu", "--workers", "0", "--precision", "float32",
]  # fmt: skip


@pytest.mark.parametrize("command", [IN_MEMORY, STREAMED], ids=["in memory", "streamed"])
@pytest.mark.parametrize("content", [EPS, _png(1, 60_000)], ids=["a program", "a bomb"])
def test_a_picture_that_is_a_program_or_a_bomb_among_others(
    run: Run, tmp_path: Path, command: list[str], content: bytes
) -> None:
    """PIL starts Ghostscript for EPS, whatever the file's name: here nothing runs, and the file is named."""
    splits = ["train", "test"] if command is IN_MEMORY else ["train", "val"]
    bad = _pictures(tmp_path / "data", *splits)
    bad.write_bytes(content)
    seen = refused(run(*command))
    assert "bad.png cannot be decoded" in seen.err.splitlines()[-1]
    assert seen.started == []
    assert seen.wrote_outside(tmp_path, tmp_path.with_name(tmp_path.name + ".home")) == []
    assert seen.memory < 2**30


def test_a_picture_that_is_a_program_for_other_commands(isolated: Isolated, tmp_path: Path) -> None:
    """Prediction and ``export --images`` read images by this function."""
    (tmp_path / "bad.png").write_bytes(EPS)
    seen = isolated.call(
        "from pathlib import Path\n"
        "from ecanet.data.decode import read_image\n"
        "from ecanet.errors import UserError\n"
        "try:\n"
        "    read_image('bad.png')\n"
        "except UserError as error:\n"
        "    print(error)\n",
        tmp_path,
    )
    assert "bad.png cannot be read as an image" in seen.out
    assert seen.started == []

    root = Path(ecanet.__file__).parent
    files = root.rglob("*.py")
    opening = [path for path in files if re.search(r"\bImage\.open\b", path.read_text())]
    assert opening == [root / "data" / "decode.py"], "there is one way in for pictures"


@pytest.mark.parametrize("kind", ["a pipe", "a device", "20 GB"])
def test_a_picture_without_end(run: Run, tmp_path: Path, kind: str) -> None:
    bad = _pictures(tmp_path / "data", "train", "test")
    if kind == "a pipe":
        os.mkfifo(bad)
    elif kind == "a device":
        bad.symlink_to("/dev/zero")
    else:
        with bad.open("wb") as file:
            file.truncate(20 * 10**9)
    seen = refused(run(*IN_MEMORY, timeout=60), "bad.png cannot be decoded")
    assert seen.memory < 2**30


def _shard(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> None:
    """Write a shard of one good image and what is to do harm."""
    image = _png(8, 8)
    good = ((_member("good.png", size=len(image)), image), (_member("good.cls", size=1), b"0"))
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        for member, content in (*good, *members):
            file.write(member.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512))
        file.write(bytes(1024))


def _member(name: str, **fields: Any) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(member, field, value)
    return member


HOSTILE: dict[str, tuple[list[tuple[tarfile.TarInfo, bytes]], str]] = {
    "a label of 20 GB": ([(_member("a.cls", size=20 * 10**9), b"7")], "the label a.cls has 20,000,000,000"),
    "a label of a billion": ([(_member("a.cls", size=10), b"1000000000")], "a number from 0 to"),
    "a label below zero": ([(_member("a.cls", size=2), b"-1")], "a number from 0 to"),
    "a header of 20 GB": (
        [(_member("a", type=tarfile.XHDTYPE, size=20 * 10**9), b"9 path=a\n")],
        "a header claims",
    ),
    "a name of 20 GB": (
        [(_member("a", type=tarfile.GNUTYPE_LONGNAME, size=20 * 10**9), b"a")],
        "a header claims",
    ),
    "a size below zero": ([(_member("a.png", size=-(2**20)), b"")], "cannot be read as a shard"),
    "names of names without end": (
        [(_member("a", type=tarfile.GNUTYPE_LONGNAME, size=1), b"a")] * 5000,
        "cannot be read as a shard",
    ),
    "a name that leaves the folder": ([(_member("../../a.png", size=1), b"x")], "outside the shard"),
    "an absolute name": ([(_member("/etc/a.png", size=1), b"x")], "outside the shard"),
    "a link": (
        [(_member("a.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"), b"")],
        "a.png is a link",
    ),
    "a hard link": ([(_member("a.png", type=tarfile.LNKTYPE, linkname="good.png"), b"")], "is a link"),
    "a device": ([(_member("a.png", type=tarfile.CHRTYPE, devmajor=1, devminor=5), b"")], "is a link"),
    "a pipe": ([(_member("a.cls", type=tarfile.FIFOTYPE), b"")], "is a link"),
    "an image of 20 GB": (
        [(_member("a.cls", size=1), b"0"), (_member("a.png", size=20 * 10**9), b"x")],
        "unexpected end of data",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_shard_with_what_no_shard_holds(run: Run, tmp_path: Path, what: str) -> None:
    """Refused by the shard's name, and before memory is taken for what the headers claim."""
    members, reason = HOSTILE[what]
    for split in ("train", "val"):
        _shard(tmp_path / "data" / split / "0.tar", *(members if split == "train" else []))
    if "20 GB" in what and "image" not in what:
        with (tmp_path / "data/train/0.tar").open("r+b") as file:
            file.truncate(30 * 10**9)  # it really is there, and takes no space
    seen = refused(run(*STREAMED, timeout=60), "0.tar", reason)
    assert seen.wrote_outside(tmp_path, tmp_path.with_name(tmp_path.name + ".home")) == []
    assert seen.memory < 2**30
    assert seen.seconds < 10


def test_an_image_of_20_gb_in_a_shard(run: Run, tmp_path: Path) -> None:
    """It is really there, in a shard with holes: refused when it comes up, by its name."""
    member = _member("a.png", size=20 * 10**9)
    for split in ("train", "val"):
        shard = tmp_path / "data" / split / "0.tar"
        _shard(shard, (_member("a.cls", size=1), b"1"), (member, b"x"))
        with shard.open("r+b") as file:
            file.truncate(20 * 10**9 + 4608)
    seen = run(*STREAMED, "--batch-size", "1", timeout=60)
    refused(seen, "a.png cannot be decoded: it is 20,000 MB")
    assert seen.memory < 2**30


# ---- Annotations


def _annotated(folder: Path, part: str, **changes: object) -> Path:
    """Make two images of 64 x 48 with a box and an outline each, and change the first of ``part``."""
    (folder / "data/images").mkdir(parents=True)
    (folder / "data/annotations").mkdir()
    square = {"bbox": [5, 5, 20, 16], "segmentation": [[5, 5, 25, 5, 25, 21, 5, 21]]}
    content: dict[str, list[dict[str, object]]] = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 64, "height": 48} for n in (1, 2)],
        "annotations": [{"id": n, "image_id": n, "category_id": 1, **square} for n in (1, 2)],
        "categories": [{"id": 1, "name": "box"}],
    }
    content[part][0].update(changes)
    for number in (1, 2):
        Image.new("RGB", (64, 48)).save(folder / f"data/images/{number}.png")
    (folder / "data/annotations/instances_train.json").write_text(json.dumps(content))
    return folder / "data"


@pytest.fixture
def annotated(run: Run, tmp_path: Path) -> Check:
    """Train on such annotations: one line, at once, in little memory, and nothing is written."""

    def check(part: str, change: Callable[[Path], object] = Path.exists, **changes: object) -> None:
        data = _annotated(tmp_path, part, **changes)
        change(data / "annotations/instances_train.json")
        words = ("--eval-split", "train", "--batch-size", 2, "--out", "run")
        seen = refused(run("detect", "train", data, *words))
        assert seen.seconds < 10
        assert seen.memory < 1.2e9
        assert seen.wrote_outside(tmp_path.with_name(f"{tmp_path.name}.home")) == []

    return check


NAN, INFINITY = float("nan"), float("inf")
CHANGES: list[tuple[str, dict[str, Any]]] = [
    # A file of the user's outside the data would be read.
    *(("images", {"file_name": name})
      for name in ("../../secret.png", "/etc/hostname", "a/../../b.png", r"..\..\b.png", r"C:\b.png")),
    # Rasterizing a polygon takes memory in proportion to its outline: 12 GB for 1e9 pixels.
    *(("annotations", {"segmentation": [[0, 0, corner, 0, corner, corner]]})
      for corner in (NAN, INFINITY, -INFINITY, 1e9, 1e308, 10**400)),
    # Each corner is inside the image, and the outline is millions of pixels long.
    ("annotations", {"segmentation": [[0, 0, 64, 48] * 250_000]}),
    *(("annotations", {"bbox": [0, 0, number, 5]}) for number in (NAN, INFINITY, 1e9, 10**400)),
    # Run lengths of another mask would be written beyond the mask's memory.
    *(("annotations", {"segmentation": {"size": size, "counts": counts}})
      for size, counts in (
          ([48, 64], [10**12]), ([48, 64], [0, 4000]), ([48, 64], [-1, 3073]),
          ([10**6, 10**6], [10**12]), ([48, 64], "oooooooooo1"), ([48, 64], "1" * 100_000),
      )),
    # Masks of the size that is claimed would take a terabyte.
    ("images", {"width": 10**6, "height": 10**6}),
    # COCO's tools count in 64 bits, and use ids as keys.
    *(("images", {"id": value}) for value in (10**30, 1e30, NAN, "9" * 5000, [[[]]], {"a": 1}, True)),
]  # fmt: skip


@pytest.mark.parametrize(("part", "changes"), CHANGES, ids=lambda value: str(value)[:50])
def test_annotations_that_cannot_be(annotated: Check, part: str, changes: dict[str, Any]) -> None:
    annotated(part, **changes)


@pytest.mark.parametrize("text", ["[" * 1_000_000, '{"images":' * 100_000, "9" * 1_000_000])
def test_annotations_nested_without_end(annotated: Check, text: str) -> None:
    """Readers that call themselves for each level, or compute each digit, end in a crash."""
    annotated("images", lambda file: file.write_text(text))


def test_masks_that_fill_the_memory(annotated: Check) -> None:
    """Thousands of objects of one large image: each mask is small, all of them are not."""

    def many(file: Path) -> None:
        Image.new("1", (4000, 4000)).save(file.parents[1] / "images/1.png")
        content = json.loads(file.read_text())
        content["annotations"] = content["annotations"][:1] * 1000
        file.write_text(json.dumps(content))

    annotated("images", many, width=4000, height=4000)


# ---- Checkpoints that are structures without end


def _without_end() -> dict[str, object]:
    """Return checkpoints that hold themselves, or claim what they do not hold."""
    itself: dict[str, object] = {}
    itself["state_dict"] = itself
    everywhere: dict[str, object] = {}
    for name in ("state_dict", "model", "ema", "net", "module", "model_state", "model_ema"):
        everywhere[name] = {"state_dict": everywhere, "model": everywhere, "ema": everywhere}
    tuples: object = (1,)
    for _ in range(60):
        tuples = (tuples, tuples)
    place, one = torch.zeros(2, 1), torch.ones(1)
    sparse = torch.sparse_coo_tensor(place, one, (10**6,) * 2, check_invariants=True)
    return {
        "itself": itself,
        "everywhere": everywhere,
        "tuples": {"state_dict": {"w": torch.ones(1)}, "more": tuples},
        "expanded": {"conv1.weight": torch.zeros(1).expand(10**6, 10**6)},
        "meta": {"conv1.weight": torch.empty(10**6, 10**6, device="meta")},
        "sparse": {"conv1.weight": sparse},
    }


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", ["itself", "everywhere", "tuples", "expanded", "meta", "sparse"])
def test_a_checkpoint_without_end(convert: Check, tmp_path: Path, kind: str, zipped: bool) -> None:
    """Dicts in themselves, tuples of tuples of the same, a number that stands for a trillion."""
    file = tmp_path / "x.pth"
    torch.save(_without_end()[kind], file, _use_new_zipfile_serialization=zipped)
    convert("x.pth")


def _checkpoint(path: Path, value: bytes, zipped: bool) -> None:
    """Write a checkpoint whose value is made by these operations of pickle."""
    made = b"\x80\x02" + value + b"."
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x/data.pkl", made)
            archive.writestr("x/version", "3")
        return
    begin = (torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, {})
    path.write_bytes(b"".join(pickle.dumps(v, 2) for v in begin) + made + pickle.dumps([], 2))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_nested_without_end(convert: Check, tmp_path: Path, zipped: bool) -> None:
    depth = 100_000
    nested = b"}X\x05\0\0\0model" * depth + b"}" + b"s" * depth
    _checkpoint(tmp_path / "x.pth", nested, zipped)
    convert("x.pth", naming="no weights")


def test_a_checkpoint_that_unpacks_into_far_more_is_refused(convert: Check, tmp_path: Path) -> None:
    """A zip of zeros: 300 kB that would become 300 MB."""
    torch.save({"conv1.weight": torch.zeros(10)}, tmp_path / "small.pth")
    with (
        zipfile.ZipFile(tmp_path / "small.pth") as small,
        zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED) as big,
    ):
        for entry in small.infolist():
            with big.open(entry.filename, "w", force_zip64=True) as out:
                out.write(small.read(entry))
                if entry.filename.endswith("data/0"):
                    for _ in range(30):
                        out.write(bytes(10**7))
    convert("x.pth", naming="decompresses to more")


@pytest.mark.parametrize(
    "wanted",
    [
        *("posix.system", "builtins.eval", "__builtin__.exec", "subprocess.Popen"),
        *("timm.create_model", "torch.hub.load_state_dict_from_url", "torch.load"),
        *("ecanet.attention.registry.load_plugin", "numpy.load", "a_module_beside_it.run"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_that_wants_to_run_a_program_runs_nothing(
    convert: Check, tmp_path: Path, wanted: str, zipped: bool
) -> None:
    """It calls a function with a line of shell; what it calls is not even imported."""
    (tmp_path / "a_module_beside_it.py").write_text("open('proof', 'w')")
    module, _, name = wanted.rpartition(".")
    call = f"c{module}\n{name}\n".encode() + b"X\x0b\0\0\0touch proof\x85R"
    _checkpoint(tmp_path / "x.pth", b"}X\x06\0\0\0beside" + call + b"s", zipped)
    convert("x.pth", naming="refused")
    assert not (tmp_path / "proof").exists()


# ---- YAML, sweeps and settings


def test_a_recipe_imports_nothing(run: Run, tmp_path: Path) -> None:
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
        others = (["train", "x"], ["detect", "train", "x"], ["sweep", "x"])
        for command in (["compare"], *(others if name == "text" else ())):
            refused(run(*command, "--recipe", f"{name}.yaml", env={"PYTHONPATH": "."}))
            assert not (tmp_path / "ran").exists()
    refused(run("compare", "--optimizer", "evil.Thing"))
    assert not (tmp_path / "ran").exists()


def test_yaml_that_is_small_to_write_and_endless_to_read(run: Run, tmp_path: Path) -> None:
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
            seen = refused(run(*command, name, timeout=20))
            assert seen.seconds < 10
            assert seen.memory < 2**30, (name, command)
            assert len(seen.err) < 5000


def test_a_sweep_without_end(run: Run, tmp_path: Path) -> None:
    """Grids of 10^12 points, steps that no float can count, bounds that are no numbers."""
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
        seen = refused(run("sweep", "sweep.yaml", "--out", "out", timeout=20))
        assert seen.seconds < 10
        assert not (tmp_path / "out").exists()


# ---- Names shown in a terminal

_STEERING = "\x1b]0;title\x07\x1b[2J\r\u202egnp.exe\x9b31m\nall is well"


def test_a_files_name_does_not_steer_the_terminal(run: Run, tmp_path: Path) -> None:
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
            seen = refused(run(*command, env=env))
            shown = seen.out + seen.err
            assert "\\x1b" in shown, command
            assert not set(shown) & set("\x1b\x07\r\x9b\u202e"), command
            assert "\nall is well" not in shown, command


def test_a_name_that_is_no_utf8_is_shown(run: Run, tmp_path: Path) -> None:
    """Bytes of a Latin file system: an escape each, in every encoding of the terminal."""
    name = os.fsdecode(b"caf\xe9")
    for encoding in ("utf-8", "ascii", "latin-1"):
        refused(run("report", name, env={"PYTHONIOENCODING": encoding, "LANG": "C"}), "caf\\udce9")


def test_a_studys_name_is_no_markup(isolated: Isolated, tmp_path: Path) -> None:
    """``[/red]`` and escapes in a cell of a table are text, on a terminal as in a file."""
    code = (
        "from rich.table import Table; from rich.text import Text\n"
        "from ecanet.cli.output import console\n"
        f"table = Table('study'); table.add_row('[/red] :smile:' + {_STEERING!r})\n"
        f"console().print(table); console().print(Text({_STEERING!r}, style='red'))\n"
    )
    for env in ({}, {"FORCE_COLOR": "1"}):
        seen = done(isolated.call(f"import os; os.environ.update({env!r})\n{code}", tmp_path))
        assert "[/red] :smile:\\x1b]0;title" in seen.out
        assert not set(seen.out) & set("\x07\r\x9b\u202e")
        assert "\x1b[2J" not in seen.out
