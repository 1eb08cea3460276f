"""What LibreYOLO leaves out of the labels of a data set."""

from __future__ import annotations

import warnings

from libreyolo.data.yolo_coco_api import parse_yolo_label_line

from ecanet.errors import counted
from ecanet.integrations.ultralytics.data import SPLITS, YoloData, label_file


def name_faults(data: YoloData) -> None:
    """Have LibreYOLO read all labels; fill in what it leaves out, and say so in the data set's notices."""
    for split in SPLITS:
        gone: list[str] = []
        for image in getattr(data, split) or []:
            file = label_file(image)
            if file.is_file():
                text = file.read_text(encoding="utf-8", errors="replace")
                for number, line in enumerate(text.splitlines(), 1):
                    if line.strip() and not _is_taken(line, len(data.names)):
                        gone.append(f"{file}, line {number}: {line[:60]}")
        if gone:
            data.skipped += gone
            lines = counted(len(gone), "label")
            data.notices.append(f"LibreYOLO leaves out {lines} of {split}: {gone[0]}")


def _is_taken(line: str, classes: int) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The size of the image matters for boxes without an area alone.
        return parse_yolo_label_line(line, 10_000, 10_000, classes) is not None
