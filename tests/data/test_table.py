"""Data sets in tables: columns, labels, splits, and every complaint."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from ecanet.config import ClassificationSettings, EvaluateSettings
from ecanet.data import Data, load_data
from ecanet.data.columns import sorted_classes
from ecanet.data.listing import list_evaluated
from ecanet.data.read import read_data
from ecanet.data.splits import Listing
from ecanet.data.table import list_table
from ecanet.errors import UserError

Write = Callable[..., Path]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Forty images, 00.png to 39.png, in a folder of their own."""
    (tmp_path / "photos").mkdir()
    random = np.random.default_rng(0)
    for i in range(40):
        pixels = random.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i:02}.png")
    return tmp_path


def write(root: Path, lines: list[str], name: str = "table.csv") -> Path:
    file = root / name
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def rows(count: int = 40, *others: Callable[[int], str]) -> list[str]:
    return [
        ",".join([f"photos/{i:02}.png", "cat" if i % 2 else "dog", *(other(i) for other in others)])
        for i in range(count)
    ]


def read(file: Path, **settings: object) -> Data:
    return read_data(ClassificationSettings(data=str(file), **settings))  # type: ignore[arg-type]


def labels_of(listing: Listing, split: str = "train") -> list[str]:
    return [listing.classes[label] for label in listing.splits[split].labels]


@pytest.mark.parametrize("storage", ["memory", "stream"])
def test_a_table_without_splits(root: Path, storage: str) -> None:
    file = write(root, ["path,label", *rows()])
    data = read(file, storage=storage)
    assert (data.name, data.classes) == ("table", ["cat", "dog"])
    assert "held out by a hash of each image's name" in data.notices[0]
    assert sum(len(data.names(split)) for split in ("train", "val", "test")) == 40
    for split in ("train", "val", "test"):
        for index, name in enumerate(data.names(split)):
            stored = np.array(Image.open(root / name))
            assert np.array_equal(data.image(split, index).permute(1, 2, 0), stored)
            label = data.classes[data.images_of(split).labels[index]]
            assert label == ("cat" if int(name[-6:-4]) % 2 else "dog")


@pytest.mark.parametrize("storage", ["memory", "stream"])
def test_the_fingerprint_follows_labels_and_splits(root: Path, storage: str) -> None:
    def fingerprint(lines: list[str]) -> str:
        return read(write(root, lines), storage=storage).fingerprint

    def words(i: int) -> str:
        return "test" if i > 30 else "train"

    table = ["path,label,split", *rows(40, words)]
    first = fingerprint(table)
    assert fingerprint(table) == first
    assert fingerprint([*table[:-1], table[-1].replace("cat", "dog")]) != first
    assert fingerprint([*table[:-1], table[-1].replace("test", "train")]) != first
    assert fingerprint([line.rpartition(",")[0] for line in table]) != first


def test_splits_of_a_table(root: Path) -> None:
    def split(i: int) -> str:
        return ["train", "Training", "valid", "TEST"][i // 10]

    file = write(root, ["file,class,subset", *rows(40, split)])
    data = read(file)
    assert [len(data.images_of(split)) for split in ("train", "val", "test")] == [20, 10, 10]
    assert data.names("val") == [f"photos/{i}.png" for i in range(20, 30)]
    assert not data.notices
    name, images = list_evaluated(str(file), EvaluateSettings(split="test"))
    assert (name, images.files) == ("test", data.names("test"))
    assert list_evaluated(str(file), EvaluateSettings())[0] == "val"


def test_columns_are_found_or_named(root: Path) -> None:
    for head in ("image,target", "Filename,Label", "filepath,class", "file_name,category"):
        assert labels_of(list_table(write(root, [head, *rows()])))[:2] == ["dog", "cat"]
    file = write(root, ["where,what", *rows()])
    for columns in (["path=where", "label=what"], ["label=what", "path = where"]):
        assert len(list_table(file, columns)) == 40
    with pytest.raises(UserError, match=r"which column holds the path\? .* one of where, what"):
        list_table(file)
    with pytest.raises(UserError, match=r"has no such column. Did you mean what"):
        list_table(file, ["path=where", "label=wha"])
    for wrong in ("species", "kind=what", "=what"):
        with pytest.raises(UserError, match="give path=NAME, label=NAME, split=NAME, group=NAME"):
            list_table(file, [wrong])
    file = write(root, ["path,label,target", *rows(40, str)])
    with pytest.raises(UserError, match=r"label and target may both hold the label: .*label=label"):
        list_table(file)
    assert len(list_table(file, ["label=target"]).classes) == 40


def test_columns_that_cannot_be_told_apart(root: Path) -> None:
    file = write(root, ["path,label", *rows()])
    with pytest.raises(UserError, match="the column path cannot hold label and path"):
        list_table(file, ["label=path"])
    file = write(root, ["path,label,label", *rows(40, str)])
    with pytest.raises(UserError, match="more than one column is called label: rename"):
        list_table(file)


def test_values_of_no_use_in_a_parquet_file(root: Path) -> None:
    def complaint(path: object, label: object) -> str:
        pyarrow.parquet.write_table(
            pa.table({"path": [path], "label": [label]}), root / "t.parquet"
        )
        with pytest.raises(UserError) as caught:
            list_table(root / "t.parquet")
        return str(caught.value)

    image = (root / "photos/00.png").read_bytes()
    struct = complaint({"bytes": image, "path": "00.png"}, "cat")
    assert "struct<bytes: binary, path: string>, no paths" in struct
    assert f"--data hf:{root} reads the Parquet files of the folder" in struct
    assert complaint(image, "cat").endswith("values of the type binary, no paths")
    assert "no labels" in complaint("photos/00.png", ["cat"])


def test_a_column_of_folds_is_refused_and_can_be_ignored(root: Path) -> None:
    file = write(root, ["path,label,fold", *rows(40, lambda i: str(i % 5))])
    with pytest.raises(
        UserError, match=r"unknown splits: '0', '1', '2', '3', '4'\. .*--columns split="
    ):
        list_table(file)
    assert len(list_table(file, ["split="]).splits["train"]) == 40
    assert len(load_data(file, columns=["split="]).train) < 40


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csvs_as_people_write_them(root: Path, delimiter: str) -> None:
    lines = [
        "\ufeffpath,label",
        '"photos/00.png"," cat "',
        "photos\\01.png,dög",
        "./photos/02.png,cat",
    ]
    lines.append(f"{root / 'photos' / '03.png'},dög")
    file = write(root, [line.replace(",", delimiter) for line in lines], "t.tsv")
    listing = list_table(file)
    assert listing.splits["train"].files == [f"photos/{i:02}.png" for i in range(4)]
    assert labels_of(listing) == ["cat", "dög", "cat", "dög"]


def test_parquet_with_numbers(root: Path) -> None:
    table = pa.table({
        "path": [f"photos/{i:02}.png" for i in range(12)],
        "label": pa.array([10.0, 9.0, 1.0] * 4),
        "more": [[1]] * 12,
    })  # fmt: skip
    pa.parquet.write_table(table, root / "t.parquet")
    listing = list_table(root / "t.parquet")
    assert listing.classes == ["1", "9", "10"]
    assert labels_of(listing)[:3] == ["10", "9", "1"]


def test_labels_in_order() -> None:
    assert sorted_classes(["10", "9", "9", "-1"], "") == (["-1", "9", "10"], [2, 1, 1, 0])
    assert sorted_classes(["b", "a10", "a9"], "")[0] == ["a10", "a9", "b"]
    assert sorted_classes(["002", "010", "001"], "")[0] == ["001", "002", "010"]
    with pytest.raises(UserError, match="01 and 1 are the same number"):
        sorted_classes(["1", "01"], "")


def test_groups_from_a_column(root: Path) -> None:
    def patient(i: int) -> str:
        return f"p{i // 4}"

    file = write(root, ["path,label,patient", *rows(40, patient)])
    data = read(file, columns=["group=patient"])
    found = [
        {int(name[-6:-4]) // 4 for name in data.names(split)} for split in ("train", "val", "test")
    ]
    assert sum(map(len, found)) == 10
    assert "hash of each image's group" in data.notices[0]
    with pytest.raises(UserError, match=r"--group-by and --columns group=\.\.\.: give only one"):
        read(file, columns=["group=patient"], group_by="x")

    def split(i: int) -> str:
        return "test" if i > 33 else "train"

    file = write(root, ["path,label,patient,split", *rows(40, patient, split)])
    with pytest.raises(UserError, match=r"1 group in more than one split: p8 \(test, train\)"):
        read(file, columns=["group=patient"])
    with pytest.raises(UserError, match=r"1 group in more than one split: p8 \(test, train\)"):
        list_evaluated(str(file), EvaluateSettings(columns=["group=patient"]))
    with pytest.raises(UserError, match=r"1 group in more than one split: 3 \(test, train\)"):
        read(file, group_by=r"/(\d)")
    file = write(root, ["path,label,patient", *rows(40, lambda i: "" if i == 3 else "p")])
    with pytest.raises(UserError, match=r"1 image without a group: photos/03\.png"):
        read(file, columns=["group=patient"])


def complaint(file: Path) -> str:
    with pytest.raises(UserError) as caught:
        read(file)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_files_are_counted_and_the_first_named(root: Path) -> None:
    for i in range(30, 40):
        (root / f"photos/{i}.png").unlink()
    message = complaint(write(root, ["path,label", *rows()]))
    assert message.endswith(
        f"10 of 40 files are missing in {root}: photos/30.png, photos/31.png, photos/32.png, "
        "photos/33.png, photos/34.png and 5 more"
    )


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("photos/05.png,7", r"some labels are numbers \(7\) and others are names \(cat, dog\)"),
        (
            "https://a.org/1.png,cat",
            r"1 of 41 paths are URLs: https://a\.org/1\.png\. Download",
        ),
        ("photos/05.png,", "1 of 41 labels are empty, in rows 41"),
        ("photos/05.png,  ", "1 of 41 labels are empty"),
        (
            "photos/05.png,dog",
            r"1 row of an image that has another label.*: photos/05\.png \(label\)",
        ),
        ("./photos//05.png,dog", r"photos/05\.png \(label\)"),
        (
            "photos/05.png",
            "cannot be read as a table: CSV parse error: Row #42: Expected 2 columns, got 1",
        ),
    ],
)
def test_rows_that_are_wrong(root: Path, line: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        read(write(root, ["path,label", *rows(), line]))


def test_an_image_in_two_splits_is_refused(root: Path) -> None:
    table = ["path,label,split", *rows(40, lambda i: "train"), "photos/04.png,dog,test"]
    assert r"photos/04.png (split)" in complaint(write(root, table))


def test_a_row_that_is_repeated_counts_once(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert len(list_table(write(root, ["path,label", *rows(), *rows(3)]))) == 40
    assert "3 rows repeated and counted once" in caplog.text


def test_classes_that_are_absent_from_a_split(root: Path) -> None:
    def split(i: int) -> str:
        return "test" if i > 30 and i % 2 else "train"

    data = read(write(root, ["path,label,split", *rows(40, split)]))
    assert data.notices == [
        "1 of 2 classes have no image in test, so nothing is measured for them there: dog"
    ]
    table = ["path,label,split", *rows(39, lambda i: "train"), "photos/39.png,bird,test"]
    assert "train has no image of bird, of which test has some" in complaint(write(root, table))
    assert "has no train split, only val and test" in complaint(
        write(root, ["path,label,split", *rows(40, lambda i: "val" if i % 3 else "test")])
    )


def test_files_that_are_no_tables(root: Path) -> None:
    assert "cannot be read as a table" in complaint(write(root, [""]))
    assert "has no rows" in complaint(write(root, ["path,label"]))
    assert "cannot be read as a table" in complaint(root / "none.csv")
    for name, content in (
        ("t.csv", b"path,label\n\xff\xfe,a\n"),
        ("t.parquet", b"PAR1"),
        ("e.csv", b""),
    ):
        (root / name).write_bytes(content)
        complaint(root / name)
    assert "one class, 'cat'" in complaint(write(root, ["path,label", "photos/01.png,cat"]))
