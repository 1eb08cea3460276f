"""Data sets of the library ``datasets``: local folders, what it saves, and what it cannot reach."""

from __future__ import annotations

import builtins
import io
import json
import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from huggingface_hub import constants
from PIL import Image

from ecanet.config import ClassificationSettings, EvaluateSettings
from ecanet.data import Data
from ecanet.data.decode import decode_image
from ecanet.data.listing import absolute_data, list_evaluated, list_images
from ecanet.data.read import read_data
from ecanet.errors import UserError

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


def encoded(seed: int, form: str = "PNG") -> bytes:
    random = np.random.default_rng(seed)
    file = io.BytesIO()
    Image.fromarray(random.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(file, form)
    return file.getvalue()


def read(data: str | Path, storage: str = "memory", **settings: object) -> Data:
    values = {"data": str(data), "storage": storage, **settings}
    return read_data(ClassificationSettings(**values))  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An image folder as the Hub has them: metadata beside the images."""
    root = tmp_path / "birds"
    for split, count in (("train", 20), ("validation", 6), ("test", 8)):
        (root / split).mkdir(parents=True)
        lines = []
        for i in range(count):
            (root / split / f"{i:02}.png").write_bytes(encoded(i))
            lines.append(
                json.dumps({"file_name": f"{i:02}.png", "label": "wren" if i % 2 else "crow"})
            )
        (root / split / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.parametrize("storage", ["memory", "stream"])
@pytest.mark.parametrize("prefix", ["", "hf:"])
def test_a_folder_with_metadata(folder: Path, storage: str, prefix: str) -> None:
    data = read(f"{prefix}{folder}", storage)
    assert (data.name, data.classes) == ("birds", ["crow", "wren"])
    assert [len(data.images_of(split)) for split in ("train", "val", "test")] == [20, 6, 8]
    assert data.names("val") == [f"validation/{i:02}.png" for i in range(6)]
    assert list(data.images_of("test").labels) == [0, 1] * 4
    assert torch.equal(data.image("test", 3), decode_image(encoded(3)))
    split, images = list_evaluated(f"{prefix}{folder}", EvaluateSettings(split="test"))
    assert (split, images.files) == ("test", data.names("test"))


def test_a_folder_of_classes_through_datasets(folder: Path) -> None:
    for file in folder.rglob("metadata.jsonl"):
        file.unlink()
    for split in ("train", "validation", "test"):
        for i, file in enumerate(sorted((folder / split).iterdir())):
            target = folder / split / ("wren" if i % 2 else "crow") / file.name
            target.parent.mkdir(exist_ok=True)
            file.rename(target)
    data, plain = read(f"hf:{folder}"), read(folder)
    assert sorted(data.names("test")) == sorted(plain.names("test"))
    assert data.classes == plain.classes == ["crow", "wren"]


def test_a_parquet_file_of_images_by_another_program(tmp_path: Path) -> None:
    values = [{"bytes": encoded(i), "path": f"{i}.png"} for i in range(30)]
    table = pa.table({"photo": values, "label": ["crow", "wren"] * 15})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    data = read(f"hf:{tmp_path}", columns=["path=photo"])
    assert data.classes == ["crow", "wren"]
    assert sum(len(data.names(split)) for split in ("train", "val", "test")) == 30
    assert torch.equal(
        data.image("train", 0), decode_image(encoded(int(data.names("train")[0][6:])))
    )


def saved(root: Path, **columns: Any) -> str:
    """Save a data set of 30 images in bytes, with labels or with ``columns``; return its name."""
    features = {"image": datasets.Image()}
    values: dict[str, Any] = {"image": [{"bytes": encoded(i), "path": None} for i in range(30)]}
    for name, (kind, found) in (columns or LABELS).items():
        features[name], values[name] = kind, found
    made = datasets.Dataset.from_dict(values, datasets.Features(features))
    datasets.DatasetDict({"train": made, "unsupervised": made}).save_to_disk(str(root / "saved"))
    return f"hf:{root / 'saved'}"


LABELS = {"label": (datasets.ClassLabel(names=["b", "unused", "a"]), [0, 2] * 15)}


@pytest.mark.parametrize("storage", ["memory", "stream"])
def test_images_in_bytes_and_classes_by_their_names(tmp_path: Path, storage: str) -> None:
    data = read(saved(tmp_path), storage)
    assert data.classes == ["b", "a"]
    assert "held out by a hash" in data.notices[0]
    names = [name for split in ("train", "val", "test") for name in data.names(split)]
    assert sorted(names) == sorted(f"train/{i}" for i in range(30))
    for split in ("train", "val", "test"):
        for index, name in enumerate(data.names(split)):
            number = int(name.removeprefix("train/"))
            assert torch.equal(data.image(split, index), decode_image(encoded(number)))
            assert data.images_of(split).labels[index] == number % 2
    assert data.fingerprint == read(saved(tmp_path), storage).fingerprint


def test_workers_get_images_and_no_data(tmp_path: Path) -> None:
    images = list_images(saved(tmp_path)).splits["train"]
    copy = pickle.loads(pickle.dumps(images))
    assert torch.equal(copy.subset([3, 5]).image(1), decode_image(encoded(5)))
    assert len(pickle.dumps(images)) < 30 * len(encoded(0))


def test_columns_are_chosen(tmp_path: Path) -> None:
    two = {
        "fine": (datasets.ClassLabel(names=["a", "b", "c"]), [0, 1, 2] * 10),
        "coarse": (datasets.ClassLabel(names=["x", "y"]), [0, 1] * 15),
    }
    name = saved(tmp_path, **two)
    with pytest.raises(UserError, match="which column holds the label"):
        read(name)
    assert read(name, columns=["label=coarse"]).classes == ["x", "y"]
    with pytest.raises(UserError, match=r"--columns split=\.\.\.: of .*, only path and label"):
        read(name, columns=["label=fine", "split=coarse"])
    with pytest.raises(UserError, match="the column coarse holds no images"):
        read(name, columns=["label=fine", "path=coarse"])


def test_labels_that_are_missing_or_mixed(tmp_path: Path) -> None:
    unlabeled = {"label": (datasets.ClassLabel(names=["a", "b"]), [0, 1, None] * 10)}
    with pytest.raises(UserError, match="10 images without a label"):
        read(saved(tmp_path / "1", **unlabeled))
    mixed = {"label": (datasets.Value("string"), ["1", "2", "three"] * 10)}
    with pytest.raises(UserError, match=r"some labels are numbers \(1, 2\)"):
        read(saved(tmp_path / "2", **mixed))
    numbers = {"label": (datasets.Value("int64"), [10, 9, 2] * 10)}
    assert read(saved(tmp_path / "3", **numbers)).classes == ["2", "9", "10"]


def test_a_row_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": LABELS["label"][0]})
    images = [{"bytes": encoded(i) if i != 4 else b"no image", "path": None} for i in range(30)]
    made = datasets.Dataset.from_dict({"image": images, "label": [0, 2] * 15}, features)
    made.save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(UserError, match="train/4 cannot be decoded: "):
        read(f"hf:{tmp_path / 'saved'}")
    assert read(f"hf:{tmp_path / 'saved'}", corrupt="skip").skipped == ["train/4"]


def test_what_cannot_be_had_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        patch.setattr(time, "sleep", lambda seconds: pytest.fail(f"waits {seconds} s to try again"))
        with pytest.raises(
            UserError, match=r"^hf:beans is not a folder, and cannot be downloaded \(127"
        ):
            read("hf:beans")
    with pytest.raises(UserError, match=r"^hf:: name a data set of the Hub, or a folder"):
        read("hf:")
    root = tmp_path / "scripted"
    root.mkdir()
    (root / "scripted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(UserError, match="cannot be loaded"):
        read(f"hf:{root}")
    assert not (tmp_path / "ran").exists(), "no code of a data set is run"
    lines = capfd.readouterr().err.splitlines()
    assert all(line.startswith("reading ") for line in lines), "no progress bars or warnings"


def test_the_library_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "datasets":
            raise ImportError(name)
        return original(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install 'ecanet\[hf\]'"):
        read("hf:beans")


def test_names_are_absolute_where_they_are_paths(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    assert absolute_data("hf:birds") == f"hf:{folder}"
    assert absolute_data("birds") == str(folder)
    for name in ("hf:owner/name", "torchvision/DTD", "cifar10"):
        assert absolute_data(name) == name
