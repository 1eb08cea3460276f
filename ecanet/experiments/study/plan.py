"""A plan: which runs a study is made of, and what a worker does with each.

The kinds of study differ here and nowhere else: queue, workers and storage ask the plan.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import random
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ecanet.config import RunSettings, check_ranges
from ecanet.errors import UserError
from ecanet.experiments.analysis.compare import ACCURACY, Metric
from ecanet.experiments.study.location import valid_run_name
from ecanet.plugins import load_plugins
from ecanet.typed import typed

if TYPE_CHECKING:
    import optuna

    from ecanet.data import Data
    from ecanet.experiments.study.study import Study

# Where the plan of each kind of study is; imported when a study of that kind is opened.
KINDS = {
    "compare": "ecanet.experiments.study.plan:ComparePlan",
    "sweep": "ecanet.experiments.plans.sweep:SweepPlan",
    "detect": "ecanet.experiments.detect_compare:DetectPlan",
}

# What an epoch measures that runs are compared by.
_METRICS = ("val_accuracy", "val_loss", "score")
_MOST_RUNS = 1_000_000


@dataclass
class Run:
    """One run in the queue: a waiting trial."""

    name: str
    """Name of the run's folder: one a run, the same for ever."""
    attributes: dict[str, Any] = field(default_factory=dict)
    """Plain values that tell the run apart: attention module and seed, for one."""
    params: dict[str, Any] = field(default_factory=dict)
    """Parameters that are given; what ``Plan.job`` suggests beyond them is the sampler's."""

    def __post_init__(self) -> None:
        valid_run_name(self.name)


@dataclass
class Job:
    """What a worker trains for a run."""

    attention: str
    seed: int
    settings: Any
    title: str
    """What to call the run in a line of news."""
    test: bool = True
    """Whether the test split is read at the end."""


@dataclass
class Plan:
    """What a study is to run, and on which data. A kind of study is a subclass, named in KINDS."""

    kind: ClassVar[str]

    settings: Any
    """Resolved settings that all runs share."""
    data_fingerprint: str
    skipped_images: list[str]
    plugin: list[str]
    step_bytes: int = 0
    """What the largest training step of a run holds in memory, as far as it is known."""
    metric: str = "val_accuracy"
    """What is optimised and shown: a field of each epoch's metrics and of a record's final ones."""
    direction: Literal["maximize", "minimize"] = "maximize"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Plan:
        """Rebuild the plan from what :meth:`to_dict` gave."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"kind": self.kind, **asdict(self)}

    def check(self) -> None:
        """Refuse values that no plan has.

        Raises:
            UserError: one is too small or too large, or nothing of that name is measured.
        """
        check_ranges(self.settings)
        if self.metric not in _METRICS:
            raise UserError(f"metric cannot be {self.metric!r:.80}")
        if self.most_runs() > _MOST_RUNS:
            raise UserError(f"it has {self.most_runs()} runs, and {_MOST_RUNS} are the most")

    def most_runs(self) -> int:
        """Return how many runs there may be, without making them."""
        raise NotImplementedError

    def title(self) -> str:
        """Return the study's heading."""
        return f"{self.settings.model} on {Path(self.settings.data).name}"

    def networks(self) -> tuple[list[str], list[str]]:
        """Return the attention modules and the models of which the runs' networks are made."""
        raise NotImplementedError

    def runs(self) -> list[Run]:
        """Return all runs, in the order in which they are to be worked on."""
        raise NotImplementedError

    def extended(self, wanted: Plan) -> Plan:
        """Return this plan with what ``wanted`` adds to it; both have the same settings and data."""
        raise NotImplementedError

    def job(self, trial: optuna.Trial) -> Job:
        """Return what is to be trained for a trial; may ask it for parameters (``trial.suggest_…``)."""
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

    def set_up(self, index: int) -> None:
        """Make this process ready for training: it is the worker number ``index`` of its machine."""
        import torch

        from ecanet.data.memory import keep_freed_memory

        if self.settings.device == "cpu":
            keep_freed_memory()
        count, wanted = torch.cuda.device_count(), self.settings.devices
        if self.settings.device == "cuda" and count > 1:
            if wanted == 1:
                self.settings.device = f"cuda:{index % count}"
            else:
                names = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
                first = index * wanted % count
                chosen = names.split(",")[first : first + wanted]
                os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(chosen)

    def read_data(self) -> Any:
        """Read the data, as the settings say. What is returned has a ``fingerprint``.

        Raises:
            UserError: they cannot be read.
        """
        return read_data(self.settings)

    def train(
        self,
        job: Job,
        data: Any,
        folder: Path,
        *,
        progress: bool,
        on_epoch: Callable[[Any], None],
        on_step: Callable[[], None],
    ) -> Any:
        """Train one run, from its last checkpoint if there is one, and return its record.

        ``on_step`` is called every few moments; what it raises ends the training there.
        """
        from ecanet.training.run import train

        return train(
            job.settings,
            job.attention,
            job.seed,
            data,
            folder,
            test=job.test,
            progress=progress,
            on_epoch=on_epoch,
            on_step=on_step,
        )

    def outcome(self, record: Any) -> str:
        """Return what a line of news says of a run that is complete."""
        final = record.final
        return f"validation {100 * final.val_accuracy:.2f} %, {final.train_seconds:.0f} s"

    def follow_up(self, study: Study) -> list[Run]:
        """Return the runs that are called for by what the others, now ended, have found."""
        return []

    def write_report(self, study: Study, out: Path | None = None) -> Path:
        """Write the study's report from what is there, and return the path of its page.

        Args:
            study: opened.
            out: folder of the report; by default ``report`` in the study's.
        """
        raise NotImplementedError


def train_run(
    plan: Plan,
    job: Job,
    data: Any,
    folder: Path,
    *,
    progress: bool,
    on_epoch: Callable[[Any], None],
    on_step: Callable[[], None],
) -> Any:
    """Train one run as :meth:`Plan.train` does, in a process for each device if it has several."""
    if plan.settings.devices == 1:
        return plan.train(job, data, folder, progress=progress, on_epoch=on_epoch, on_step=on_step)
    from ecanet.training.processes import train_on_devices

    return train_on_devices(
        functools.partial(_train_in_process, plan, job, folder, progress),
        plan.settings.devices,
        folder,
        threads=plan.settings.threads,
        on_epoch=on_epoch,
        on_step=on_step,
    )


def _train_in_process(
    plan: Plan,
    job: Job,
    folder: Path,
    progress: bool,
    on_epoch: Callable[[Any], None],
    on_step: Callable[[], None],
) -> Any:
    load_plugins(plan.plugin)
    plan.set_up(0)
    return plan.train(
        job, plan.read_data(), folder, progress=progress, on_epoch=on_epoch, on_step=on_step
    )


def plan_from_dict(values: dict[str, Any]) -> Plan:
    """Rebuild a plan of any kind. Whoever wrote it down, it is checked as the command line is.

    Raises:
        UserError: this version knows no such kind, or a value is none that a plan can have.
    """
    values = dict(values)
    kind = str(values.pop("kind", None))
    if "threads" in values and isinstance(
        values.get("settings"), dict
    ):  # until 0.4 the plan's own, and chosen by the number of jobs
        values["settings"] = {**values["settings"], "threads": values.pop("threads")}
    if kind not in KINDS:
        raise UserError(f"the study is a {kind:.80}, which this version of ecanet does not know")
    module, name = KINDS[kind].split(":")
    try:
        plan: Plan = getattr(importlib.import_module(module), name).from_dict(values)
        plan.check()
    except UserError as error:
        raise UserError(
            f"the study's plan cannot be used, or another version of ecanet made it: {error}"
        ) from None
    return plan


@dataclass
class ComparePlan(Plan):
    """Every attention module over every seed."""

    kind: ClassVar[str] = "compare"
    judged_by: ClassVar[Metric] = ACCURACY

    attention: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    built_in: dict[str, int] = field(default_factory=dict)
    """Attention modules that the network has, or had, of its own: how many of each kind."""
    notices: list[str] = field(default_factory=list)
    """What was said of network and settings before the first step, a line each."""
    majority: float | None = None
    """Share of the test split's most frequent class."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ComparePlan:
        return typed(cls, {**values, "settings": typed(RunSettings, values["settings"])})

    def check(self) -> None:
        super().check()
        for attention in self.attention:
            valid_run_name(run_name(attention, 0))

    def most_runs(self) -> int:
        return len(self.attention) * len(self.seeds)

    def networks(self) -> tuple[list[str], list[str]]:
        return self.attention, [self.settings.model]

    def runs(self) -> list[Run]:
        """All runs, seed by seed, so that an interrupted study is still balanced.

        The order within a seed is shuffled, so that no module always runs on the warmer machine.
        """
        order = []
        for seed in self.seeds:
            block = [
                Run(run_name(attention, seed), {"attention": attention, "seed": seed})
                for attention in self.attention
            ]
            random.Random(seed).shuffle(block)
            order += block
        return order

    def extended(self, wanted: Plan) -> Plan:
        assert isinstance(wanted, ComparePlan)
        return dataclasses.replace(
            self,
            attention=list(dict.fromkeys([*self.attention, *wanted.attention])),
            seeds=sorted({*self.seeds, *wanted.seeds}),
            plugin=list(dict.fromkeys([*self.plugin, *wanted.plugin])),
        )

    def job(self, trial: optuna.Trial) -> Job:
        attention, seed = trial.user_attrs["attention"], trial.user_attrs["seed"]
        return Job(attention, seed, self.settings, f"{attention} seed {seed}")

    def write_report(self, study: Study, out: Path | None = None) -> Path:
        from ecanet.experiments.report.compare import write_report
        from ecanet.experiments.study.study import summarise

        return write_report(summarise(study), out or study.report_folder())


def read_data(settings: RunSettings, say: Callable[[str], None] = lambda line: None) -> Data:
    """Read the images of a data set, as the settings of a study say.

    Raises:
        UserError: they cannot be read.
    """
    from ecanet.data import load_data
    from ecanet.data.augment import with_flip
    from ecanet.data.folder import left_out_line

    say(f"reading {settings.data}")
    data = load_data(
        settings.data,
        image_size=settings.image_size,
        validation=settings.validation,
        skip_corrupt=settings.skip_corrupt,
    )
    if data.skipped:
        say(f"left out {len(data.skipped)} images that cannot be read, {data.skipped[0]} first")
    if data.left_out:
        say(left_out_line(data.left_out))
    with_flip(settings.augmentation, data.classes, say)
    return data


def run_name(attention: str, seed: int) -> str:
    """Return the name of a run's folder: ``eca-seed0``, ``eca-kernel_size=9-seed0``."""
    return f"{re.sub(r'[^A-Za-z0-9_.=]+', '-', attention)}-seed{seed}"


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Say in which names two sets of nested settings differ: what is there, and what is asked."""
    there, asked = flatten(old), flatten(new)
    return [
        f"{name}: {there.get(name, 'nothing')} there, {asked.get(name, 'nothing')} asked"
        for name in dict.fromkeys([*there, *asked])
        if there.get(name) != asked.get(name)
    ]


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings under dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = prefix + key
        found |= flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found
