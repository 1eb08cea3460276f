"""What a model answered for each image of a split: a Parquet file per run."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ecanet.errors import UserError, one_line
from ecanet.files import write_atomic
from ecanet.metrics import Array

PREDICTIONS = "predictions.parquet"
"""The file's name in a run's folder."""

_CLASSES = b"classes"
# Of no data set; a file that claims more is damaged.
_MOST_VALUES = 10**9


@dataclass(frozen=True)
class Predictions:
    """A model's answers for the images of one split."""

    images: list[str]
    """Name of each image, as in :meth:`ecanet.data.Data.names`."""
    labels: Array
    """int32 (N,), indices of ``classes``."""
    predicted: Array
    """int32 (N,): the class with the highest score, before scores were rounded."""
    scores: Array
    """float16 (N, C): logits."""
    classes: list[str]
    groups: list[str] | None = None
    """Group of each image, where images belong to groups."""

    @property
    def right(self) -> Array:
        """Whether each prediction is right, bool (N,)."""
        return self.predicted == self.labels


def write_predictions(path: Path, found: Predictions) -> None:
    """Write the columns image, label, predicted (int32), scores (lists of float16) and, if there are any,
    group, atomically.

    The names of the classes are in the schema's metadata, as JSON under ``classes``.

    Raises:
        OSError: the disk is full; an existing file is intact.
    """
    import pyarrow as pa  # half a second that not every command needs
    import pyarrow.parquet as parquet

    scores = np.ascontiguousarray(found.scores, dtype=np.float16)
    columns = {
        "image": pa.array(found.images, pa.string()),
        "label": pa.array(found.labels, pa.int32()),
        "predicted": pa.array(found.predicted, pa.int32()),
        "scores": pa.FixedSizeListArray.from_arrays(pa.array(scores.ravel()), scores.shape[1]),
    }
    if found.groups is not None:
        columns["group"] = pa.array(found.groups, pa.string())
    table = pa.table(columns).replace_schema_metadata({_CLASSES: json.dumps(found.classes)})
    content = io.BytesIO()
    parquet.write_table(table, content, compression="zstd")
    write_atomic(path, content.getbuffer())


def read_predictions(path: Path) -> Predictions:
    """Read what :func:`write_predictions` has written.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is damaged, or another kind of file.
    """
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path) as file:
            classes = json.loads((file.schema_arrow.metadata or {})[_CLASSES])
            if not all(isinstance(name, str) for name in classes):
                raise ValueError("classes are no texts")
            if file.metadata.num_rows * len(classes) > _MOST_VALUES:
                raise ValueError(f"{file.metadata.num_rows} images of {len(classes)} classes")
            groups = "group" in file.schema_arrow.names
            table = file.read(["image", "label", "predicted", "scores", *["group"] * groups])
        count = len(table)
        scores = table["scores"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        found = Predictions(
            images=table["image"].to_pylist(),
            labels=table["label"].to_numpy(),
            predicted=table["predicted"].to_numpy(),
            scores=scores.astype(np.float16).reshape(count, len(classes)),
            classes=classes,
            groups=table["group"].to_pylist() if groups else None,
        )
        for numbers in (found.labels, found.predicted):
            if numbers.dtype.kind != "i" or ((numbers < 0) | (numbers >= len(classes))).any():
                raise ValueError("a class has no name")
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException, KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{path} does not hold predictions as ecanet writes them ({one_line(error, 80)})"
        ) from None
    return found
