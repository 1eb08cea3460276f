"""A server that answers as the Hugging Face Hub does: repositories to read, to create and to upload to."""

from __future__ import annotations

import base64
import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

COMMITS = {"main": "a" * 40, "v1": "b" * 40}


class Hub(ThreadingHTTPServer):
    """Serves the folders in ``root`` as repositories, each with the same files at all revisions."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = root
        self.token: str | None = None
        """What may write."""
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        pass


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        if self.path.startswith("/api/"):
            # Of what is asked before an upload, nothing is there.
            self.fail(401, "RepoNotFound")
            return
        _, owner, name, _, revision, file = self.path.split("/")
        commit = COMMITS.get(revision, revision if revision in COMMITS.values() else None)
        path = self.server.root / owner / name / file
        if owner == "broken":
            self.wfile.write(b"no HTTP\r\n\r\n")
        elif owner == "gated":
            self.fail(403, "GatedRepo")
        elif not path.parent.is_dir():
            self.fail(401, "RepoNotFound")
        elif commit is None:
            self.fail(404, "RevisionNotFound")
        elif not path.is_file():
            self.fail(404, "EntryNotFound", commit)
        else:
            content = path.read_bytes()
            self.send_response(200)
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

    def do_POST(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self.fail(401, "Unauthorized")
            return
        root, place = self.server.root, self.path.split("/")
        if self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif self.path == "/api/repos/create":
            wanted = json.loads(body)
            (root / wanted["organization"] / wanted["name"]).mkdir(parents=True)
            self.answer({"url": f"{self.server.url}/{wanted['organization']}/{wanted['name']}"})
        elif place[5] == "preupload":
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.answer({"files": files})
        else:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    path = root / place[3] / place[4] / line["value"]["path"]
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(base64.b64decode(line["value"]["content"]))
            address = f"{self.server.url}/{place[3]}/{place[4]}/commit/{COMMITS['main']}"
            self.answer({"commitUrl": address, "commitOid": COMMITS["main"]})

    def answer(self, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def fail(self, status: int, code: str, commit: str = "") -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", "0")
        self.end_headers()


def connect(monkeypatch: pytest.MonkeyPatch, url: str, cache: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
