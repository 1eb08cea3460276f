"""Which column of a table is what, and how labels in words or numbers become classes."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from ecanet.errors import UserError, did_you_mean, first_of

# Names of columns by what they hold, in lower case; groups are named by the user alone.
_USUAL: Mapping[str, tuple[str, ...]] = {
    "path": ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img"),
    "label": ("label", "class", "target", "labels", "class_name", "category"),
    "split": ("split", "fold", "subset", "set"),
    "group": (),
}  # fmt: skip
_NUMBER = re.compile(r"[+-]?\d+(\.0*)?")


def choose_columns(there: Sequence[str], asked: Sequence[str], where: str) -> dict[str, str]:
    """Return which of the columns ``there`` holds what: path and label, and where there are such, split and
    group.

    Args:
        there: names of the columns.
        asked: ``path=file`` names one; ``split=`` leaves it out.
        where: the table in messages.

    Raises:
        UserError: one is missing or unknown, is meant to hold two things, or several could be meant.
    """
    if twice := [name for name, count in Counter(there).items() if count > 1]:
        raise UserError(
            f"{where}: more than one column is called {first_of(twice, 5)}: rename all but one"
        )
    found: dict[str, str] = {}
    for pair in asked:
        role, equals, name = (part.strip() for part in pair.partition("="))
        if role not in _USUAL or not equals:
            raise UserError(
                f"--columns {pair}: give {', '.join(f'{role}=NAME' for role in _USUAL)}"
            )
        if name and name not in there:
            raise UserError(
                f"--columns {pair}: {where} has no such column.{did_you_mean(name, there)}"
            )
        found[role] = name
    for role, usual in _USUAL.items():
        if role in found:
            continue
        names = [name for name in there if name.strip().lower() in usual]
        names.sort(key=lambda name: usual.index(name.strip().lower()))
        if len(names) > 1 and role != "split":
            raise UserError(
                f"{where}: the columns {' and '.join(names)} may both hold the {role}: "
                f"choose by --columns {role}={names[0]}"
            )
        if names:
            found[role] = names[0]
    for role in ("path", "label"):
        if not found.get(role):
            raise UserError(
                f"{where}: which column holds the {role}? Give --columns {role}=NAME, one of "
                f"{first_of(there, 8)}"
            )
    chosen = {role: name for role, name in found.items() if name}
    for name, count in Counter(chosen.values()).items():
        if count > 1:
            roles = " and ".join(role for role in chosen if chosen[role] == name)
            raise UserError(
                f"{where}: the column {name} cannot hold {roles}: name another by --columns"
            )
    return chosen


def sorted_classes(labels: Sequence[str], where: str) -> tuple[list[str], list[int]]:
    """Return the classes among ``labels``, numbers by value and names by alphabet, and each label's number.

    Numbers are whole: ``1.0``, as pandas writes it, is 1.

    Raises:
        UserError: a label is empty, some are numbers and others names, or a number is written in two ways.
    """
    if empty := [str(row) for row, label in enumerate(labels, 1) if not label]:
        raise UserError(
            f"{where}: {len(empty):,} of {len(labels):,} labels are empty, in rows {first_of(empty, 5)}: "
            "fill them in, or remove the rows"
        )
    classes = sorted(set(labels))
    numbers = [label for label in classes if _NUMBER.fullmatch(label)]
    names = [label for label in classes if label not in set(numbers)]
    if numbers and names:
        raise UserError(
            f"{where}: some labels are numbers ({first_of(numbers, 3)}) and others are names "
            f"({first_of(names, 3)}): write them all in one way"
        )
    plain = {label: label.partition(".")[0] for label in classes} if numbers else {}
    if plain:
        classes = sorted(set(plain.values()), key=lambda label: (int(label), label))
        for one, other in itertools.pairwise(classes):
            if int(one) == int(other):
                raise UserError(
                    f"{where}: the labels {one} and {other} are the same number: write it in one way"
                )
    number = {label: index for index, label in enumerate(classes)}
    return classes, [number[plain.get(label, label)] for label in labels]
