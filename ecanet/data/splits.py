"""What a data set's images are used for: training, choices, the test; and what is held out where splits lack.

Where a data set brings splits, a validation split is drawn from train by a seed that never changes. Where it
brings none, or images belong to groups, what is held out follows from the names alone: a name's hash is its
place between 0 and 1, and images in the first fifth, say, are the test split. Images that are added later
move no others; but in a class so small that the hash would leave it without one, the name that comes first
is held out, and may be replaced by another.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeAlias

import torch

from ecanet.data.dataset import Split, check_fraction, hold_out
from ecanet.data.stream import ImageList
from ecanet.errors import UserError, counted, first_of

Images: TypeAlias = Split | ImageList

VALIDATION, TEST = 0.1, 0.2
_WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
SPLITS = tuple(_WORDS)


def split_named(word: str) -> str | None:
    """Return which split a word means, in lower or upper case: train, val, test or None."""
    return next((split for split, words in _WORDS.items() if word.lower() in words), None)


@dataclass(frozen=True)
class Listing:
    """The images of a data set as it brings them."""

    where: str
    """The data set in messages."""
    name: str
    classes: list[str]
    splits: dict[str, Images]
    """By train, val and test; without splits, all images are in train."""
    groups: dict[str, str] = field(default_factory=dict)
    """The group of each image by name, where images belong to groups."""
    labels_apart: bool = False
    """Whether labels and splits stand beside the files and not in their names, and so may change alone."""
    content: str = ""
    """Hash of the images, where they are in memory already."""

    @property
    def in_memory(self) -> bool:
        """Whether the images are arrays and no files."""
        return any(isinstance(images, Split) for images in self.splits.values())

    @property
    def left_out(self) -> list[str]:
        """What else was found and is no image."""
        return [
            name for images in self.splits.values() if isinstance(images, ImageList)
            for name in images.left_out
        ]  # fmt: skip

    def __len__(self) -> int:
        return sum(map(len, self.splits.values()))


class Division(NamedTuple):
    """The images of a run."""

    train: Images
    val: Images
    test: Images | None
    test_fraction: float | None
    """Share of the images that was held out as the test split, if it was."""
    identity: object
    """Differs where the same images are divided in another way."""
    notices: list[str]
    """Lines on how the images were divided, and on classes without images in a split."""


def divide(
    listing: Listing,
    splits: dict[str, Images],
    *,
    validation: float | None = None,
    test: float | None = None,
    alone: bool = False,
) -> Division:
    """Return what the images are used for, and hold out what is missing.

    val/ beside test/ is the validation split. Otherwise ``validation`` is held out of train, and the other
    split is the test split; val/ without test/ is the validation split if ``validation`` is 0, and then
    there is no test split. With train alone, ``test`` of it is held out first.

    Args:
        listing: of the data set.
        splits: its splits, listed or loaded.
        validation: fraction of train; by default 0.1, and 0 for val/ without test/ if ``alone``.
        test: fraction of all images, where no split is given; by default 0.2.
        alone: for a single run.

    Raises:
        UserError: there is nothing to train on, to choose by or to test on; or a class or a group stands in
            the way.
    """
    where, groups = listing.where, listing.groups
    if "train" not in splits:
        raise UserError(
            f"{where} has no train split, only {' and '.join(splits)}: name one of them train"
        )
    _check_classes(listing, splits)
    check_groups(listing)
    train, val, tested = splits["train"], splits.get("val"), splits.get("test")
    whole = val is None and tested is None
    if validation is None:
        validation = 0.0 if alone and val is not None and tested is None else VALIDATION
    notices, of_test = [], ""
    if whole:
        test = TEST if test is None else test
        train, tested = _held_out_by_name(listing, train, test, "test", leave=2)
        of_test = f"about {test:g} of all for the test ({counted(len(tested), 'image')}), "
    elif test is not None:
        raise UserError(f"--test {test:g}: {where} has its own splits, so leave it out")
    elif tested is None and validation:
        val, tested = None, val
    held: object = None
    if val is None:
        held = validation
        if not validation:
            raise UserError(
                f"--validation 0: {where} has no val/ to choose by; give a fraction of train"
            )
        if whole or groups:
            train, val = _held_out_by_name(listing, train, validation, "validation", leave=1)
            notices.append(
                f"held out by a hash of each image's {'group' if groups else 'name'}: {of_test}"
                f"about {validation:g} of {'the rest' if whole else 'train'} for validation ({len(val):,}); "
                f"{len(train):,} remain in train"
            )
        else:
            kept, drawn = hold_out(torch.as_tensor(train.labels), validation, listing.classes)
            train, val = train.subset(kept.tolist()), train.subset(drawn.tolist())
    parts = {"train": train, "validation": val, "test": tested}
    if whole or groups or listing.labels_apart:
        held = (held, test, _digest(parts.values()))
    notices += _absent(listing.classes, parts)
    if deeper := _folders_in_classes(listing):
        notices.append(deeper)
    return Division(train, val, tested, test, held, notices)


def _check_classes(listing: Listing, splits: Mapping[str, Images]) -> None:
    """Refuse a data set of one class, and classes that are in another split and not in train."""
    classes = listing.classes
    if len(classes) < 2:
        deeper = _folders_in_classes(listing)
        raise UserError(
            f"{listing.where} holds one class, {first_of(classes, 1)!r}: at least two are needed"
            + (f"; {deeper}" if deeper else "")
        )
    trained = present(splits["train"])
    for split, images in splits.items():
        unknown = [classes[label] for label in sorted(present(images) - trained)]
        if unknown:
            raise UserError(
                f"{listing.where}: train has no image of {first_of(unknown, 5)}, of which {split} has some: "
                f"add images, or remove what is not in train from {split}"
            )
    without = [classes[label] for label in sorted(present(listing.splits["train"]) - trained)]
    if without:
        raise UserError(
            f"{listing.where}: no image of {first_of(without, 5)} in train can be decoded: add some"
        )


def _folders_in_classes(listing: Listing) -> str:
    """Return a line on what lies in the class folders if no image lies directly in one; empty otherwise."""
    train = listing.splits["train"]
    if not isinstance(train, ImageList):
        return ""
    inside: dict[str, set[str]] = {}
    for file, label in zip(train.files, train.labels, strict=True):
        parts = file.split("/")
        # Without the folder of the split, if there is one.
        depth = 0 if parts[0] == listing.classes[label] else 1
        if parts[depth : depth + 1] != [listing.classes[label]] or len(parts) < depth + 3:
            return ""
        inside.setdefault("/".join(parts[: depth + 1]), set()).add(parts[depth + 1])
    # A single folder in each is a known layout: train/n01443537/images.
    most = max(inside, key=lambda name: len(inside[name]), default="")
    if len(inside.get(most, ())) < 2:
        return ""
    return (
        f"no class folder has images of its own: {most} has the folders "
        f"{first_of(sorted(inside[most]), 3)}; if those are the classes, give {listing.where}/{most}"
    )


def check_groups(listing: Listing) -> None:
    """Refuse a group that is in two splits: what is learned of it in one would be known in the other."""
    splits_of: dict[str, set[str]] = {}
    for split, images in listing.splits.items():
        for name in images.files:
            if name in listing.groups:
                splits_of.setdefault(listing.groups[name], set()).add(split)
    torn = [
        f"{group} ({', '.join(sorted(found))})"
        for group, found in sorted(splits_of.items())
        if len(found) > 1
    ]
    if torn:
        raise UserError(
            f"{listing.where}: {counted(len(torn), 'group')} in more than one split: {first_of(torn, 5)}. "
            "Move all images of a group into one split"
        )


def grouped(listing: Listing, pattern: str) -> Listing:
    """Return the data set with images grouped by what ``pattern`` finds in their names: its first group if
    it has one that takes part, else the whole match. The folder of a split is no part of the name.

    Raises:
        UserError: it is no pattern, or is not found in some of the names.
    """
    try:
        search = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--group-by {pattern}: {error}") from None
    groups, without = {}, []
    for split, images in listing.splits.items():
        for name in images.files:
            first, _, rest = name.partition("/")
            match = search.search(rest if split_named(first) == split else name)
            if match is None:
                without.append(name)
            else:
                groups[name] = next(filter(None, match.groups()), match[0])
    if without:
        part = pattern if search.groups else f"({pattern})"
        raise UserError(
            f"--group-by {pattern}: not found in {len(without):,} of {len(listing):,} names: "
            f"{first_of(without, 5)}. Each name needs a group; '.*?(?:{part})|.*' makes one of each of these"
        )
    return replace(listing, groups=groups)


def _held_out_by_name(
    listing: Listing, images: Images, fraction: float, purpose: str, *, leave: int
) -> tuple[Images, Images]:
    """Hold out about ``fraction`` of the images, or of their groups, by the hash of the name.

    Of each class at least one unit is held out and one stays, if it has two; and ``leave`` stay, if it has
    more than that. A unit is a group, or an image without one.

    Returns:
        The images that stay, and those held out.

    Raises:
        UserError: the fraction is out of range, or nothing can be held out.
    """
    check_fraction(purpose, fraction)
    units = [listing.groups.get(name, name) for name in images.files]
    classes_of: dict[str, set[int]] = {}
    for unit, label in zip(units, _labels(images), strict=True):
        classes_of.setdefault(unit, set()).add(label)
    place = {unit: _place(purpose, unit) for unit in classes_of}
    units_of: dict[int, list[str]] = {}
    for unit in sorted(place, key=place.__getitem__):
        for label in classes_of[unit]:
            units_of.setdefault(label, []).append(unit)
    most = {
        label: len(members) - (leave if len(members) > leave else 1)
        for label, members in units_of.items()
    }
    held = {unit for unit in place if place[unit] < fraction}
    count = Counter(label for unit in held for label in classes_of[unit])
    for label in sorted(units_of):
        for unit in reversed(units_of[label]):
            if count[label] > most[label] and unit in held:
                held.remove(unit)
                count.subtract(classes_of[unit])
    for label in sorted(units_of):
        for unit in units_of[label]:
            if count[label]:
                break
            if all(count[other] < most[other] for other in classes_of[unit]):
                held.add(unit)
                count.update(classes_of[unit])
    if not held:
        raise UserError(
            f"{listing.where}: no class has two {'groups' if listing.groups else 'images'}, one to train on "
            f"and one for {purpose}: add some"
        )
    chosen = [unit in held for unit in units]
    stay, drawn = ([i for i, out in enumerate(chosen) if out == wanted] for wanted in (False, True))
    return images.subset(stay), images.subset(drawn)


def _place(purpose: str, name: str) -> float:
    """Return where a name stands from 0 to 1; the same on every system, though some decompose accents."""
    text = f"{purpose}/{unicodedata.normalize('NFC', name)}".encode(errors="surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") / 2**64


def _labels(images: Images) -> list[int]:
    return images.labels if isinstance(images, ImageList) else images.labels.tolist()


def present(images: Images) -> set[int]:
    """Return the classes that occur among images."""
    return set(_labels(images))


def _absent(classes: list[str], parts: Mapping[str, Images | None]) -> list[str]:
    """Return a line for each split in which classes have no image."""
    lines = []
    for part, images in parts.items():
        if images is not None:
            there = present(images)
            names = [name for label, name in enumerate(classes) if label not in there]
            if names:
                lines.append(
                    f"{len(names)} of {len(classes)} classes have no image in {part}, so nothing "
                    f"is measured for them there: {first_of(names, 5)}"
                )
    return lines


def _digest(parts: Iterable[Images | None]) -> str:
    """Return a hash of which images are in which part, and of what they show."""
    found = hashlib.blake2b(digest_size=16)
    for images in parts:
        if images is not None:
            for name, label in zip(images.files, _labels(images), strict=True):
                found.update(f"{name} {label}\n".encode(errors="surrogateescape"))
        found.update(b"\0")
    return found.hexdigest()
