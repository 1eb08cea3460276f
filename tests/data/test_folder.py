"""Image folders: the rules, every complaint, the cache."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ecanet.data import Data, cache, dataset, folder, load_data, memory
from ecanet.environment import available_memory
from ecanet.errors import UserError

Make = Callable[..., Path]


def write_image(path: Path, side: int | tuple[int, int] = 8, seed: int = 0) -> None:
    width, height = side if isinstance(side, tuple) else (side, side)
    random = np.random.default_rng([seed, *path.as_posix()[-20:].encode()])
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return a function that writes an image folder: make(train=10, test=4) images per class."""

    def make(classes: str = "ab", side: int = 8, **counts: int) -> Path:
        root = tmp_path / "images"
        for split, count in counts.items():
            for name in classes:
                for i in range(count):
                    write_image(root / split / name / f"{i:02}.png", side)
        return root

    return make


def load(root: Path, **options: object) -> Data:
    return load_data(root, **options)  # type: ignore[arg-type]


def pixels(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)


def age(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that all files have long been there, so that their stamps are trusted."""
    now = time.time()
    monkeypatch.setattr(cache.time, "time", lambda: now + 60)


# The rules


def test_test_is_test_and_validation_comes_from_train(make: Make) -> None:
    data = load(make(train=10, test=4), validation=0.2)
    assert (len(data.train), len(data.val), len(data.test)) == (16, 4, 8)
    assert data.name == "images"
    assert data.classes == ["a", "b"]
    assert (data.image_size, data.channels, data.skipped) == (8, 3, [])
    assert data.train.images.dtype == torch.uint8
    assert data.train.labels.dtype == torch.int64
    assert torch.bincount(data.val.labels).tolist() == [2, 2]


def test_val_is_test_alone_and_validation_beside_test(make: Make) -> None:
    root = make(train=10, val=4)
    first = pixels(root / "val" / "a" / "00.png")
    data = load(root, validation=0.2)
    assert (len(data.train), len(data.val), len(data.test)) == (16, 4, 8)
    assert torch.equal(data.test.images[0], first)
    data = load(make(test=3))
    assert (len(data.train), len(data.val), len(data.test)) == (20, 8, 6)
    assert torch.equal(data.val.images[0], first)
    assert torch.equal(data.test.images[-1], pixels(root / "test" / "b" / "02.png"))


def test_every_image_has_its_own_label(make: Make) -> None:
    root = make("cab", train=5, test=3)
    data = load(root, validation=0.2)
    assert data.classes == ["a", "b", "c"]
    by_bytes = {}
    for split in ("train", "test"):
        for path in sorted((root / split).glob("*/*.png")):
            by_bytes[pixels(path).numpy().tobytes()] = path.parent.name
    for part in (data.train, data.val, data.test):
        for image, label in zip(part.images, part.labels, strict=True):
            assert by_bytes.pop(image.numpy().tobytes()) == data.classes[label]
    assert not by_bytes


def test_the_held_out_images_are_always_the_same(make: Make) -> None:
    root = make(train=20, test=2)
    torch.manual_seed(1)
    np.random.seed(1)
    first = load(root)
    torch.manual_seed(2)
    np.random.seed(2)
    second = load(root)
    assert torch.equal(first.val.images, second.val.images)
    assert first.fingerprint == second.fingerprint
    assert load(root, validation=0.3).fingerprint != first.fingerprint


def test_at_least_one_image_of_each_class_is_held_out(make: Make) -> None:
    data = load(make(train=2, test=1), validation=0.01)
    assert torch.bincount(data.val.labels).tolist() == [1, 1]
    data = load(make(train=2, test=1), validation=0.99)
    assert torch.bincount(data.train.labels).tolist() == [1, 1]


def test_mean_and_std_are_trains(make: Make) -> None:
    data = load(make(train=10, test=4))
    values = data.train.images.double() / 255
    torch.testing.assert_close(torch.tensor(data.mean).double(), values.mean(dim=(0, 2, 3)))
    wanted = values.std(dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(torch.tensor(data.std).double(), wanted)


def test_images_without_contrast_have_a_std_to_divide_by(tmp_path: Path) -> None:
    for name in ("train/a/1", "train/a/2", "train/b/1", "train/b/2", "test/a/1", "test/b/1"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / f"{name}.png")
    assert load(tmp_path).std == pytest.approx((1 / 255,) * 3)


def test_endings_in_capitals_and_deep_folders_count_hidden_and_others_do_not(make: Make) -> None:
    root = make(train=4, test=2)
    source = root / "train" / "a" / "00.png"
    (root / "train" / "a" / "deep").mkdir()
    shutil.copy(source, root / "train" / "a" / "deep" / "X.PNG")
    (root / "train" / ".hidden").mkdir()
    (root / "train" / "a" / ".hidden").mkdir()
    shutil.copy(source, root / "train" / "a" / ".hidden" / "x.png")
    shutil.copy(source, root / "train" / "a" / "._00.png")
    (root / "train" / "a" / "notes.txt").write_text("no image")
    (root / "train" / "readme.md").write_text("no class")
    (root / ".DS_Store").write_text("")
    data = load(root)
    assert data.classes == ["a", "b"]
    assert len(data.train) + len(data.val) == 9
    assert data.left_out == [
        "train/.hidden", "train/a/._00.png", "train/a/.hidden", "train/a/notes.txt", "train/readme.md",
    ]  # fmt: skip
    assert "skipped 5 names" in folder.left_out_line(data.left_out)


def test_linked_folders_are_read_once_each_and_circles_end(make: Make, tmp_path: Path) -> None:
    """Three images and a link to a folder of twelve more used to be three images."""
    root = make(train=3, test=1)
    more = tmp_path / "elsewhere" / "more"
    (more / "deep").mkdir(parents=True)
    for i in range(12):
        write_image(more / ("deep" if i % 2 else "") / f"{i}.png", (8, 8))
    (root / "train" / "a" / "linked").symlink_to(more)
    (root / "train" / "a" / "twice").symlink_to(more)
    (more / "up").symlink_to(root / "train" / "a")
    (more / "self").symlink_to(more)
    (more / "top").symlink_to(root)
    (root / "train" / "a" / "split").symlink_to(root / "train")
    images, left_out = folder.find_images(root, "train")
    assert len(images["a"]) == len(set(images["a"])) == 15
    assert len(images["b"]) == 3
    assert left_out == [
        "train/a/linked/self",
        "train/a/linked/top",
        "train/a/linked/up",
        "train/a/split",
        "train/a/twice",
    ]


# Sizes


def test_small_squares_keep_their_size_and_others_do_not(make: Make) -> None:
    root = make(train=3, test=1)
    assert load(root).image_size == 8
    assert load(root, image_size=12).test.images.shape == (2, 3, 12, 12)
    write_image(root / "test" / "b" / "odd.png", (8, 9))
    assert load(root).image_size == memory.DEFAULT_SIZE
    assert load(root, image_size=8).image_size == 8
    for path in (root / "test").rglob("*.png"):
        write_image(path, 97)
    assert load(root).test.images.shape == (3, 3, 224, 224)


def test_images_too_many_for_memory(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(train=3, test=1)
    monkeypatch.setattr(dataset, "available_memory", lambda: 20_000_000)
    load(root)
    with pytest.raises(UserError, match=r"8 images of 900x900 pixels take 0\.0 GB.*--image-size"):
        load(root, image_size=900)
    write_image(root / "test" / "b" / "odd.png", (8, 9))
    load(root)
    # Before the cache, or all files, are read.
    monkeypatch.setattr(dataset, "available_memory", lambda: 100_000)  # enough for 8x8 only
    assert "9 images of 224x224 pixels" in complaint(root)
    monkeypatch.setattr(memory, "content_key", None)
    monkeypatch.setattr(dataset, "available_memory", lambda: 1000)
    assert "9 images of 8x8 pixels" in complaint(root, image_size=8)


def test_available_memory_is_plausible() -> None:
    available = available_memory()
    assert available is None or 10**7 < available < 10**14


# Complaints


def complaint(root: Path, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        load(root, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_no_splits(tmp_path: Path, make: Make) -> None:
    assert re.search(r"holds no class folder: .*holds nothing$", complaint(tmp_path))
    (tmp_path / "other" / "cats").mkdir(parents=True)
    assert "holds no image" in complaint(tmp_path / "other")
    write_image(tmp_path / "other" / "cats" / "0.png")
    assert "holds one class, 'cats'" in complaint(tmp_path / "other")
    assert "images has no train split, only val: name" in complaint(make(val=2))
    assert "images has no train split, only val and test" in complaint(make(test=2))
    make(train=2)
    make(validation=2)
    assert "two folders of one split, val/ and validation/" in complaint(tmp_path / "images")


def test_fewer_than_two_classes(make: Make) -> None:
    root = make("a", train=2)
    (root / "test").mkdir()
    assert "test holds no class folder" in complaint(root)
    assert "holds one class, 'a': at least two" in complaint(make("a", test=2))


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_class_missing_or_extra(make: Make, split: str) -> None:
    root = make("abc", train=2, val=2, test=2)
    (root / split / "b").rename(root / split / "bird")
    message = complaint(root)
    assert message.startswith(f"class 'bird' is in {root / split} but not in {root / 'train'}")
    shutil.rmtree(root / split / "bird")
    part = {"val": "validation", "test": "test"}[split]
    for empty in (False, True):
        data = load(root)
        assert data.notices == [
            f"1 of 3 classes have no image in {part}, so nothing is measured for them there: b"
        ]
        assert data.images_of(split).labels.tolist() == [0, 0, 2, 2]  # type: ignore[union-attr]
        if not empty:
            (root / split / "b").mkdir()


def test_a_class_without_images(make: Make) -> None:
    root = make(train=2, test=1)
    (root / "train" / "b" / "00.png").rename(root / "train" / "b" / "00.txt")
    (root / "train" / "b" / "01.png").unlink()
    assert complaint(root).startswith(f"{root / 'train' / 'b'} holds no image (.jpg")


def test_a_single_image_of_a_class_stays_in_train(make: Make) -> None:
    assert "No class has two images in train" in complaint(make(train=1, test=1))
    assert len(load(make(train=1, val=1, test=1)).train) == 2
    shutil.rmtree(make(train=1) / "val")
    data = load(make("b", train=3))
    assert (data.train.labels.tolist(), data.val.labels.tolist()) == ([0, 1, 1], [1])
    assert data.notices == [
        "1 of 2 classes have no image in validation, so nothing is measured for them there: a"
    ]


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_a_corrupt_image_is_named_or_skipped(make: Make, content: bytes | None) -> None:
    root = make(train=4, test=2)
    bad = root / "train" / "b" / "02.png"
    bad.write_bytes(bad.read_bytes()[:-60] if content is None else content)
    for _ in range(2):  # decoded, then from the cache
        message = complaint(root)
        assert message.startswith(f"{bad} cannot be decoded: ")
        assert message.endswith("or skip such images with --corrupt skip.")
        data = load(root, skip_corrupt=True, validation=0.3)
        assert data.skipped == ["train/b/02.png"]
        assert len(data.train) + len(data.val) == 7
        assert torch.bincount(data.train.labels).tolist() == [3, 2]
    whole = data.fingerprint
    bad.unlink()
    data = load(root, skip_corrupt=True)
    assert data.skipped == []
    assert data.fingerprint != whole


def test_several_corrupt_images_are_counted(make: Make) -> None:
    root = make(train=4, test=3)
    for name in ("train/a/00.png", "test/b/01.png", "test/b/02.png"):
        (root / name).write_bytes(b"")
    assert "train/a/00.png cannot be decoded: the file is empty (and 2 more" in complaint(root)
    data = load(root, skip_corrupt=True)
    assert data.skipped == ["train/a/00.png", "test/b/01.png", "test/b/02.png"]
    assert data.test.labels.tolist() == [0, 0, 0, 1]
    assert torch.equal(data.test.images[3], pixels(root / "test" / "b" / "00.png"))


def test_a_class_of_nothing_but_corrupt_images(make: Make) -> None:
    root = make(train=3, test=1)
    (root / "test" / "a" / "00.png").write_bytes(b"")
    assert "have no image in test" in load(root, skip_corrupt=True).notices[0]
    for file in (root / "train" / "a").iterdir():
        file.write_bytes(b"")
    assert (
        complaint(root, skip_corrupt=True)
        == f"{root}: no image of a in train can be decoded: add some"
    )


def test_an_image_that_cannot_be_read_is_named(make: Make) -> None:
    root = make(train=3, test=1)
    image = root / "test" / "a" / "00.png"
    image.chmod(0)
    if os.geteuid():  # root reads everything
        assert "00.png cannot be read: Permission denied" in complaint(root)
    image.unlink()
    image.symlink_to(root / "gone.png")
    assert "test/a/00.png cannot be read: No such file or directory." in complaint(root)


# The cache


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count what is decoded: the list grows by the number of images of each pass."""
    counts: list[int] = []
    original = memory.decode_files

    def counting(paths: list[Path], *args: object, **options: object) -> object:
        counts.append(len(paths))
        return original(paths, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(memory, "decode_files", counting)
    return counts


def test_images_are_decoded_once(make: Make, decoded: list[int], tmp_path: Path) -> None:
    root = make(train=4, test=2)
    first = load(root, cache_dir=tmp_path / "cache")
    second = load(root, cache_dir=tmp_path / "cache")
    assert decoded == [12]
    for part in ("train", "val", "test"):
        assert torch.equal(getattr(first, part).images, getattr(second, part).images)
    assert (first.mean, first.fingerprint) == (second.mean, second.fingerprint)
    load(root, cache_dir=tmp_path / "cache", image_size=9)
    assert decoded == [12, 12]


def test_the_cache_folder(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECANET_CACHE", str(tmp_path / "there"))
    load(make(train=2, test=1))
    assert list((tmp_path / "there" / "decoded").glob("*.bin"))
    monkeypatch.delenv("ECANET_CACHE")
    assert cache.cache_folder().name == "ecanet"


def test_a_copy_of_a_folder_finds_the_cache(make: Make, decoded: list[int], tmp_path: Path) -> None:
    root = make(train=4, test=2)
    first = load(root)
    shutil.copytree(root, tmp_path / "copy")
    assert load(tmp_path / "copy").fingerprint == first.fingerprint
    assert decoded == [12]


def test_changed_content_is_decoded_again_even_with_the_old_time_and_size(
    tmp_path: Path, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "images"
    for name in ("train/a/0", "train/a/1", "train/b/0", "train/b/1", "test/a/0", "test/b/0"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (1, 2, 3)).save(root / f"{name}.bmp")
    age(root, monkeypatch)
    first = load(root)
    changed = root / "test" / "a" / "0.bmp"
    status = changed.stat()
    Image.new("RGB", (8, 8), (4, 5, 6)).save(changed)
    os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert changed.stat().st_size == status.st_size
    second = load(root)
    assert decoded == [6, 6]
    assert second.test.images[0, :, 0, 0].tolist() == [4, 5, 6]
    assert second.fingerprint != first.fingerprint


def test_renaming_and_moving_images_is_seen(make: Make, decoded: list[int]) -> None:
    root = make(train=4, test=2)
    load(root)
    (root / "train" / "a" / "00.png").rename(root / "train" / "b" / "00x.png")
    data = load(root, validation=0.3)
    assert decoded == [12, 12]
    assert torch.bincount(torch.cat([data.train.labels, data.val.labels])).tolist() == [3, 5]


def test_files_of_the_same_stamp_are_read_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(train=4, test=2)
    reads: list[Path] = []
    original = cache.read_file
    monkeypatch.setattr(cache, "read_file", lambda path: reads.append(path) or original(path))
    load(root)
    load(root)
    assert len(reads) == 24  # written a moment ago: they could change within the clock's tick
    age(root, monkeypatch)
    load(root)
    load(root)
    assert len(reads) == 36


def entry_with(**values: object) -> Callable[[Path], None]:
    """Return what changes values in a cache entry's JSON."""

    def change(path: Path) -> None:
        file = path.with_suffix(".json")
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    return change


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.with_suffix(".json").write_text("{"),
        lambda path: path.with_suffix(".json").write_text("[]"),
        lambda path: path.with_suffix(".json").unlink(),
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:-7]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\xff" + path.read_bytes()[1:]),
        entry_with(shape=[1]),
        entry_with(shape=[12, 3, 9**9, 9**9]),
        entry_with(shape=[6, 3, 8, 16]),
        entry_with(failed={"99": "?"}),
        entry_with(failed=None),
    ],
)
def test_a_broken_cache_is_made_anew(
    make: Make, decoded: list[int], tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    root = make(train=4, test=2)
    first = load(root, cache_dir=tmp_path / "cache")
    (entry,) = (tmp_path / "cache").glob("*.bin")
    before = entry.read_bytes()
    changed = bytes([before[0] ^ 1]) + before[1:]
    entry.write_bytes(changed if before[:1] == b"\xff" else before)
    damage(entry)
    second = load(root, cache_dir=tmp_path / "cache")
    assert torch.equal(first.train.images, second.train.images)
    assert decoded == [12, 12]
    assert entry.read_bytes() == before
    load(root, cache_dir=tmp_path / "cache")
    assert decoded == [12, 12]


def test_a_full_disk_is_said_in_one_line_and_the_run_goes_on(
    make: Make, decoded: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cache, "write_atomic", full)
    root = make(train=4, test=2)
    with pytest.warns(UserWarning, match="No space left on device") as caught:
        data = load(root, cache_dir=tmp_path / "cache")
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    assert "ECANET_CACHE" in str(caught[0].message)
    assert len(data.test) == 4
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="not cached"):
        load(root, cache_dir=tmp_path / "file")


def test_real_cifar_images_are_what_pil_reads(real_data: Path, tmp_path: Path) -> None:
    """A hundred of CIFAR-10's own files, through the folder and the cache."""
    root = tmp_path / "cifar"
    for split, count in (("train", 6), ("test", 4)):
        for source in sorted((real_data / "cifar10" / split).iterdir()):
            for path in sorted(source.iterdir())[:count]:
                target = root / split / source.name / path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(path)
    for _ in range(2):
        data = load(root, validation=0.2)
        assert data.image_size == 32
        assert len(data.classes) == 10
        paths = sorted((root / "test").glob("*/*"))
        assert torch.equal(data.test.images, torch.stack([pixels(path) for path in paths]))
        assert [data.classes[label] for label in data.test.labels] == [p.parent.name for p in paths]
