"""Downloads from a real server that misbehaves: a whole file in the end, or one line and nothing."""

from __future__ import annotations

import copy
import functools
import hashlib
import socketserver
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.commands import Refuse, Run

import ecanet.names
from ecanet.data import download as module
from ecanet.data.download import Source, download, sources
from ecanet.errors import UserError

CONTENT = bytes(range(256)) * 2000
HALF = len(CONTENT) // 2


class Server(ThreadingHTTPServer):
    """Serves CONTENT under any name; what goes wrong is set by the test."""

    def handle_error(self, request: object, client_address: object) -> None:
        """Be silent about clients that hang up: the line would stand in another test's output."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.ranges = True  # whether parts can be asked for
        self.cuts: list[int] = []  # bytes after which the next answers break off
        self.stalls = 0  # answers that go silent halfway
        self.damaged = 0  # answers with a wrong byte
        self.statuses: list[int] = []  # of the next answers
        self.wrong_part = 0  # answers to a range that are of another range
        self.html = False
        self.etag = '"one"'
        self.lie = 0  # added to Content-Length
        self.asked: list[str | None] = []  # the Range of each request

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        server, asked = self.server, self.headers["Range"]
        server.asked.append(asked)
        if server.statuses:
            self.send_error(server.statuses.pop(0))
            return
        content, start = server.content, 0
        if asked and server.ranges and self.headers.get("If-Range", server.etag) == server.etag:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if server.wrong_part:
                server.wrong_part -= 1
                start = 1
        body = content[start:]
        if server.damaged:
            server.damaged -= 1
            body = bytes([body[0] ^ 1]) + body[1:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(body) + server.lie))
        self.send_header("Content-Type", "text/html" if server.html else "application/zip")
        self.send_header("ETag", server.etag)
        self.end_headers()
        if server.stalls:
            server.stalls -= 1
            self.wfile.write(body[:HALF])
            self.wfile.flush()
            time.sleep(1)
            return
        self.wfile.write(body[: server.cuts.pop(0)] if server.cuts else body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Return a server whose files are the whole of what can be downloaded."""
    md5 = hashlib.md5(CONTENT).hexdigest()
    known = {
        "data": Source("data.zip", "http://192.0.2.1/data.zip", size=len(CONTENT), md5=md5),
        "weights": Source("weights.pth", drive="some_id"),
        "one": Source("one.zip", "http://192.0.2.1/one", md5=md5, group="both"),
        "two": Source("two.zip", "http://192.0.2.1/two", md5=md5, group="both"),
    }
    entries = {
        name: {key: value for key, value in asdict(one).items() if value}
        for name, one in known.items()
    }
    for home in (module, ecanet.names):
        monkeypatch.setattr(home, "downloads", lambda: entries)
    monkeypatch.setattr(module, "PAUSE", 0.01)
    monkeypatch.setattr(module, "SILENCE", 0.3)
    monkeypatch.setattr("pooch.core.time", SimpleNamespace(sleep=lambda _: None))
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setenv("ECANET_MIRROR", server.url)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def fetch(name: str, folder: Path) -> Path:
    (path,) = download(name, folder)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def failure(name: str, folder: Path) -> str:
    """Return the one line that a download ends with, by way of the command line."""
    with pytest.raises(UserError) as caught:
        download(name, folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_is_fetched_once(server: Server, tmp_path: Path) -> None:
    path = fetch("data", tmp_path / "new")
    assert path == tmp_path / "new" / "data.zip"
    assert path.read_bytes() == CONTENT
    assert path.stat().st_mode & 0o044, "others may read it"
    assert fetch("data", tmp_path / "new") == path
    assert server.asked == [None]
    assert names(tmp_path / "new") == ["data.zip"]


def test_a_group_is_all_its_files(server: Server, tmp_path: Path) -> None:
    paths = download("both", tmp_path)
    assert [path.name for path in paths] == ["one.zip", "two.zip"]


def test_a_cut_transfer_is_resumed(server: Server, tmp_path: Path) -> None:
    server.cuts = [HALF, 1000, 0, 1000]
    assert fetch("data", tmp_path).read_bytes() == CONTENT
    assert server.asked[0] is None
    assert all(asked and asked.startswith("bytes=") for asked in server.asked[1:])
    assert names(tmp_path) == ["data.zip"]


def test_a_later_run_resumes_too(server: Server, tmp_path: Path) -> None:
    server.cuts = [HALF] + [0] * 20
    assert "interrupted, 5 times in a row" in failure("data", tmp_path)
    assert names(tmp_path) == ["data.zip.part"], "never a part under the file's own name"
    server.cuts, server.asked = [], []
    assert fetch("data", tmp_path).read_bytes() == CONTENT
    assert server.asked[0] is not None


@pytest.mark.parametrize("part", [CONTENT, b"x" * HALF, b"x" * (len(CONTENT) + 5)])
def test_a_part_is_completed_or_replaced(server: Server, tmp_path: Path, part: bytes) -> None:
    (tmp_path / "data.zip.part").write_bytes(part)
    assert fetch("data", tmp_path).read_bytes() == CONTENT
    assert names(tmp_path) == ["data.zip"]


@pytest.mark.parametrize(
    ("faults", "requests"),
    [
        ({"cuts": [HALF], "ranges": False}, 2),
        ({"cuts": [HALF], "wrong_part": 1}, 3),
        ({"stalls": 1}, 2),
        ({"damaged": 1}, 2),
        ({"statuses": [503, 429]}, 3),
    ],
)
def test_temporary_faults_are_overcome(
    server: Server, tmp_path: Path, faults: dict[str, Any], requests: int
) -> None:
    vars(server).update(copy.deepcopy(faults))
    assert fetch("data", tmp_path).read_bytes() == CONTENT
    assert len(server.asked) == requests


def test_a_file_that_changes_in_between_starts_over(server: Server, tmp_path: Path) -> None:
    class Changing(list):
        def append(self, asked: object) -> None:
            if asked is not None and server.etag == '"one"':
                server.content, server.etag = CONTENT[::-1], '"two"'
            super().append(asked)

    server.asked, server.cuts = Changing(), [HALF]
    assert fetch("weights", tmp_path).read_bytes() == CONTENT[::-1], "not half of each"


@pytest.mark.parametrize(
    ("name", "faults", "says", "kept"),
    [
        ("data", {"ranges": False, "cuts": [HALF] * 50}, "interrupted, 5 times in a row", ["data.zip.part"]),
        ("data", {"ranges": False, "stalls": 20}, "no data arrived for 0.1 s", ["data.zip.part"]),
        ("data", {"damaged": 99}, "md5 is not the published one", []),
        ("data", {"statuses": [404]}, "responded 404", []),
        ("data", {"statuses": [403]}, "responded 403", []),
        ("data", {"statuses": [503] * 20}, "responded 503", []),
        ("weights", {"html": True}, "web page", []),
        ("data", {"content": CONTENT + b"more"}, f"the published file {len(CONTENT)}", []),
        ("weights", {"lie": 10, "ranges": False}, "interrupted, 5 times", ["weights.pth.part"]),
    ],
)  # fmt: skip
def test_lasting_faults_are_one_line(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    faults: dict[str, Any],
    says: str,
    kept: list[str],
) -> None:
    monkeypatch.setattr(module, "SILENCE", 0.1)
    vars(server).update(copy.deepcopy(faults))
    assert says in failure(name, tmp_path)
    assert names(tmp_path) == kept


def test_a_damaged_file_is_replaced_only_by_a_good_one(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.zip").write_bytes(b"old")
    server.damaged = 99
    failure("data", tmp_path)
    assert (tmp_path / "data.zip").read_bytes() == b"old"
    server.damaged = 0
    assert fetch("data", tmp_path).read_bytes() == CONTENT


def test_without_a_published_hash_the_first_one_is_recorded(server: Server, tmp_path: Path) -> None:
    server.cuts = [HALF]
    assert fetch("weights", tmp_path).read_bytes() == CONTENT
    digest, name = (tmp_path / "weights.pth.sha256").read_text().split()
    assert (digest, name) == (hashlib.sha256(CONTENT).hexdigest(), "weights.pth")
    (tmp_path / "weights.pth").write_bytes(b"damaged")
    server.content = CONTENT + b"more"
    assert "that of the first download" in failure("weights", tmp_path)
    server.content = CONTENT
    assert fetch("weights", tmp_path).read_bytes() == CONTENT


def test_two_at_once_fetch_it_once(server: Server, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(functools.partial(fetch, "data"), [tmp_path] * 4))
    assert [path.read_bytes() for path in paths] == [CONTENT] * 4
    assert server.asked == [None]


def test_no_server_is_one_line(server: Server, tmp_path: Path) -> None:
    with socketserver.TCPServer(("127.0.0.1", 0), Handler) as unused:
        port = unused.server_address[1]
    with pytest.raises(UserError, match=f"127.0.0.1:{port}/data.zip cannot be fetched"):
        download("data", tmp_path, mirror=f"http://127.0.0.1:{port}")
    with pytest.raises(UserError, match="not a URL"):
        download("data", tmp_path, mirror="nonsense")


def test_no_room_is_said(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = module.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    assert "has 0.0 GB free" in failure("data", tmp_path)
    assert names(tmp_path) == []


def test_a_file_in_place_of_the_folder_is_one_line(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot be made" in failure("data", tmp_path / "file")


def test_the_commands_output(server: Server, tmp_path: Path, run: Run, refuse: Refuse) -> None:
    out = tmp_path / "here"
    assert run("download", "data", "--out", out) == (0, f"{out}/data.zip\n", "")
    server.statuses = [404]
    refuse("responded 404", "download", "one", "--out", out, "--mirror", server.url)
    refuse("Did you mean data", "download", "dota")


def test_the_list_is_sound() -> None:
    known = sources()
    files = [source.file for source in known.values()]
    assert len(set(files)) == len(files)
    for name, source in known.items():
        assert bool(source.url) != bool(source.drive), name
        assert source.address("http://mirror/") == f"http://mirror/{source.file}"
        assert source.address(None).startswith("http"), name
        assert bool(source.md5) == bool(source.size) == bool(source.url), name
    assert known["eca_resnet50"].address(None).count("1670rce333c_lyMWFzBlNZoVUvtxbCF_U") == 1
    assert known["cifar10"].md5 == "c58f30108f718f92721af3b95e74349a"
