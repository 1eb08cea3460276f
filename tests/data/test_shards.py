import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ecanet.config import ClassificationSettings, EvaluateSettings
from ecanet.data.cache import cache_folder
from ecanet.data.decode import decode_image
from ecanet.data.listing import list_evaluated, list_images
from ecanet.data.read import read_data
from ecanet.data.stream import ImageList
from ecanet.errors import UserError


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def listed(root: Path) -> list[ImageList]:
    return list(list_images(str(root)).splits.values())  # type: ignore[arg-type]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two shards of train and one of val, four images in each, labels 0 to 2."""
    rng = np.random.default_rng(0)
    for split, shards in (("train", 2), ("val", 1)):
        (tmp_path / split).mkdir()
        for shard in range(shards):
            with tarfile.open(tmp_path / split / f"{shard:03}.tar", "w") as tar:
                for i in range(4):
                    buffer = io.BytesIO()
                    pixels = rng.integers(0, 255, (12, 10, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(buffer, "PNG")
                    (tmp_path / f"{split}{shard}-{i}.png").write_bytes(buffer.getvalue())
                    add(tar, f"s{i}.cls", str(i % 3).encode())
                    add(tar, f"s{i}.png", buffer.getvalue())
                    add(tar, f"s{i}.json", b"{}")
    return tmp_path


@pytest.mark.parametrize("time", ["first", "from the cache"])
def test_images_come_out_as_they_went_in(root: Path, time: str) -> None:
    if time == "from the cache":
        listed(root)
    train, val = listed(root)
    assert (len(train), len(val)) == (8, 4)
    assert train.labels == [0, 1, 2, 0] * 2
    assert train.classes == ["0", "1", "2"]
    assert train.files[5] == "train/001.tar:s1.png"
    for index in range(8):
        original = (root / f"train{index // 4}-{index % 4}.png").read_bytes()
        assert train.read(index) == original
        assert torch.equal(decode_image(train.read(index)), decode_image(original))
    assert list_evaluated(str(root), EvaluateSettings(split="val"))[1].labels == val.labels


def test_a_changed_shard_is_indexed_again(root: Path) -> None:
    listed(root)
    with tarfile.open(root / "train/001.tar", "a") as tar:
        add(tar, "new.png", (root / "val0-0.png").read_bytes())
        add(tar, "new.cls", b"2")
    train, _ = listed(root)
    assert len(train) == 9
    assert train.read(8) == (root / "val0-0.png").read_bytes()


def test_a_damaged_index_is_made_anew(root: Path) -> None:
    train, _ = listed(root)
    shards = (root / "train").glob("*.tar")
    indices = list((cache_folder() / "shards").glob("*.npz"))
    assert len(indices) == 3
    sizes = [shard.stat().st_size for shard in shards]
    with np.load(indices[0]) as kept:
        whole = dict(kept)
    content = indices[0].read_bytes()

    def beyond(**changed: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        np.savez(buffer, **{**whole, **changed})
        return buffer.getvalue()

    far = np.full_like(whole["places"], max(sizes) + 1)
    for damaged in (
        b"", content[:-30], content[:100] + b"\xff" * 40 + content[140:], b"PK\5\6" + bytes(18),
        beyond(places=far), beyond(places=-far), beyond(places=whole["places"].astype(float)),
        beyond(labels=whole["labels"][:1]), beyond(labels=whole["labels"] - 9),
        beyond(members=np.array([object()], dtype=object)), beyond(members=np.zeros(3, np.uint8)),
    ):  # fmt: skip
        indices[0].write_bytes(damaged)
        with pytest.warns(UserWarning, match="damaged and will be rebuilt"):
            again, _ = listed(root)
        assert again.files == train.files
        assert np.array_equal(again.places, train.places)
        assert indices[0].read_bytes() == content


def test_names_of_shards_and_members_may_be_unusual(root: Path) -> None:
    shard = root / "train/000.tar"
    image = (root / "val0-0.png").read_bytes()
    shard.unlink()
    with tarfile.open(root / "train/a:b.tar", "w") as tar:
        for name in ("./s0", "deep.er/s0", "sé"):
            add(tar, f"{name}.PNG", image)
            add(tar, f"{name}.cls", b" 2\n")
    train, _ = listed(root)
    assert train.files[-3:] == [
        "train/a:b.tar:./s0.PNG", "train/a:b.tar:deep.er/s0.PNG", "train/a:b.tar:sé.PNG",
    ]  # fmt: skip
    assert train.read(6) == image


def test_an_image_with_the_key_of_another_is_refused(root: Path) -> None:
    with tarfile.open(root / "train/001.tar", "a") as tar:
        add(tar, "s1.jpg", b"x")
    with pytest.raises(UserError, match=r"s1\.jpg: the key s1 occurs twice"):
        listed(root)


def test_shards_that_cannot_be_used(root: Path) -> None:
    shard = root / "train/000.tar"
    content = shard.read_bytes()
    for damaged, says in (
        (b"no tar" * 1000, r"000\.tar cannot be read as a shard"),
        (content[:1800], r"000\.tar"),
    ):
        shard.write_bytes(damaged)
        with pytest.raises(UserError, match=says):
            listed(root)
    shard.write_bytes(content)
    with tarfile.open(root / "val/000.tar", "a") as tar:
        add(tar, "a.png", b"x")
        add(tar, "a.cls", b"7")
    with pytest.raises(UserError, match="train has no image of 7, of which val has some"):
        read_data(ClassificationSettings(data=str(root)))
    for members, says in (({"a.png": b"x"}, r"a\.png has no label"),):
        with tarfile.open(shard, "w") as tar:
            for name, value in members.items():
                add(tar, name, value)
        with pytest.raises(UserError, match=says):
            listed(root)
