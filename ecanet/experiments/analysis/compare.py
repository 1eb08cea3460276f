"""What a report is made of: a study, finished or not, reduced to plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ecanet.errors import UserError
from ecanet.record import Cost, Record

PRECISIONS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
"""COCO's, in the order of its tables."""


@dataclass(frozen=True)
class Metric:
    """What the runs of a study are judged by, in the words of its report. Values are fractions of 1."""

    name: str
    """In a sentence: test accuracy."""
    short: str
    """Where it is clear of what: accuracy."""
    plural: str
    column: str
    """In files: test_accuracy."""
    place: str
    """What it is measured on, behind a figure: on the test split."""
    heading: str
    curve: str
    """The same over the epochs, as a title: Validation accuracy."""
    loss_unit: str
    splits: str
    """Which images were used for what."""

    def title(self) -> str:
        """Return the name as a title begins."""
        return self.name[0].upper() + self.name[1:]


ACCURACY = Metric(
    name="test accuracy",
    short="accuracy",
    plural="accuracies",
    column="test_accuracy",
    place="on the test split",
    heading="Accuracy on the test split",
    curve="Validation accuracy",
    loss_unit="nats",
    splits="Curves and every choice come from a validation split held out of the training images. The "
    "test split was read once a run, at its end.",
)
BOX_AP = Metric(
    name="box AP",
    short="AP",
    plural="APs",
    column="box_AP",
    place="box AP on the evaluation images",
    heading="Box AP on the evaluation images",
    curve="Box AP",
    loss_unit="sum of all parts",
    splits="Nothing was chosen by the evaluation images: each run counts as it is after its last epoch. AP "
    "is COCO's, the mean over IoU thresholds of 0.5 to 0.95, in per cent.",
)


@dataclass
class StudySummary:
    """A study as :func:`ecanet.experiments.report.compare.write_report` reads it; lists may be empty."""

    title: str
    attention: list[str]
    """Modules of the comparison, the baseline first."""
    seeds: list[int]
    """Seeds that every module is to be trained with."""
    settings: dict[str, Any]
    """The study's settings as resolved."""
    environment: dict[str, Any]
    """Versions, commit, device and date."""
    records: list[Record] = field(default_factory=list)
    """The finished runs."""
    costs: list[Cost] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)
    """Runs that stopped with an error: ``attention``, ``seed`` and ``error`` of each."""
    skipped_images: list[str] = field(default_factory=list)
    """Images that could not be read and were left out."""
    metric: Metric = ACCURACY
    built_in: dict[str, int] = field(default_factory=dict)
    """Attention modules that the network has, or had, of its own: how many of each kind."""
    notices: list[str] = field(default_factory=list)
    """What was said of network and settings before the first step, a line each."""
    majority: float | None = None
    """Share of the test split's most frequent class, 0..1, if known."""


def record_of(attributes: dict[str, Any]) -> Record:
    """Return the record among the attributes of a run that is complete.

    Raises:
        UserError: what is stored there is no record.
    """
    try:
        return Record.from_dict(attributes["record"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        run = ascii(attributes.get("run"))
        raise UserError(f"the record of the run {run} cannot be read ({error})") from None
