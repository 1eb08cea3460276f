"""The plan of a comparison: every attention module over as many seeds as it takes."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from ecanet.config import AnySettings, OutsideSettings, TrainingSettings
from ecanet.errors import UserError
from ecanet.experiments.plans.controls import PLAIN, Control, is_control
from ecanet.experiments.study.location import valid_run_name
from ecanet.experiments.study.plan import Job, Plan
from ecanet.experiments.study.queue import CANCELLED, Run
from ecanet.models.insert import parse_spec
from ecanet.statistics.design import Design
from ecanet.statistics.difference import FEWEST, Pairing

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

# Probability of an answer from the runs in progress from which they are waited for.
_SOON = 0.5

_Settings = TypeVar("_Settings", bound=AnySettings)


@dataclass
class ComparePlan(Plan):
    """Every attention module over every seed, and over more seeds where they are needed for an answer."""

    kind: ClassVar[str] = "compare"

    attention: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    """Seeds that every module is trained with."""
    more_seeds: list[int] = field(default_factory=list)
    """Seeds that may follow, one at a time, for the modules that need them."""
    planned_seeds: int = 0
    """Seeds of the study's design as it was begun; 0: all of ``seeds``."""
    sequential: bool = False
    """Whether the design looks at the results after each seed."""
    margin: float = 0.005
    """Smallest difference that matters, in units of the metric."""
    confidence: float = 0.95
    pairing: Pairing = "auto"
    resolution: float = 0.0
    """Step between two possible values of the metric; 0: unknown."""
    built_in: dict[str, int] = field(default_factory=dict)
    """Attention modules that the network has, or had, of its own: how many of each kind."""
    controls: dict[str, Control] = field(default_factory=dict)
    """Those among ``attention`` that are controls, as they were settled."""
    notices: list[str] = field(default_factory=list)
    """What was reported of network and settings before the first step, a line each."""
    majority: float | None = None
    """Share of the test split's most frequent class."""
    images: dict[str, int] = field(default_factory=dict)
    """Number of images in each split; empty if unknown."""
    keep_weights: Literal["best", "last", "none"] | None = None
    """As in :class:`ecanet.config.StudySettings`; None: as the study has it. Studies from before it was a
    choice keep the weights of all runs."""

    def check(self) -> None:
        super().check()
        for attention in self.attention:
            valid_run_name(run_name(attention, 0))
        for name in filter(is_control, self.attention):
            if name not in self.controls:
                raise UserError(f"{name} has no settings: start the comparison again")
            self.controls[name].settings(self.settings)
        if not (0.5 <= self.confidence < 1 and 0 < self.margin < math.inf and self.resolution >= 0):
            raise UserError("confidence, margin or resolution is out of range")

    def most_runs(self) -> int:
        return len(self.attention) * (len(self.seeds) + len(self.more_seeds))

    def planned(self) -> int:
        """Return the number of seeds that the study was begun with, at most."""
        return self.planned_seeds or len(self.seeds)

    def design(self) -> Design:
        """Return when and by what the results are judged."""
        return Design(
            self.planned(),
            self.sequential,
            self.confidence,
            max(len(self.attention) - 1, 1),
        )

    def networks(self) -> tuple[list[str], list[str]]:
        if isinstance(self.settings, OutsideSettings):
            return [], []  # built by others
        modules = [name for name in self.attention if not is_control(name)]
        return modules, [self.settings.model]

    def runs(self) -> list[Run]:
        """All runs, seed by seed, so that an interrupted study is still balanced.

        The order within a seed is shuffled, so that no module always runs on the warmer machine.
        """
        return [run for seed in self.seeds for run in _block(self.attention, seed)]

    def more(self, read_trials: Callable[[], Sequence[FrozenTrial]]) -> list[Run]:
        """Return the runs of the next seed for the modules that have no answer yet; none if none needs it.

        None are added to a study that was cancelled. Whoever asks has nothing to do: while runs are in
        progress, more are only added if those will probably not suffice.
        """
        if not self.more_seeds:
            return []
        values: dict[str, dict[int, float]] = {name: {} for name in self.attention}
        known: dict[str, set[int]] = {name: set() for name in self.attention}
        in_progress: dict[str, set[int]] = {name: set() for name in self.attention}
        column = self.settings.judged
        last = {trial.user_attrs["run"]: trial for trial in read_trials()}
        if any(trial.user_attrs.get("error") == CANCELLED for trial in last.values()):
            return []
        for trial in last.values():
            name, seed = trial.user_attrs["attention"], trial.user_attrs["seed"]
            if name not in known:
                continue
            known[name].add(seed)
            if not trial.state.is_finished():
                in_progress[name].add(seed)
            value = trial.user_attrs.get("record", {}).get("final", {}).get(column)
            # Others enter no mean, in the report either.
            if value is not None and math.isfinite(value):
                values[name][seed] = value
        baseline, *others = self.attention
        needing = [
            name
            for name in others
            if self._needs_more(
                values[name], values[baseline], len(in_progress[name] | in_progress[baseline])
            )
        ]
        wanted = [baseline, *needing] if needing else []
        for seed in self.more_seeds:
            if runs := _block([name for name in wanted if seed not in known[name]], seed):
                return runs
        return []

    def _needs_more(
        self, found: dict[int, float], base: dict[int, float], in_progress: int
    ) -> bool:
        """Whether a module with these values needs a seed beyond those in progress."""
        seeds = [seed for seed in found if seed in base]
        if len(seeds) < FEWEST:
            # What has only failed so far would fail again.
            return bool(found and base) and not in_progress
        x, y = [found[seed] for seed in seeds], [base[seed] for seed in seeds]
        design, most = self.design(), len(self.seeds) + len(self.more_seeds)
        estimate, _, finding = design.judge(
            x, y, self.margin, pairing=self.pairing, resolution=self.resolution
        )
        if finding != "undecided" or len(seeds) + in_progress >= most:
            return False
        if estimate is None:
            return True
        if in_progress:
            soon = design.answer_probability(estimate, len(seeds) + in_progress, self.margin)
            return bool(soon < _SOON)
        return not design.futile(estimate, self.margin, most)

    def extended(self, wanted: Plan) -> Plan:
        assert isinstance(wanted, ComparePlan)
        seeds = sorted({*self.seeds, *wanted.seeds})
        # The chance of error was planned when the study began; too few seeds have spent none of it.
        planned, sequential = self.planned(), self.sequential
        if planned < FEWEST:
            planned, sequential = wanted.planned(), wanted.sequential
        plan = replace(
            self,
            keep_weights=wanted.keep_weights or self.keep_weights,
            attention=list(dict.fromkeys([*self.attention, *wanted.attention])),
            controls=wanted.controls | self.controls,
            seeds=seeds,
            more_seeds=sorted({*self.more_seeds, *wanted.more_seeds} - set(seeds)),
            planned_seeds=planned,
            sequential=sequential,
            plugin=list(dict.fromkeys([*self.plugin, *wanted.plugin])),
        )
        plan.check()
        return plan

    def title(self, attributes: dict[str, Any], params: dict[str, Any]) -> str:
        return f"{attributes['attention']} seed {attributes['seed']}"

    def job(self, trial: optuna.Trial) -> Job:
        attention, seed = trial.user_attrs["attention"], trial.user_attrs["seed"]
        settings = with_arm(self.settings, attention, self.controls)
        settings = replace(settings, seed=seed, plugin=self.plugin)
        keeps = self.keep_weights != "none"
        return Job(settings, self.title(trial.user_attrs, {}), keep_weights=keeps)


def _block(attention: Sequence[str], seed: int) -> list[Run]:
    """Return the runs of one seed, shuffled."""
    block = [Run(run_name(a, seed), {"attention": a, "seed": seed}) for a in attention]
    random.Random(seed).shuffle(block)
    return block


def with_attention(settings: _Settings, attention: str | None) -> _Settings:
    """Return settings of a run with this module; kernel sizes are for modules that have one."""
    changed: dict[str, Any] = {"attention": attention}
    own = isinstance(settings, TrainingSettings)
    if own and attention and not parse_spec(attention)[0].startswith("eca"):
        changed["kernel_sizes"] = None
    return replace(settings, **changed)


def with_arm(settings: Any, arm: str, controls: Mapping[str, Control]) -> Any:
    """Return settings of a run of a comparison's arm, which is an attention module or a control."""
    if arm in controls:
        return controls[arm].settings(with_attention(settings, PLAIN))
    return with_attention(settings, arm)


def run_name(attention: str, seed: int) -> str:
    """Return the name of a run's folder: ``eca-seed0``, ``eca-kernel_size=9-seed0``."""
    return f"{re.sub(r'[^A-Za-z0-9_.=]+', '-', attention)}-seed{seed}"
