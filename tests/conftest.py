"""Fixtures that every room's tests share."""

from __future__ import annotations

import functools
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import commands
from helpers.isolated import Isolated

from ecanet.attention import registry

# Two test processes share the machine: more threads than cores only slow them down.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test writes to the user's own cache.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Ultralytics neither asks the network nor installs, and its settings are not the user's.
for name, value in (
    ("YOLO_OFFLINE", "true"),
    ("YOLO_AUTOINSTALL", "false"),
    ("YOLO_VERBOSE", "false"),
):
    os.environ.setdefault(name, value)
os.environ.setdefault("YOLO_CONFIG_DIR", str(Path(tempfile.gettempdir()) / "ecanet-tests-yolo"))
# Without a GPU, Triton's interpreter runs the kernels. It must be told before Triton is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture
def real_data() -> Path:
    """Return a folder that holds cifar10/, coco128/ and imagenet-sample/."""
    folder = os.environ.get("ECANET_TEST_DATA")
    if not folder or not (Path(folder) / "cifar10").is_dir():
        pytest.skip("needs real images: set ECANET_TEST_DATA to a folder that holds cifar10/")
    return Path(folder)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep decoded images of one test, and what it sets, away from another's and from the user's."""
    monkeypatch.setenv("ECANET_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("PYTHONSAFEPATH", "")  # commands set it for the processes they start


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a test register what it likes: the registry is a copy, put back afterwards."""
    modules = set(sys.modules)
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    yield
    for name in set(sys.modules) - modules:
        if name.startswith("ecanet_plugin_"):
            del sys.modules[name]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> commands.Run:
    """Run ``ecanet ARGUMENTS``; return the exit code, standard output and standard error."""
    return functools.partial(commands.run, capsys)


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str]) -> commands.Refuse:
    """Check that a command ends with code 2 and one line: ``refuse(PART_OF_IT, *ARGUMENTS)``."""
    return functools.partial(commands.assert_refused, capsys)


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder, which is empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def isolated() -> Iterator[Isolated]:
    """Run commands whose writes, requests and programs are recorded."""
    with Isolated() as server:
        yield server


CHROMIUM = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the playwright package")
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    with sync_api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=found, args=CHROMIUM)
        except sync_api.Error as error:
            pytest.skip(f"needs Chromium: {str(error).splitlines()[0]}")
        yield browser
        browser.close()
