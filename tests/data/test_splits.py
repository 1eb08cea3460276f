"""What is held out by name, groups, and where splits come in any combination."""

from __future__ import annotations

import logging
import random
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ecanet.config import ClassificationSettings, EvaluateSettings, Splitting
from ecanet.data import Data, load_data
from ecanet.data.listing import list_evaluated, list_images
from ecanet.data.read import read_data
from ecanet.data.splits import Listing, divide, grouped
from ecanet.data.stream import ImageList
from ecanet.errors import UserError


def listing(files: list[str], groups: dict[str, str] | None = None, **others: list[str]) -> Listing:
    """Return a data set of files that are not there: their classes are their folders."""
    splits = {"train": files, **others}
    classes = sorted({name.split("/")[0] for names in splits.values() for name in names})
    return Listing(
        "here", "here", classes,
        {
            split: ImageList(Path(), names, [classes.index(n.split("/")[0]) for n in names], classes)
            for split, names in splits.items()
        },
        groups or {},
    )  # fmt: skip


def named(counts: dict[str, int]) -> list[str]:
    return [f"{name}/{index}.jpg" for name, count in counts.items() for index in range(count)]


def parts(made: Listing, **options: object) -> tuple[set[str], set[str], set[str]]:
    found = divide(made, made.splits, **options)  # type: ignore[arg-type]
    assert found.test is not None
    train, val, test = (set(images.files) for images in (found.train, found.val, found.test))
    assert train | val | test == {name for part in made.splits.values() for name in part.files}
    assert len(train) + len(val) + len(test) == len(made)
    return train, val, test


def test_fractions_are_about_those_asked_for() -> None:
    made = listing(named({"a": 2000, "b": 1000}))
    _, val, test = parts(made)
    assert len(test) == pytest.approx(600, abs=60)
    assert len(val) == pytest.approx(240, abs=45)
    _, val, test = parts(made, validation=0.5, test=0.3)
    assert len(test) == pytest.approx(900, abs=75)
    assert len(val) == pytest.approx(1050, abs=75)


def test_the_split_follows_from_names_alone() -> None:
    files = named({"a": 300, "b": 100})
    whole = parts(listing(files))
    random.Random(0).shuffle(files)
    assert parts(listing(files)) == whole
    # Images that are added move none, whatever the fraction of validation.
    some = parts(listing(sorted(files)[::2]))
    assert all(few <= many for few, many in zip(some, whole, strict=True))
    assert parts(listing(files), validation=0.3)[2] == whole[2]
    assert parts(listing(files), test=0.1)[2] < whole[2]


def test_the_split_of_a_name_is_the_same_for_ever() -> None:
    """Or studies that were begun before could not be extended."""
    _, val, test = parts(listing(named({"a": 20, "b": 20})))
    assert sorted(test) == [
        "a/12.jpg",
        "a/15.jpg",
        "a/18.jpg",
        "a/3.jpg",
        "a/4.jpg",
        "a/6.jpg",
        "b/1.jpg",
        "b/12.jpg",
        "b/16.jpg",
        "b/8.jpg",
        "b/9.jpg",
    ]
    assert sorted(val) == ["a/0.jpg", "a/19.jpg", "b/18.jpg", "b/4.jpg"]


def test_accents_are_the_same_however_they_are_stored() -> None:
    files = [f"{name}/é{index}.jpg" for name in "ab" for index in range(50)]
    decomposed = [unicodedata.normalize("NFD", name) for name in files]
    for one, other in zip(parts(listing(files)), parts(listing(decomposed)), strict=True):
        assert one == {unicodedata.normalize("NFC", name) for name in other}


@pytest.mark.parametrize("count", range(3, 12))
def test_every_class_of_three_is_in_every_split(count: int) -> None:
    made = listing(named({f"class{i}": count for i in range(40)}))
    for part in parts(made):
        assert {name.split("/")[0] for name in part} == set(made.classes)


def test_classes_of_one_and_two_images_are_named() -> None:
    made = listing(named({"many": 30, "one": 1, "two": 2, "three": 3}))
    found = divide(made, made.splits)
    assert found.test is not None

    def counts(images: ImageList) -> Counter[str]:
        return Counter(name.split("/")[0] for name in images.files)

    train, val, test = (counts(part) for part in (found.train, found.val, found.test))  # type: ignore[arg-type]
    assert (train["one"], train["two"], train["three"]) == (1, 1, 1)
    assert (val["one"], val["two"], val["three"]) == (0, 0, 1)
    assert (test["one"], test["two"], test["three"]) == (0, 1, 1)
    assert found.notices[1:] == [
        "2 of 4 classes have no image in validation, so nothing is measured for them there: one, two",
        "1 of 4 classes have no image in test, so nothing is measured for them there: one",
    ]
    assert found.notices[0].startswith(
        "held out by a hash of each image's name: about 0.2 of all for the test ("
    )
    with pytest.raises(
        UserError, match="no class has two images, one to train on and one for test"
    ):
        parts(listing(named({"a": 1, "b": 1})))


def groups_of(made: Listing, pattern: str) -> dict[str, str]:
    return grouped(made, pattern).groups


def test_groups_stay_together() -> None:
    files = [f"{'ab'[i % 2]}/p{i // 6:02}_{i}.jpg" for i in range(300)]
    made = listing(files)
    made = listing(files, groups_of(made, r"p(\d+)_"))
    found = parts(made)
    patients = [{name[2:5] for name in part} for part in found]
    assert sum(map(len, patients)) == 50
    assert all(patients)
    # A patient who comes to other images changes nothing: neither do images that are added.
    few = [name for name in files if int(name.split("_")[1][:-4]) % 6 < 4]
    again = parts(listing(few, groups_of(listing(few), r"p(\d+)_")))
    assert all(some <= many for some, many in zip(again, found, strict=True))


def test_what_a_pattern_finds_is_the_group() -> None:
    made = listing(["a/x1_p7.jpg", "a/p8-2.jpg", "b/p7.jpg"])
    assert list(groups_of(made, r"p\d").values()) == ["p7", "p8", "p7"]
    assert list(groups_of(made, r"p(\d)").values()) == ["7", "8", "7"]
    assert list(groups_of(made, r"^\w/x|p(\d)").values()) == ["a/x", "8", "7"]
    made = listing(["a/p1.jpg"], val=["a/p1.jpg"])
    with pytest.raises(UserError, match=r"p1 \(train, val\)"):
        divide(Listing("here", "", ["a", "b"], made.splits, groups_of(made, r"p\d")), made.splits)


def test_names_without_a_group_are_refused_with_a_pattern_that_takes_them() -> None:
    files = named({"a": 8, "b": 8}) + [f"a/p{i}_{j}.jpg" for i in range(5) for j in range(2)]
    for pattern, count in ((r"p\d_", 16), (r"p(\d)_", 16), ("nothing", 26)):
        with pytest.raises(
            UserError, match=rf"not found in {count} of 26 names: a/0.jpg, a/1"
        ) as caught:
            groups_of(listing(files), pattern)
        wider = str(caught.value).split("'")[1]
        found = groups_of(listing(files), wider)
        assert len(set(found.values())) == 26 - (count == 16) * 5
    with pytest.raises(UserError, match=r"--group-by \(: "):
        groups_of(listing(files), "(")


def test_a_group_in_two_splits_is_refused() -> None:
    train = [f"{c}/p{i}.jpg" for c in "ab" for i in range(9)]
    made = listing(train, test=["a/p3.jpg", "b/p20.jpg", "b/p8.jpg"])
    made = listing(train, groups_of(made, r"p\d+"), test=["a/p3.jpg", "b/p20.jpg", "b/p8.jpg"])
    with pytest.raises(
        UserError, match=r"2 groups in more than one split: p3 \(test, train\), p8 "
    ):
        divide(made, made.splits)


def test_validation_is_held_out_of_train_by_groups() -> None:
    train = [f"{c}/p{i // 4}_{i}.jpg" for c in "ab" for i in range(80)]
    made = listing(train, test=["a/p99_0.jpg"])
    made = listing(train, groups_of(made, r"p\d+"), test=["a/p99_0.jpg"])
    found = divide(made, made.splits)
    patients = [{name[2:5] for name in part.files} for part in (found.train, found.val)]
    assert not patients[0] & patients[1]
    assert 1 <= len(patients[1]) <= 5


# On disk


Draw = Callable[..., Path]


@pytest.fixture
def draw(tmp_path: Path) -> Draw:
    def draw(folders: str, count: int = 10, side: int = 8) -> Path:
        root = tmp_path / "images"
        random = np.random.default_rng(0)
        for folder in folders.split():
            for name in "ab":
                (root / folder / name).mkdir(parents=True, exist_ok=True)
                for i in range(count):
                    pixels = random.integers(0, 255, (side, side, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(root / folder / name / f"{i}.png")
        return root

    return draw


def read(root: Path, storage: str, alone: bool = False, **settings: object) -> Data:
    values = {"data": str(root), "storage": storage, **settings}
    return read_data(ClassificationSettings(**values), alone=alone)  # type: ignore[arg-type]


@pytest.mark.parametrize("folders", [".", "train"])
@pytest.mark.parametrize("storage", ["memory", "stream"])
def test_a_folder_without_splits(draw: Draw, folders: str, storage: str) -> None:
    root = draw(folders, 30)
    data = read(root, storage)
    assert sum(len(data.names(split)) for split in ("train", "val", "test")) == 60
    assert set(data.names("test")) <= {
        path.relative_to(root).as_posix() for path in root.rglob("*.png")
    }
    assert data.test_fraction == 0.2
    assert f"0.2 of all for the test ({len(data.test)} images)" in data.notices[0]  # type: ignore[arg-type]
    other = read(root, "stream" if storage == "memory" else "memory")
    for split in ("train", "val", "test"):
        assert data.names(split) == other.names(split)
    name = data.names("test")[3]
    assert np.array_equal(data.image("test", 3).permute(1, 2, 0), np.array(Image.open(root / name)))
    with pytest.raises(UserError, match="--validation 0"):
        read(root, storage, validation=0.0)
    fingerprints = {
        read(root, storage, **options).fingerprint  # type: ignore[arg-type]
        for options in (
            {},
            {"test": 0.3},
            {"validation": 0.2},
            {"group_by": r"[^/]*$"},
            {"group_by": r"\d"},
        )
    }
    assert len(fingerprints) == 5


@pytest.mark.parametrize(
    ("folders", "alone", "sizes"),
    [
        ("Train Valid", True, (20, 20, None)),
        ("train validation", False, (18, 2, 20)),
        ("TRAIN TEST", True, (18, 2, 20)),
        ("Training valid Testing", False, (20, 20, 20)),
    ],
)
def test_splits_by_their_other_names(
    draw: Draw, folders: str, alone: bool, sizes: tuple[int | None, ...]
) -> None:
    root = draw(folders)
    data = read(root, "memory", alone)
    assert tuple(part and len(part) for part in (data.train, data.val, data.test)) == sizes
    split, images = list_evaluated(str(root), EvaluateSettings())
    assert split == ("val" if data.test is None or "alid" in folders else "test")
    assert len(images) == 20


def test_a_fraction_for_a_test_split_that_is_there_is_refused(draw: Draw) -> None:
    for folders in ("train test", "val"):
        with pytest.raises(UserError, match=r"--test 0\.2: .* has its own splits"):
            read(draw(folders), "memory", test=0.2)
    with pytest.raises(UserError, match=r"--test 1\.0: give a number above 0 to below 1"):
        ClassificationSettings(test=1.0)


def test_what_is_evaluated_of_a_folder_without_splits(
    draw: Draw, caplog: pytest.LogCaptureFixture
) -> None:
    root = draw(".", 30)
    data = read(root, "stream", test=0.4)
    caplog.set_level(logging.INFO)
    split, images = list_evaluated(str(root), EvaluateSettings(test=0.4))
    assert (split, images.files) == ("test", data.names("test"))
    assert "held out by a hash" in caplog.text
    for name in ("train", "val"):
        found = list_evaluated(str(root), EvaluateSettings(test=0.4, split=name))
        assert found[1].files == data.names(name)
    assert len(list_evaluated(str(root), EvaluateSettings(split="all"))[1]) == 60
    with pytest.raises(UserError, match="no split other: give --split train or val or test"):
        list_evaluated(str(root), EvaluateSettings(split="other"))


def test_other_folders_beside_those_of_splits_are_reported(draw: Draw) -> None:
    root = draw("train test")
    (root / "notes").mkdir()
    (root / ".git").mkdir()
    assert read(root, "memory").left_out == ["notes"]


def test_folders_inside_the_classes_are_named_where_no_class_has_images_of_its_own() -> None:
    files = [
        "a/cat/0.jpg",
        "a/cat/1.jpg",
        "a/dog/0.jpg",
        "b/cat/0.jpg",
        "b/cat/1.jpg",
        "b/cat/2.jpg",
    ]

    def notices(files: list[str], classes: str = "ab", split: str = "") -> list[str]:
        labels = [classes.index(file[0]) for file in files]
        images = ImageList(Path(), [split + file for file in files], labels, list(classes))
        made = Listing("photos", "photos", list(classes), {"train": images})
        found = divide(made, made.splits, test=0.3)
        return [line for line in found.notices if "of its own" in line]

    line = (
        "no class folder has images of its own: {} has the folders cat, dog; if those are the classes, "
        "give photos/{}"
    )
    assert notices(files) == [line.format("a", "a")]
    assert notices(files, split="training/") == [line.format("training/a", "training/a")]
    assert not notices([*files, "b/3.jpg"]), "images of its own"
    assert not notices([file.replace("dog", "cat") for file in files]), "one folder in each"
    with pytest.raises(
        UserError, match=r"holds one class, 'a': .*; if those are the classes, give photos/a"
    ):
        notices(files[:3], "a")


def test_load_data_takes_groups_and_fractions(draw: Draw) -> None:
    root = draw(".", 30)
    data = load_data(root, test=0.5, group_by=r"(\d)\.")
    groups = [{name[-5] for name in data.names(split)} for split in ("train", "val", "test")]
    assert all(group == name[-5] for name, group in data.groups.items())
    assert sum(map(len, groups)) == 10
    with pytest.raises(UserError, match=r"--columns: .* is not a table"):
        list_images(str(root), Splitting(columns=["path=x"]))
    with pytest.raises(UserError, match="--group-by: the images of digits have no names"):
        load_data("digits", group_by="x")
    shutil.rmtree(root / "b")
    with pytest.raises(UserError, match="holds one class, 'a'"):
        load_data(root)
