"""How the weights of a file fit a model, by name and shape."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ecanet.errors import UserError, first_of

SHOWN = 5
"""How many names a message lists."""

# The file's, None where it has no such weight, and the model's.
_Shapes = tuple[tuple[int, ...] | None, tuple[int, ...]]


@dataclass
class LoadReport:
    """Which weights of a file fit a model. ``str()`` of it is a summary."""

    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """In the model, but not in the file."""
    surplus: list[str] = field(default_factory=list)
    """In the file, but not in the model."""
    mismatched: dict[str, _Shapes] = field(default_factory=dict)
    """In both, with different shapes: the file's and the model's."""
    fresh: dict[str, _Shapes] = field(default_factory=dict)
    """Classifier weights that stay as they were, because the file has other classes or no classifier: shapes
    as in ``mismatched``, with None for a weight that the file lacks."""
    adapted: dict[str, _Shapes] = field(default_factory=dict)
    """Weights of the first convolution that were adapted to images of other channels, matched as well."""
    unrelated: list[str] = field(default_factory=list)
    """In the file beside the model, and not requested: a detector's heads, or a classifier where the
    model has none. They are no reason to refuse the file."""

    @property
    def complete(self) -> bool:
        """Whether file and model have the same weights."""
        return not (self.missing or self.surplus or self.mismatched)

    def problems(self) -> list[str]:
        """Return a phrase for each weight that does not fit."""
        return [
            *(f"{name} is {_shapes(both)}" for name, both in self.mismatched.items()),
            *(f"{name} is not in the file" for name in self.missing),
            *(f"{name} is not in the model" for name in self.surplus),
        ]

    def first_problems(self) -> str:
        """Return the first phrases on one line, and how many more there are."""
        return first_of(self.problems(), SHOWN, "; ")

    def __str__(self) -> str:
        mismatched, fresh, adapted = (
            [f"{name} ({_shapes(both)})" for name, both in shapes.items()]
            for shapes in (self.mismatched, self.fresh, self.adapted)
        )
        kinds = (
            (mismatched, f"{len(mismatched)} of another shape"),
            (fresh, "a new classifier"),
            (adapted, "summed over the channels of color images"),
            (self.missing, f"{len(self.missing)} missing from the file"),
            (self.surplus, f"{len(self.surplus)} surplus in the file"),
            (self.unrelated, f"{len(self.unrelated)} unrelated to the model, ignored"),
        )
        lines = [f"{what}: {first_of(names, SHOWN)}" for names, what in kinds if names]
        return "\n".join([f"{len(self.matched)} weights matched", *lines])


def compare_weights(
    tensors: Mapping[str, Tensor], state: Mapping[str, Tensor], unrelated: Iterable[str] = ()
) -> LoadReport:
    """Report which of a file's ``tensors`` fit a model's ``state``, by name and shape."""
    report = LoadReport(unrelated=list(unrelated))
    for name, tensor in tensors.items():
        if name not in state:
            report.surplus.append(name)
        elif tensor.shape != state[name].shape:
            report.mismatched[name] = (tuple(tensor.shape), tuple(state[name].shape))
        else:
            report.matched.append(name)
    # Torch before 0.4.1 did not count batches, and no model needs the count to run.
    report.missing = [
        name for name in state if name not in tensors and not name.endswith("num_batches_tracked")
    ]
    return report


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return a phrase that names the tensors with NaN or infinity in them, or None if there are none."""
    names = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if not names:
        return None
    return f"{len(names)} of {len(tensors)} weights hold NaN or infinity: {first_of(names, SHOWN)}"


def check_finite(file: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> None:
    """Refuse weights with NaN or infinity in them, which nothing can be computed with.

    Raises:
        UserError: there are such.
    """
    phrase = not_finite(tensors)
    if phrase:
        raise UserError(
            f"{file}: {phrase}. Their training has probably diverged: give weights of an earlier epoch"
        )


def _shapes(both: _Shapes) -> str:
    file, model = (
        "nothing" if shape is None else "x".join(map(str, shape)) or "a number" for shape in both
    )
    return f"{file} in the file, {model} in the model"
