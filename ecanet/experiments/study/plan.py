"""A plan: which runs a study is made of. What is trained, and how, follows from their settings alone.

The kinds of study differ here and nowhere else: queue, workers and storage rely on these methods.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ecanet import config
from ecanet.errors import UserError, prefixed
from ecanet.experiments.study.queue import Run
from ecanet.metrics import METRICS, format_metric, metric_named
from ecanet.record import Record
from ecanet.typed import typed

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

# Where the plan of each kind of study is; imported when a study of that kind is opened.
KINDS = {
    "compare": "ecanet.experiments.plans.compare:ComparePlan",
    "sweep": "ecanet.experiments.plans.sweep:SweepPlan",
}

# Columns that a study may optimize.
_COLUMNS = (*(f"val_{name}" for name in METRICS), "box_AP")
_MOST_RUNS = 1_000_000
_TASKS = (
    "ClassificationSettings",
    "DetectionSettings",
    "TrainerSettings",
    "YoloSettings",
    "LibreYoloSettings",
)


@dataclass
class Job:
    """What a worker trains for a run."""

    settings: Any
    title: str
    """What to call the run in a log line."""
    test: bool = True
    """Whether the test split is read at the end."""
    keep_weights: bool = True
    """Whether the weights that were tested stay when the run has ended."""


@dataclass
class Plan:
    """What a study is to run, and on which data. A kind of study is a subclass, named in KINDS."""

    kind: ClassVar[str]

    settings: Any
    """Resolved settings that all runs share: an :data:`ecanet.config.AnySettings`."""
    data_fingerprint: str
    skipped_images: list[str]
    plugin: list[str]
    weights_hash: str = ""
    """Of the content of the weight files that the runs start from; empty from scratch,
    or unknown."""
    step_bytes: int = 0
    """What the largest training step of a run holds in memory, as far as it is known."""
    gpu_share: float = 1.0
    """Share of a GPU's time that a run takes, as far as it is known."""
    metric: str = "val_accuracy"
    """Column of the epochs, and of a record's ``final``, that is optimized and shown."""
    direction: Literal["maximize", "minimize"] = "maximize"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"kind": self.kind, "task": type(self.settings).__name__, **asdict(self)}

    def check(self) -> None:
        """Refuse values that no plan has.

        Raises:
            UserError: one is too small or too large, or nothing of that name is measured.
        """
        if self.metric not in (*_COLUMNS, self.settings.best):
            raise UserError(f"metric cannot be {self.metric!r:.80}")
        if not 0 < self.gpu_share <= 1:
            raise UserError(f"gpu_share cannot be {self.gpu_share}")
        if self.most_runs() > _MOST_RUNS:
            raise UserError(f"it has {self.most_runs()} runs, and {_MOST_RUNS} are the most")

    def programs(self) -> list[str]:
        """Return the plugins and other programs that the runs load or start."""
        own = self.settings.programs() if isinstance(self.settings, config.OutsideSettings) else []
        return [*self.plugin, *own]

    def origin(self) -> str:
        """Return what :attr:`data_fingerprint` is of."""
        data = getattr(self.settings, "data", None)
        return f"the images of {data}" if data else f"the files of {self.settings.title()}"

    def most_runs(self) -> int:
        """Return how many runs there may be, without making them."""
        raise NotImplementedError

    def networks(self) -> tuple[list[str], list[str]]:
        """Return the attention modules and the models of which the runs' networks are made."""
        raise NotImplementedError

    def runs(self) -> list[Run]:
        """Return all runs, in the order in which they are to be worked on."""
        raise NotImplementedError

    def more(self, read_trials: Callable[[], Sequence[FrozenTrial]]) -> list[Run]:
        """Return further runs that the results so far call for; ``read_trials`` reads those if needed."""
        return []

    def extended(self, wanted: Plan) -> Plan:
        """Return this plan with what ``wanted`` adds to it; both have the same settings and data."""
        raise NotImplementedError

    def title(self, attributes: dict[str, Any], params: dict[str, Any]) -> str:
        """Return what to call the run of a trial, given what is stored of it."""
        return str(attributes["run"])

    def job(self, trial: optuna.Trial) -> Job:
        """Return what is to be trained for a trial; may take parameters from it (``trial.suggest_…``)."""
        raise NotImplementedError

    def sampler(self, number: int) -> optuna.samplers.BaseSampler | None:
        """Return the sampler that chooses the parameters of the trial of this number, if one does.

        One for each trial, seeded by its number: who works on a trial, and what that worker did
        before, then makes no difference.
        """
        return None

    def pruner(self) -> optuna.pruners.BasePruner | None:
        """Return what ends runs early, if anything does."""
        return None

    def follow_up(self, trials: Sequence[FrozenTrial]) -> dict[str, Any]:
        """Return what is to change in the plan now that ``trials`` have ended, by the names of its fields."""
        return {}

    def outcome(self, record: Record) -> str:
        """Return what a log line says of a run that is complete."""
        final = record.final
        if "box_AP" in final:
            text = f"box AP {100 * final['box_AP']:.1f}"
        elif isinstance(self.settings, config.OutsideSettings):
            text = f"{metric_named(self.metric).title} {format_metric(self.metric, final[self.metric])}"
        else:
            text = f"validation loss {final['val_loss']:.4f}, accuracy {100 * final['val_accuracy']:.2f} %"
            if self.metric not in ("val_loss", "val_accuracy"):
                value = format_metric(self.metric, final[self.metric])
                text += f", {metric_named(self.metric).title} {value}"
        return f"{text}, {final['train_seconds']:.0f} s"


def plan_from_dict(values: dict[str, Any]) -> Plan:
    """Rebuild a plan of any kind. Whoever wrote it down, it is checked as the command line is.

    Raises:
        UserError: this version has no such kind, or a value is none that a plan can have.
    """
    values = dict(values)
    kind, task = str(values.pop("kind", None)), str(values.pop("task", None))
    for name, known in ((kind, KINDS), (task, _TASKS)):
        if name not in known:
            raise UserError(
                f"the study is a {name:.80}, which this version of ecanet does not know"
            )
    module, _, cls = KINDS[kind].partition(":")
    with prefixed("the study's plan cannot be used, or another version of ecanet made it: "):
        values["settings"] = typed(getattr(config, task), values.get("settings"))
        plan: Plan = typed(getattr(importlib.import_module(module), cls), values)
        plan.check()
    return plan
