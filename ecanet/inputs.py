"""What the user names is there: data, weights, studies.

Commands call these before they import torch, and so does the code that then reads the files.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from ecanet.aliases import HUGGING_FACE, SOURCES, TORCHVISION
from ecanet.errors import UserError, did_you_mean

TABLES = (".csv", ".tsv", ".parquet")
"""Endings of tables of images."""

RUNS = "study, run folder or weight file"
"""What names weights for the commands that use trained networks."""

HUB_PREFIX = re.compile(r"hf[-_]hub:")


def check_images(data: str) -> None:
    """Refuse data of a classifier that has no name of its own and is no file or folder.

    Raises:
        UserError: the line names the data sets that are known.
    """
    if data in SOURCES or data.startswith((TORCHVISION, HUGGING_FACE)):
        return
    path = Path(data).expanduser()
    if path.exists():
        return
    if path.name != data:  # it was meant as a path
        raise UserError(
            f"There is no folder {path}: give {', '.join(SOURCES)}, or an existing folder."
        )
    raise UserError(
        f"Unknown data {data!r}, and no folder of that name.{did_you_mean(data, SOURCES)} Tables end in "
        f"{' '.join(TABLES)}; {HUGGING_FACE}NAME and {TORCHVISION}NAME are downloaded."
    )


def check_coco(data: str | Path) -> None:
    """Refuse data of a detector that is no folder.

    Raises:
        UserError: there is no such folder.
    """
    root = Path(data).expanduser()
    if str(data) != "shapes" and not root.is_dir():
        raise UserError(f"there is no folder {root}: give one in COCO's layout, or shapes")


def check_yolo(data: str | None) -> Path:
    """Return the YAML file of a data set as Ultralytics takes it.

    Raises:
        UserError: none is given, or it is no file.
    """
    if data is None:
        raise UserError("which images? give the YAML of a data set, as in --data my.yaml")
    file = Path(data).expanduser().resolve()
    if file.is_dir():
        raise UserError(f"{file} is a folder: give the YAML of a data set, as in --data my.yaml")
    if not file.exists():
        raise UserError(f"{file} cannot be read: No such file or directory")
    return file


def is_on_hub(name: str | os.PathLike[str]) -> bool:
    """Whether weights are named as those of a repository of the Hugging Face Hub, not as a file."""
    return bool(HUB_PREFIX.match(os.fspath(name)))


def check_weights(name: str | os.PathLike[str] | None, what: str = "weight file") -> None:
    """Refuse weights that are no file, no folder, and on no hub; None is given by nobody.

    Args:
        name: of the weights.
        what: may be named: :data:`RUNS` where folders of runs and studies are taken as well.

    Raises:
        UserError: there is no such file.
    """
    if name is None or is_on_hub(name):
        return
    path = Path(name).expanduser()
    if not path.is_file() and not path.is_dir():
        raise UserError(f"there is no {what} {path}")


def check_image_names(names: Sequence[str]) -> None:
    """Refuse arguments none of which is an image, a folder or a pattern that matches; a webcam is there.

    Raises:
        UserError: there is nothing.
    """
    for name in names:
        path = Path(name).expanduser()
        if name.startswith("webcam") or path.exists() or any(glob.iglob(str(path), recursive=True)):
            return
    if len(names) == 1:
        raise UserError(f"there is no image {names[0]}")
    raise UserError(f"none of the {len(names)} names has an image")


def names_file(name: str) -> bool:
    """Whether a model's weights are meant by their file or repository, and not a model by its name."""
    suffixes = (".safetensors", ".pt", ".pth", ".tar", ".bin", ".ckpt")
    is_path = os.sep in name and not name.startswith(TORCHVISION)
    return is_on_hub(name) or is_path or name.endswith(suffixes) or Path(name).exists()


def check_study(folder: str | Path | None, storage: str | None = None) -> None:
    """Refuse a folder that is not there or holds no study, where no database is named.

    Raises:
        UserError: there is no such folder, or it holds none.
    """
    if folder is None or storage is not None:
        return
    names = ("study.db", "study.json", "cells.json")
    if not any(os.path.lexists(Path(folder, name)) for name in names):
        raise no_study(folder)


def no_study(folder: str | Path) -> UserError:
    """Return the error for a folder that is not there, or that holds no study."""
    found = (
        f"{folder} holds no study" if os.path.lexists(folder) else f"there is no folder {folder}"
    )
    # Until its costs are measured, a comparison leaves no folder, or an empty one.
    return UserError(
        f"{found}: give the folder that was --out of a study; a comparison or sweep that has just been "
        "started makes its study after its preparation"
    )
