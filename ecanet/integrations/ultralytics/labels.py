"""The labels of a data set as Ultralytics reads them, and what it leaves out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import filelock
from ultralytics.data import dataset

from ecanet.data.cache import cache_folder
from ecanet.errors import as_user_error, counted
from ecanet.integrations.containment import replaced
from ecanet.integrations.ultralytics.data import SPLITS, YoloData

_LEFT_OUT = "ignoring corrupt image/label: "


def name_faults(data: YoloData) -> None:
    """Have Ultralytics read all labels; fill in what it leaves out, and say so in the data set's notices.

    Raises:
        UserError: it leaves out all images of a split.
    """
    for split in SPLITS:
        images = getattr(data, split)
        if images is None:
            continue
        with label_cache(data), as_user_error(f"{data.file}: {split}"):
            read = _Labels(img_path=data.origins[split], data=data.as_dict(), augment=False)
        total = counted(len(images), "image")
        if count := len(images) - len(read.labels):
            gone = [line for line in read.remarks if _LEFT_OUT in line]
            data.skipped += gone
            first = f": {gone[0].replace(_LEFT_OUT, '')}" if gone else ""
            data.notices.append(f"Ultralytics leaves out {count} of the {total} of {split}{first}")
        if other := [line for line in read.remarks if _LEFT_OUT not in line]:
            data.notices.append(
                f"Ultralytics has remarks on {len(other)} of the {total} of {split}: {other[0]}"
            )


class _Labels(dataset.YOLODataset):
    remarks: list[str]
    """What Ultralytics says of single images; each begins with the name of one."""

    def _load_or_scan_cache(self, *args: Any) -> tuple[dict[str, Any], bool]:
        cache, exists = super()._load_or_scan_cache(*args)
        self.remarks = [" ".join(line.split()) for line in cache["msgs"]]
        return cache, exists


@contextmanager
def label_cache(data: YoloData) -> Iterator[None]:
    """Keep the list of labels that Ultralytics writes in ecanet's cache, one process at a time.

    Its own place is beside the labels. There it would stay in use when labels are changed and their sizes are
    not; and it is unpickled, with code of whoever made it.
    """
    folder = cache_folder() / "ultralytics"
    folder.mkdir(parents=True, exist_ok=True)
    load, save = dataset.load_dataset_cache_file, dataset.save_dataset_cache_file

    def own(path: Path) -> Path:
        return folder / f"{data.fingerprint}-{sha256(str(path).encode()).hexdigest()[:16]}.cache"

    def save_own(prefix: str, path: Path, *args: Any) -> None:
        save(prefix, own(path), *args)

    with (
        filelock.FileLock(folder / f"{data.fingerprint}.lock"),
        replaced(dataset, "load_dataset_cache_file", lambda path: load(own(path))),
        replaced(dataset, "save_dataset_cache_file", save_own),
    ):
        yield
