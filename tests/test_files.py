"""Files are complete or absent, whichever process writes or is killed, and have the mode of the umask."""

from __future__ import annotations

import errno
import json
import math
import multiprocessing
import os
import signal
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ecanet import files
from ecanet.errors import UserError
from ecanet.files import (
    is_temporary,
    move_to_free,
    set_aside,
    sweep,
    temporary_folder,
    write_atomic,
    write_json,
)

_forks = multiprocessing.get_context("fork")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def test_a_reader_never_sees_a_part_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    texts = {str(i) * 200_000 for i in range(2)}
    write_atomic(path, "0" * 200_000)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for text in texts:
                write_atomic(path, text)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert all(path.read_text() in texts for _ in range(200))
    finally:
        stop.set()
        writer.join()
    assert os.listdir(tmp_path) == ["file"]


def test_a_failed_write_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(tmp_path / "a.json", {"a": 1})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_json(tmp_path / "a.json", {"a": 2})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_folder_that_keeps_nothing_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(path: object, *_: object) -> int:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", lost)
        with pytest.raises(UserError, match=f"no file can be made in {tmp_path}"):
            write_atomic(tmp_path / "file", "text")


def test_nan_is_refused_in_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Out of range|not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": math.nan})
    assert not (tmp_path / "a.json").exists()


def test_a_name_that_is_not_utf8_can_be_written_into_a_text(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a.csv", os.fsdecode(b"caf\xe9.png"))
    assert (tmp_path / "a.csv").read_text() == r"caf\udce9.png"


def test_the_mode_of_new_files_and_folders_follows_the_umask(tmp_path: Path, umask: None) -> None:
    write_atomic(tmp_path / "file", "content")
    assert mode(tmp_path / "file") == 0o640
    with temporary_folder(tmp_path) as folder:
        (folder / "inside").touch()
        folder.rename(tmp_path / "folder")
    assert mode(tmp_path / "folder") == 0o750


def test_a_file_that_is_written_again_keeps_its_mode(tmp_path: Path, umask: None) -> None:
    for wanted in (0o600, 0o664, 0o444):
        path = tmp_path / f"{wanted:o}"
        path.touch()
        path.chmod(wanted)
        write_atomic(path, "content")
        assert mode(path) == wanted


def test_of_several_threads_that_take_a_name_one_succeeds(tmp_path: Path) -> None:
    def take(number: int) -> None:
        (tmp_path / f"{number}").write_text(str(number))
        start.wait()
        try:
            move_to_free(tmp_path / f"{number}", tmp_path / "name")
            won.append(number)
        except FileExistsError:
            pass

    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            start, won = threading.Barrier(4), list[int]()
            list(pool.map(take, range(4)))
            assert [int((tmp_path / "name").read_text())] == won
            (tmp_path / "name").unlink()


def test_a_name_is_taken_without_hardlinks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    for content in ("first", "second"):
        (tmp_path / content).write_text(content)
    move_to_free(tmp_path / "first", tmp_path / "name")
    with pytest.raises(FileExistsError):
        move_to_free(tmp_path / "second", tmp_path / "name")
    assert (tmp_path / "name").read_text() == "first"
    assert (tmp_path / "second").read_text() == "second"


def _die_writing(folder: Path) -> None:
    os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
    with temporary_folder(folder) as inner:
        (inner / "file").touch()
        write_atomic(folder / "last.bin", bytes(1000))


def die_writing(folder: Path) -> None:
    """Let another process be killed in the middle of a write."""
    process = _forks.Process(target=_die_writing, args=[folder])
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_only_the_files_of_killed_writers_are_swept(tmp_path: Path) -> None:
    (tmp_path / ".ecanet-mine.tmp").touch()
    die_writing(tmp_path)
    left = [name for name in os.listdir(tmp_path) if is_temporary(name)]
    assert len(left) == 2, left
    with temporary_folder(tmp_path) as alive:
        sweep(tmp_path)
        assert set(os.listdir(tmp_path)) == {".ecanet-mine.tmp", alive.name}
    assert os.listdir(tmp_path) == [".ecanet-mine.tmp"]


def test_the_first_write_into_a_folder_sweeps_it(tmp_path: Path) -> None:
    die_writing(tmp_path)
    files._sweep_once.cache_clear()
    write_atomic(tmp_path / "file", "content")
    assert os.listdir(tmp_path) == ["file"]


def _write_again_and_again(folder: Path) -> None:
    for _ in range(300):
        write_atomic(folder / f"{os.getpid()}", "content")


def test_sweeping_removes_nothing_from_active_writers(tmp_path: Path) -> None:
    writers = [_forks.Process(target=_write_again_and_again, args=[tmp_path]) for _ in range(2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        sweep(tmp_path)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert len(os.listdir(tmp_path)) == 2


def test_a_second_damaged_file_does_not_take_the_place_of_the_first(tmp_path: Path) -> None:
    for content in ("first", "second"):
        (tmp_path / "a").write_text(content)
        set_aside(tmp_path / "a")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {
        "a.damaged": "first",
        "a.damaged-2": "second",
    }
