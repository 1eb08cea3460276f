"""Files that are taken for images, those of formats that may not be read, and leftovers of systems."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features

from ecanet.data import formats
from ecanet.data.arguments import named_files
from ecanet.data.decode import decode_image
from ecanet.data.folder import find_images, left_out_line, list_folders
from ecanet.errors import UserError

LEFTOVERS = [
    ".thumbnails", "@eaDir", "__MACOSX", "#recycle", "$RECYCLE.BIN", ".AppleDouble", "@Recycle",
    "lost+found", "System Volume Information",
]  # fmt: skip


def smooth() -> Image.Image:
    rows, columns = np.mgrid[:24, :32].astype(np.uint8)
    return Image.fromarray(np.stack([8 * rows, 6 * columns, 100 + 0 * rows], 2).astype(np.uint8))


def without(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Make it a machine that does not read a format."""
    optional = [k._replace(is_read=k.is_read and k.format != kind) for k in formats._OPTIONAL]
    lost = next(k.endings for k in optional if k.format == kind)
    monkeypatch.setattr(formats, "_OPTIONAL", optional)
    kept = tuple(ending for ending in formats.ENDINGS if ending not in lost)
    monkeypatch.setattr("ecanet.data.folder.ENDINGS", kept)


@pytest.mark.parametrize(
    ("kind", "ending"), [("AVIF", ".avif"), ("HEIF", ".heic"), ("HEIF", ".heif"), ("JPEG", ".jfif")]
)
def test_further_formats_are_read(kind: str, ending: str) -> None:
    if kind == "AVIF" and not ("avif" in features.modules and features.check("avif")):
        pytest.skip("this PIL reads no AVIF")
    if kind == "HEIF":
        pytest.importorskip("pillow_heif")
    content = io.BytesIO()
    smooth().save(content, kind, quality=95)
    assert ending in formats.ENDINGS
    decoded = decode_image(content.getvalue())
    wanted = torch.from_numpy(np.array(smooth())).permute(2, 0, 1)
    assert decoded.shape == wanted.shape
    assert (decoded.int() - wanted.int()).abs().float().mean() < 5


def test_images_that_are_not_read_here_are_counted_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "HEIF")
    for split in ("train", "test"):
        for name in "ab":
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            smooth().save(folder / "1.png")
            (folder / "2.HEIC").write_bytes(b"as a telephone saves them")
    images, left_out = find_images(tmp_path, "train")
    assert [len(found) for found in images.values()] == [1, 1]
    line = left_out_line(left_out)
    assert "2 HEIF images cannot be read here (train/a/2.HEIC, train/b/2.HEIC)" in line
    assert "pip install 'ecanet[heic]'" in line
    (tmp_path / "train/b/1.png").unlink()
    with pytest.raises(
        UserError, match=r"holds no image .*1 HEIF image cannot be read.*ecanet\[heic"
    ):
        list_folders(tmp_path, {"train": "train", "test": "test"})
    assert formats.unread_line(["a.jpg", "b.txt"]) == ""


def test_leftovers_of_file_servers_and_systems_are_no_images_and_no_classes(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / "train" / name).mkdir(parents=True)
        smooth().save(tmp_path / "train" / name / "1.jpg")
        smooth().save(tmp_path / "train" / name / "._1.jpg", "JPEG")
        (tmp_path / "train" / name / "Thumbs.db").write_bytes(b"thumbnails")
    for leftover in LEFTOVERS:
        for place in ("train", "train/a"):
            (tmp_path / place / leftover).mkdir()
            smooth().save(tmp_path / place / leftover / "SYNOPHOTO_THUMB_XL.jpg")
    images, left_out = find_images(tmp_path, "train")
    assert images == {"a": ["train/a/1.jpg"], "b": ["train/b/1.jpg"]}
    assert len(left_out) == 2 * 2 + 2 * len(LEFTOVERS), "each of them is counted"
    assert not formats.is_ignored("recycled glass")


@pytest.mark.parametrize("subfolders", [True, False])
def test_folders_of_arguments_are_read_by_the_same_rules(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    subfolders: bool,
) -> None:
    without(monkeypatch, "HEIF")
    (tmp_path / "1.heic").write_bytes(b"as a telephone saves them")
    (tmp_path / "._2.jpg").write_bytes(b"of macOS")
    kept = tuple(e for e in formats.ENDINGS if e != ".heic")
    with pytest.raises(
        UserError, match=r"there is no image in .*; 1 HEIF image cannot be read here"
    ):
        named_files(str(tmp_path), kept, subfolders=subfolders)
    smooth().save(tmp_path / "2.jpg")
    found = named_files(str(tmp_path), kept, subfolders=subfolders)
    assert [path.name for path in found] == ["2.jpg"]
    assert "1 HEIF image cannot be read here (" in caplog.text
