"""Attacks: files, folders and addresses that were made to do harm. None gets in.

Each test is one attack. The commands run as processes of their own whose writes, requests and programs
are recorded (``isolated.py``).
"""

from __future__ import annotations

import os
import re
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from isolated import Isolated

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


# ---- The current folder


# ---- A study, recipe or plugin from elsewhere


# ---- Secrets


# ---- Images and shards


def _png(width: int, height: int, further: bytes = b"") -> bytes:
    """Return a black PNG; of a huge one the first rows, as nothing is to look at the others."""
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    deflate = zlib.compressobj(1)
    filled = min(height, 1 + 2**20 // width)
    rows = b"".join(deflate.compress(bytes(width + 1)) for _ in range(filled)) + deflate.flush()
    return b"\x89PNG\r\n\x1a\n" + header + further + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def _jpeg(width: int, height: int, segments: bytes = b"", scans: int = 1) -> bytes:
    """Return a progressive JPEG of a size that only its header claims."""
    frame = b"\xff\xc2" + struct.pack(">HBHHB", 11, 8, height, width, 1) + b"\x01\x11\x00"
    scan = b"\xff\xda" + struct.pack(">HB", 8, 1) + b"\x01\x00\x00\x00\x00" + b"\x00" * 8
    return b"\xff\xd8" + segments + frame + scan * scans + b"\xff\xd9"


def _tiff(tags: list[tuple[int, int, int, int]], content: bytes = b"") -> bytes:
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + content


def _grey(
    width: int, height: int, *tags: tuple[int, int, int, int]
) -> list[tuple[int, int, int, int]]:
    plain = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
    ]
    return [*plain, *tags]


def _gif(content: bytes) -> bytes:
    return b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0x80, 0, 0) + bytes(6) + content + b";"


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
        "again and again",
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
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_picture_made_to_fill_memory_or_take_minutes(
    isolated: Isolated, tmp_path: Path, bomb: str
) -> None:
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


@pytest.mark.parametrize("frames", ["GIF", "PNG"])
def test_an_animation_of_a_million_frames(isolated: Isolated, tmp_path: Path, frames: str) -> None:
    """The first frame is read, and no other looked at."""
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("P", (8, 8)).save(buffer, "GIF")
    gif = buffer.getvalue()[:-1] + b",\0\0\0\0\x08\0\x08\0\0\2\2D\1\0" * 10**6 + b";"
    begin = _chunk(b"acTL", struct.pack(">II", 10**6, 0))
    frame = _chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 8, 8, 0, 0, 1, 10, 0, 0))
    png = _png(8, 8, begin + frame)
    content = gif if frames == "GIF" else png[:-12] + frame * 10**6 + png[-12:]
    (tmp_path / "picture.png").write_bytes(content)
    seen = isolated.call(
        "from ecanet.data.decode import decode_image\n"
        "print(decode_image(open('picture.png', 'rb').read()).shape)",
        tmp_path,
    )
    assert "[3, 8, 8]" in seen.out, seen.err
    assert seen.seconds < 10
    assert seen.memory < 2**30


def _pictures(root: Path, *splits: str) -> Path:
    """Make a folder of two classes, and return the path for a picture that is to do harm."""
    from PIL import Image

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
    isolated: Isolated, tmp_path: Path, command: list[str], content: bytes
) -> None:
    """PIL starts Ghostscript for EPS, whatever the file's name: here nothing runs, and the file is named."""
    splits = ["train", "test"] if command is IN_MEMORY else ["train", "val"]
    bad = _pictures(tmp_path / "data", *splits)
    bad.write_bytes(content)
    seen = isolated.run(*command, folder=tmp_path)
    assert seen.is_one_line(), seen.err
    assert "bad.png cannot be decoded" in seen.err.splitlines()[-1]
    assert seen.started == []
    assert seen.wrote_outside(tmp_path, tmp_path.with_name(tmp_path.name + ".home")) == []
    assert seen.memory < 2**30


def test_a_picture_that_is_a_program_for_the_other_commands(
    isolated: Isolated, tmp_path: Path
) -> None:
    """``export --images`` reads pictures by the same function, and detection does."""
    (tmp_path / "bad.png").write_bytes(EPS)
    seen = isolated.call(
        "from pathlib import Path\n"
        "from ecanet.detection.prediction import read_picture\n"
        "from ecanet.errors import UserError\n"
        "try:\n"
        "    read_picture(Path('bad.png'))\n"
        "except UserError as error:\n"
        "    print(error)\n",
        tmp_path,
    )
    assert "bad.png is no picture" in seen.out
    assert seen.started == []
    import inspect

    import ecanet

    root = Path(inspect.getfile(ecanet)).parent
    opening = [
        path for path in root.rglob("*.py") if re.search(r"\bImage\.open\(", path.read_text())
    ]
    assert opening == [root / "data" / "decode.py"], "there is one way in for pictures"


@pytest.mark.parametrize("kind", ["a pipe", "a device", "20 GB"])
def test_a_picture_without_end(isolated: Isolated, tmp_path: Path, kind: str) -> None:
    """A file of a class folder that would be read for ever is refused by its name."""
    bad = _pictures(tmp_path / "data", "train", "test")
    if kind == "a pipe":
        os.mkfifo(bad)
    elif kind == "a device":
        bad.symlink_to("/dev/zero")
    else:
        with bad.open("wb") as file:
            file.truncate(20 * 10**9)
    seen = isolated.run(*IN_MEMORY, folder=tmp_path, timeout=60)
    assert seen.is_one_line(), seen.err
    assert "bad.png cannot be decoded" in seen.err
    assert seen.memory < 2**30


def _shard(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> None:
    """Write a shard of one good image and what is to do harm."""
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        for name, content in (("good.png", _png(8, 8)), ("good.cls", b"0")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.write(member.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512))
        for member, content in members:
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
def test_a_shard_with_what_no_shard_holds(isolated: Isolated, tmp_path: Path, what: str) -> None:
    """Refused by the shard's name, and before memory is taken for what the headers claim."""
    members, reason = HOSTILE[what]
    for split in ("train", "val"):
        _shard(tmp_path / "data" / split / "0.tar", *(members if split == "train" else []))
    if "20 GB" in what and "image" not in what:
        with (tmp_path / "data/train/0.tar").open("r+b") as file:
            file.truncate(30 * 10**9)  # it really is there, and takes no space
    seen = isolated.run(*STREAMED, folder=tmp_path, timeout=60)
    assert seen.is_one_line(), seen.err
    assert "0.tar" in seen.err
    assert reason in seen.err
    assert seen.wrote_outside(tmp_path, tmp_path.with_name(tmp_path.name + ".home")) == []
    assert seen.memory < 2**30
    assert seen.seconds < 10


def test_an_image_of_20_gb_in_a_shard(isolated: Isolated, tmp_path: Path) -> None:
    """It is really there, in a shard with holes: refused when it comes up, by its name."""
    member = _member("a.png", size=20 * 10**9)
    for split in ("train", "val"):
        _shard(
            tmp_path / "data" / split / "0.tar", (_member("a.cls", size=1), b"0"), (member, b"x")
        )
        with (tmp_path / "data" / split / "0.tar").open("r+b") as file:
            file.truncate(20 * 10**9 + 4608)
    seen = isolated.run(*STREAMED, "--batch-size", "1", folder=tmp_path, timeout=60)
    assert seen.is_one_line(), seen.err
    assert "a.png cannot be decoded: it has 20,000 MB" in seen.err
    assert seen.memory < 2**30


# ---- Annotations


# ---- Checkpoints that are structures without end


# ---- YAML, sweeps and settings


# ---- Names shown in a terminal
