"""Attacks: files, folders and addresses that were made to do harm. None gets in.

Each test is one attack. The commands run as processes of their own whose writes, requests and programs
are recorded (``isolated.py``).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from isolated import Isolated
from PIL import Image

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


@contextlib.contextmanager
def _server() -> Iterator[tuple[str, list[str]]]:
    """Serve bytes on every path; yield the address, and the list of what is asked for."""
    import http.server
    import threading

    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"bytes of another's choice")

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/payload", asked
        server.shutdown()


def _weights(path: Path, **metadata: str) -> Path:
    """Write a sound ResNet-18 of ours whose metadata say what they should not."""
    import torch
    from safetensors.torch import save_file

    from ecanet.models import create_model

    tensors = create_model("resnet18", num_classes=2).half().state_dict()
    said = {"ecanet_format": "1", "model": "resnet18", "attention": "none", "num_classes": "2"}
    save_file({n: torch.clone(t) for n, t in tensors.items()}, path, {**said, **metadata})
    return path


def _detector(path: Path, told: dict[str, object], **metadata: str) -> Path:
    """Write a sound RetinaNet of ours whose metadata say what they should not."""
    import safetensors

    from ecanet.detection import create_detector, save_detector
    from ecanet.detection.weights import DETECTOR_KEY

    detector = create_detector("retinanet", "resnet18", 2, width=16, min_size=64, max_size=64)
    save_detector(path, detector)
    with safetensors.safe_open(path, "pt") as file:
        said = file.metadata()
    said[DETECTOR_KEY] = json.dumps({**json.loads(said[DETECTOR_KEY]), **told})
    safetensors.torch.save_file(detector.state_dict(), path, {**said, **metadata})
    return path


def _refused(isolated: Isolated, folder: Path, *arguments: object, naming: str = "") -> None:
    """Assert that a command refuses a file in one line, and touches and fetches nothing."""
    seen = isolated.run(*arguments, folder=folder)
    assert seen.is_one_line(), seen.err or seen.out
    assert naming in seen.err
    assert len(seen.err) < 1500
    assert seen.wrote_outside() == []
    assert seen.contacted == []
    assert seen.started == []
    assert seen.seconds < 10
    assert seen.memory < 2 * 2**30, "the imports are 600 MB of it"


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
    isolated: Isolated, tmp_path: Path, command: str, args: dict[str, object]
) -> None:
    """The arguments that the metadata give to the model's builder would download a file of their own."""
    with _server() as (url, asked):
        told = json.dumps(args).replace("URL", url)
        _weights(tmp_path / "x.safetensors", model_args=told)
        (tmp_path / "data" / "val" / "a").mkdir(parents=True)
        (tmp_path / "data" / "val" / "b").mkdir()
        for name in "ab":
            Image.new("RGB", (32, 32)).save(tmp_path / "data" / "val" / name / "1.png")
        words = {
            "convert": ["convert", "x.safetensors", "y.safetensors"],
            "evaluate": ["evaluate", "data", "--weights", "x.safetensors", "--device", "cpu"],
            "export": ["export", "x.safetensors"],
        }[command]
        _refused(isolated, tmp_path, *words, naming=next(iter(args)))
        assert asked == []


@pytest.mark.parametrize(
    "name",
    [
        "hf-hub:someone/something",
        "hf_hub:someone/something",
        "local-dir:/tmp",
        "http://127.0.0.1/x",
        "../../x",
        "torchvision/../x",
        "resnet18.hf-hub:x",
        "resnet18.no_such_tag",
        "x" * 100_000,
        "\x1b[31mred",
    ],
    ids=lambda name: name[:30].replace("\x1b", "ESC"),
)
def test_weights_whose_model_is_an_address_are_refused(
    isolated: Isolated, tmp_path: Path, name: str
) -> None:
    """timm fetches a model whose name begins with hf-hub: from the internet."""
    import torch
    from safetensors.torch import save_file

    said = {"ecanet_format": "1", "model": name}
    save_file({"some.weight": torch.ones(4, 4)}, tmp_path / "x.safetensors", said)
    _refused(isolated, tmp_path, "convert", "x.safetensors", "y.safetensors")


@pytest.mark.parametrize(
    "said",
    [
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
def test_weights_that_claim_what_they_do_not_hold_are_refused(
    isolated: Isolated, tmp_path: Path, said: dict[str, str]
) -> None:
    """A claim of a billion classes would take terabytes; a nested one, the stack."""
    _weights(tmp_path / "x.safetensors", **said)
    _refused(isolated, tmp_path, "convert", "x.safetensors", "y.safetensors")


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
    isolated: Isolated, tmp_path: Path, told: dict[str, object]
) -> None:
    """The same for the arguments of detectors."""
    _detector(tmp_path / "x.safetensors", told)
    Image.new("RGB", (32, 32)).save(tmp_path / "1.png")
    words = ["detect", "predict", "1.png", "--weights", "x.safetensors", "--out", "out"]
    _refused(isolated, tmp_path, *words, "--device", "cpu", naming=next(iter(told)))


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
def test_a_detector_whose_metadata_are_malformed_is_refused(
    isolated: Isolated, tmp_path: Path, key: str, value: str
) -> None:
    """JSON that is none, of another type, or nested without end."""
    _detector(tmp_path / "x.safetensors", {}, **{key: value})
    Image.new("RGB", (32, 32)).save(tmp_path / "1.png")
    words = ["detect", "predict", "1.png", "--weights", "x.safetensors", "--out", "out"]
    _refused(isolated, tmp_path, *words, "--device", "cpu")


def test_a_hub_folders_config_is_not_acted_on(isolated: Isolated, tmp_path: Path) -> None:
    """timm would take its config.json for the model's builder; we read the weights alone."""
    with _server() as (url, asked):
        (tmp_path / "hub").mkdir()
        _weights(tmp_path / "hub" / "model.safetensors")
        config = {"architecture": "x", "pretrained_cfg": {"url": url}, "model_args": {"a": url}}
        (tmp_path / "hub" / "config.json").write_text(json.dumps(config))
        seen = isolated.run("convert", "hub", "y.safetensors", folder=tmp_path)
        assert seen.code == 0, seen.err
        assert seen.wrote_outside(tmp_path) == []
        assert asked == seen.contacted == []


@pytest.mark.parametrize(
    "shapes",
    [
        {f"layer{n}.{n}.conv1.weight": (1,) for n in range(30_000)},
        {f"layer1.{n}.attention.conv.weight": (1,) for n in range(200_000)},
        {"module." * 100_000 + "conv1.weight": (1,)},
        {".".join("a" * 300_000): (1,)},
        {"layer1." + "9" * 5000 + ".conv1.weight": (1,)},
        {"conv1.weight": (0, 10**15), "fc.weight": (10**15, 0)},
    ],
    ids=["stages", "blocks", "prefixes", "dots", "digits", "empty"],
)
def test_names_and_shapes_without_end_are_refused(
    isolated: Isolated, tmp_path: Path, shapes: dict[str, tuple[int, ...]]
) -> None:
    """What the tensors imply is bounded too: a network of a million layers by its names alone."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 4 * int(0 not in shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(end))
    _refused(isolated, tmp_path, "convert", "x.safetensors", "y.safetensors")


def test_a_header_that_claims_terabytes_is_refused(isolated: Isolated, tmp_path: Path) -> None:
    """Shapes and lengths beyond the end of the file."""
    tensor = {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}
    text = json.dumps({"conv1.weight": tensor}).encode()
    for length in (len(text), 2**40, 2**63):
        (tmp_path / "x.safetensors").write_bytes(length.to_bytes(8, "little") + text)
        _refused(isolated, tmp_path, "convert", "x.safetensors", "y.safetensors")


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


def _study(folder: Path, **plan: object) -> Path:
    """Make a study of one run on digits, as ``compare`` does, and put the run into its queue."""
    from ecanet.config import RunSettings
    from ecanet.data import load_data
    from ecanet.experiments.location import Location
    from ecanet.experiments.plan import ComparePlan
    from ecanet.experiments.study import create_study, load_study

    settings = RunSettings(device="cpu", precision="float32", compile="off", epochs=1)
    values: dict[str, object] = {"attention": ["none"], "seeds": [0], "plugin": [], **plan}
    made = ComparePlan(settings, 1, load_data("digits").fingerprint, [], **values)  # type: ignore[arg-type]
    create_study(Location(folder), made, [], {"device": "x"})
    study = load_study(folder)
    study.queue.enqueue(made.runs())
    study.queue.engine.dispose()
    return folder


def _change(folder: Path, statement: str, *values: object) -> None:
    """Change a study's database behind its back."""
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(folder / "study.db")) as database, database:
        assert database.execute(statement, values).rowcount


def _content(folder: Path) -> dict[str, bytes | None]:
    """Return all that is in a folder: files by their bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


READING = ("report", "study status", "study show", "study watch --once")
WRITING = ("worker --jobs 1 --no-wait", "study cancel", "study retry")


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
    import json

    from ecanet.experiments.study import load_study, place

    folder = _study(tmp_path / "study")
    if isinstance(name, str):
        name = name.format(outside=tmp_path / "outside")
    if under_way:
        study = load_study(folder)
        study.queue.claim({"place": place(study)})
        study.queue.engine.dispose()
    changing = "UPDATE trial_user_attributes SET value_json = ? WHERE key = 'run'"
    _change(folder, changing, json.dumps(name))
    before = set(tmp_path.iterdir())
    seen = isolated.run("worker", folder, "--jobs", 1, "--no-wait", folder=folder)
    assert seen.is_one_line(), seen.err
    assert "name" in seen.err
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
    seen = isolated.run(*command, folder, folder=folder)
    assert seen.is_one_line(), seen.err
    assert "link" in seen.err
    assert outside.read_text() == "mine" if outside.is_file() else not list(outside.iterdir())


class _Listener:
    """A server on this machine that notes what is said to it, and refuses it as PostgreSQL does."""

    def __init__(self) -> None:
        import socket
        import threading

        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.said: list[bytes] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        from contextlib import suppress

        with suppress(OSError):
            while True:
                connection, _ = self.socket.accept()
                with suppress(OSError), connection:
                    self.said.append(connection.recv(1000))
                    connection.sendall(b"N")  # no encryption
                    self.said.append(connection.recv(1000))
                    connection.sendall(b"E\0\0\0\x17SFATAL\0C28000\0Mno\0\0")


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
    isolated: Isolated, tmp_path: Path, address: str
) -> None:
    """No connection even: the host is one that this user never gave as ``--storage``."""
    import json

    listener, folder = _Listener(), tmp_path / "study"
    folder.mkdir()
    pointer = {"storage": address.format(port=listener.port), "study": "study"}
    (folder / "study.json").write_text(json.dumps(pointer))
    env = {"PGPASSWORD": "hunter2hunter2", "XDG_CONFIG_HOME": str(tmp_path / "config")}
    commands = (*READING, *WRITING, "compare --out") if "localhost" in address else READING[:1]
    for command in commands:
        words = command.split()
        at = 2 if words[0] == "study" else len(words)
        seen = isolated.run(*words[:at], folder, *words[at:], folder=folder, env=env)
        assert seen.is_one_line(), seen.err
        assert "--storage" in seen.err
    seen = isolated.run("study", "list", folder, folder=folder, env=env)
    assert seen.code == 0
    assert "--storage" in seen.out
    assert listener.said == []
    assert list(folder.iterdir()) == [folder / "study.json"]
    listener.socket.close()


def test_a_host_that_the_user_has_named_once_is_known(isolated: Isolated, tmp_path: Path) -> None:
    """Else the test above would pass where nothing ever connects."""
    import json

    pytest.importorskip("psycopg")
    listener, folder = _Listener(), tmp_path / "study"
    folder.mkdir()
    address = f"postgresql://me@127.0.0.1:{listener.port}/x"
    env = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    seen = isolated.run("study", "list", "--storage", address, folder=folder, env=env)
    assert seen.is_one_line(), seen.err
    assert len(listener.said) > 0
    (folder / "study.json").write_text(json.dumps({"storage": address, "study": "study"}))
    before = len(listener.said)
    assert isolated.run("report", folder, folder=folder, env=env).is_one_line()
    assert len(listener.said) > before
    listener.socket.close()


@pytest.mark.parametrize("kind", ["plain", "logged", "same names", "another Optuna", "no database"])
def test_another_programs_database_is_read_and_not_written(
    isolated: Isolated, tmp_path: Path, kind: str
) -> None:
    """Whatever the command: no table is made in it, no byte changed, no file left beside it."""
    import sqlite3

    import optuna

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
    for command in (*READING, *WRITING, "study list", "compare --epochs 1 --out"):
        words = command.split()
        at = 2 if words[0] == "study" else len(words)
        seen = isolated.run(*words[:at], folder, *words[at:], folder=tmp_path)
        assert seen.is_one_line() or (words[1] == "list" and seen.code == 0), seen.err
        assert _content(folder) == before, command
    database.close()


def test_who_reads_a_study_leaves_it_as_it_was(isolated: Isolated, tmp_path: Path) -> None:
    """No byte, no time of change, no log beside it; so a study that is read-only can be read."""
    folder = _study(tmp_path / "study")
    before, changed = _content(folder), (folder / "study.db").stat().st_mtime_ns
    for command in (*READING[1:], "study list"):
        words = command.split()
        seen = isolated.run(*words[:2], folder, *words[2:], folder=tmp_path)
        assert seen.code == 0, seen.err
        assert seen.wrote_outside() == [f"sqlite:file:{folder}/study.db?immutable=1"], command
    seen = isolated.run("report", folder, folder=tmp_path)
    assert seen.code == 0, seen.err
    for name in list(before):
        assert _content(folder)[name] == before[name]
    assert {path.name for path in folder.iterdir()} == {*before, "report"}
    assert (folder / "study.db").stat().st_mtime_ns == changed


@pytest.mark.parametrize("kind", ["pipe", "link", "device", "folder"])
def test_a_study_that_is_no_file_is_refused(isolated: Isolated, tmp_path: Path, kind: str) -> None:
    import os

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
        seen = isolated.run(*command.split(), folder, folder=tmp_path, timeout=60)
        assert seen.is_one_line(), seen.err
        assert "study" in seen.err
    assert [path.name for path in folder.iterdir()] == ["study.db"]


def _plugin(folder: Path) -> Path:
    plugin = folder / "theirs.py"
    plugin.write_text("open(__file__ + '.ran', 'w')\n")
    return plugin


def test_a_plugin_that_a_study_names_runs_only_where_the_user_says_so(
    isolated: Isolated, tmp_path: Path
) -> None:
    plugin = _plugin(tmp_path)
    folder = _study(tmp_path / "study", plugin=[str(plugin)])
    for command in (
        "worker --jobs 1",
        "worker --jobs 2",
        "worker --plugin other.py",
        "compare --device cpu --precision float32 --epochs 1 --seeds 1 --attention none --out",
        *READING,
    ):
        words = command.split()
        at = 2 if words[0] == "study" else len(words)
        seen = isolated.run(*words[:at], folder, *words[at:], folder=tmp_path)
        if command in READING:
            assert seen.code == 0, seen.err
        else:
            assert seen.is_one_line(), seen.err
            assert "--trust-plugins" in seen.err
        assert not plugin.with_name("theirs.py.ran").exists(), command
    for trust in ("--trust-plugins", f"--plugin={plugin}"):
        isolated.run("worker", folder, "--jobs", 1, "--data", "nowhere", trust, folder=tmp_path)
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
def test_a_plugin_that_a_recipe_names_runs_only_where_the_user_says_so(
    isolated: Isolated, tmp_path: Path, command: str
) -> None:
    plugin, recipe = _plugin(tmp_path), tmp_path / "recipe.yaml"
    for more in ("", "trust_plugins: true\n"):
        recipe.write_text(f"plugin: [{plugin}]\n{more}")
        seen = isolated.run(*command.split(), "--recipe", recipe, folder=tmp_path)
        assert seen.is_one_line(), seen.err
        assert "--trust-plugins" in seen.err
        assert not plugin.with_name("theirs.py.ran").exists()
    recipe.write_text(f"plugin: [{plugin}]\nattention: [nonesuch]\n")
    seen = isolated.run("compare", "--recipe", recipe, "--trust-plugins", folder=tmp_path)
    assert seen.is_one_line(), seen.err
    assert plugin.with_name("theirs.py.ran").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"threads": 10**9}, {"threads": "2"}, {"seeds": list(range(1001)), "attention": ["none"] * 1000},
        {"seeds": ["0"]}, {"attention": 5}, {"attention": ["x" * 300]}, {"metric": "__class__"},
        {"plugin": "abc"}, {"kind": "sweep"}, {"kind": "os:system"}, {"settings": []}, {"more": 1},
        {"settings": {"epochs": 1e9}}, {"settings": {"epochs": 0}}, {"settings": {"batch_size": True}},
        {"settings": {"optimizer": {"class_path": "os.system"}}}, {"settings": {"device": None}},
    ],
)  # fmt: skip
def test_a_plan_whose_values_no_command_could_give_is_refused(
    isolated: Isolated, tmp_path: Path, change: dict[str, object]
) -> None:
    """What stands in a study's database is checked as what stands on the command line."""
    import json

    from ecanet.experiments.study import load_study

    folder = _study(tmp_path / "study")
    plan = load_study(folder).plan().to_dict()
    settings = change.get("settings")
    if isinstance(settings, dict):
        change = {"settings": {**plan["settings"], **settings}}
    changing = "UPDATE study_user_attributes SET value_json = ? WHERE key = 'plan'"
    _change(folder, changing, json.dumps({**plan, **change}))
    for command in ("worker", "report"):
        seen = isolated.run(command, folder, folder=folder)
        assert seen.is_one_line(), seen.err
        assert "the study" in seen.err
    seen = isolated.run("study", "list", folder, folder=tmp_path)
    assert seen.code == 0
    assert "the study" in seen.out


def test_a_report_shows_what_a_study_says_and_runs_none_of_it(
    isolated: Isolated, tmp_path: Path
) -> None:
    """Scripts among names and errors in its page, formulas in its tables."""
    import csv
    import json

    from optuna.trial import TrialState

    from ecanet.experiments.study import load_study
    from ecanet.record import EpochMetrics, FinalMetrics, Record

    script = "x</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    folder = _study(tmp_path / "study", seeds=[0, 1])
    study = load_study(folder)
    record = Record(script, 0, {}, {"device": script}, [EpochMetrics(0, 1, 1, 1, 1, 1, 1)])
    record.final = FinalMetrics(0.5, 0.5, 0.5, 0, 1.0)
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
    seen = isolated.run("report", folder, folder=tmp_path)
    assert seen.code == 0, seen.err
    page = (folder / "report/index.html").read_text()
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>alert(1)" not in page
    assert "<img src=x" not in page
    for file in (folder / "report").glob("*.csv"):
        for row in csv.reader(file.open(newline="")):
            assert not [cell for cell in row if cell.startswith(("=", "@"))]
    json.loads((folder / "report/report.json").read_text())


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
def test_an_addresss_password_is_in_no_line_and_no_file(
    isolated: Isolated, tmp_path: Path, address: str
) -> None:
    """However it is written, and whether the address can be read or not."""
    address = address.replace("{}", SECRET)
    for command in ("study list", "worker --study x", "compare --epochs 1 --out x"):
        seen = isolated.run(*command.split(), "--storage", address, folder=tmp_path)
        assert seen.is_one_line(), seen.err
        assert SECRET not in seen.out + seen.err
    for path in (tmp_path.with_name(tmp_path.name + ".home"), tmp_path):
        assert not [
            name for name, data in _content(path).items() if SECRET.encode() in (data or b"")
        ]


def test_workers_get_a_password_where_ps_does_not_show_it(tmp_path: Path) -> None:
    import json

    from ecanet.experiments.location import locate, write_pointer

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
def test_a_mirrors_password_is_in_no_line(isolated: Isolated, tmp_path: Path, mirror: str) -> None:
    import http.server
    import threading

    class Nothing(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Nothing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = mirror.replace("{port}", str(server.server_port)).replace("{}", SECRET)
    for flags, env in ((["--mirror", address], {}), ([], {"ECANET_MIRROR": address})):
        seen = isolated.run("download", "cifar10", *flags, folder=tmp_path, env=env)
        assert seen.is_one_line(), seen.err
        assert SECRET not in seen.out + seen.err
    server.shutdown()


def test_keys_of_the_environment_are_in_no_line(isolated: Isolated, tmp_path: Path) -> None:
    """Whatever quotes them, an error of a library for one."""
    for name in ("WANDB_API_KEY", "PGPASSWORD", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        seen = isolated.run("report", f"at-{SECRET}", folder=tmp_path, env={name: SECRET})
        assert seen.is_one_line(), seen.err
        assert "at-***" in seen.err


# ---- Images and shards


# ---- Annotations


# ---- Checkpoints that are structures without end


# ---- YAML, sweeps and settings


# ---- Names shown in a terminal
