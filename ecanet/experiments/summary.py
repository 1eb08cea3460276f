"""What a report is made of: a study, finished or not, reduced to plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ecanet.record import Cost, Record


@dataclass
class StudySummary:
    """A study as :func:`ecanet.experiments.report.write_report` reads it; lists may be empty."""

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
