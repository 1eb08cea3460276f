"""The plan of a comparison: every attention module over every seed."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar

from ecanet.config import TrainingSettings
from ecanet.errors import UserError
from ecanet.experiments.plans.controls import PLAIN, Control, is_control
from ecanet.experiments.study.location import valid_run_name
from ecanet.experiments.study.plan import Job, Plan
from ecanet.experiments.study.queue import Run
from ecanet.models.insert import parse_spec

if TYPE_CHECKING:
    import optuna

_Settings = TypeVar("_Settings", bound=TrainingSettings)


@dataclass
class ComparePlan(Plan):
    """Every attention module over every seed."""

    kind: ClassVar[str] = "compare"

    attention: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    built_in: dict[str, int] = field(default_factory=dict)
    """Attention modules that the network has, or had, of its own: how many of each kind."""
    controls: dict[str, Control] = field(default_factory=dict)
    """Those among ``attention`` that are controls, as they were settled."""
    notices: list[str] = field(default_factory=list)
    """What was reported of network and settings before the first step, a line each."""
    majority: float | None = None
    """Share of the test split's most frequent class."""
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

    def most_runs(self) -> int:
        return len(self.attention) * len(self.seeds)

    def networks(self) -> tuple[list[str], list[str]]:
        modules = [name for name in self.attention if not is_control(name)]
        return modules, [self.settings.model]

    def runs(self) -> list[Run]:
        """All runs, seed by seed, so that an interrupted study is still balanced.

        The order within a seed is shuffled, so that no module always runs on the warmer machine.
        """
        order = []
        for seed in self.seeds:
            block = [Run(run_name(a, seed), {"attention": a, "seed": seed}) for a in self.attention]
            random.Random(seed).shuffle(block)
            order += block
        return order

    def extended(self, wanted: Plan) -> Plan:
        assert isinstance(wanted, ComparePlan)
        plan = replace(
            self,
            keep_weights=wanted.keep_weights or self.keep_weights,
            attention=list(dict.fromkeys([*self.attention, *wanted.attention])),
            controls=wanted.controls | self.controls,
            seeds=sorted({*self.seeds, *wanted.seeds}),
            plugin=list(dict.fromkeys([*self.plugin, *wanted.plugin])),
        )
        plan.check()
        return plan

    def job(self, trial: optuna.Trial) -> Job:
        attention, seed = trial.user_attrs["attention"], trial.user_attrs["seed"]
        settings = with_arm(self.settings, attention, self.controls)
        settings = replace(settings, seed=seed, plugin=self.plugin)
        keeps = self.keep_weights != "none"
        return Job(settings, f"{attention} seed {seed}", keep_weights=keeps)


def with_attention(settings: _Settings, attention: str | None) -> _Settings:
    """Return settings of a run with this module; kernel sizes are for modules that have one."""
    if attention and not parse_spec(attention)[0].startswith("eca"):
        settings = replace(settings, kernel_sizes=None)
    return replace(settings, attention=attention)


def with_arm(settings: _Settings, arm: str, controls: Mapping[str, Control]) -> _Settings:
    """Return settings of a run of a comparison's arm, which is an attention module or a control."""
    if arm in controls:
        return controls[arm].settings(with_attention(settings, PLAIN))
    return with_attention(settings, arm)


def run_name(attention: str, seed: int) -> str:
    """Return the name of a run's folder: ``eca-seed0``, ``eca-kernel_size=9-seed0``."""
    return f"{re.sub(r'[^A-Za-z0-9_.=]+', '-', attention)}-seed{seed}"
