"""Studies of many runs: compare attention modules, and report what came of it."""

from ecanet.experiments.compare import compare, report
from ecanet.experiments.summary import StudySummary

__all__ = ["StudySummary", "compare", "report"]
