"""The plan of a sweep: trials whose settings a sampler chooses, and the best of them trained again."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from ecanet.config import RunSettings
from ecanet.errors import UserError, at_least
from ecanet.experiments.analysis.sweep import told
from ecanet.experiments.plans.sweep_file import EarlyTermination, Sweep, parse_sweep, settings_with
from ecanet.experiments.study.plan import Job, Plan, Run, differences
from ecanet.experiments.study.queue import CANCELLED
from ecanet.record import Record
from ecanet.typed import typed

if TYPE_CHECKING:
    from ecanet.experiments.study.study import Study


@dataclass
class SweepPlan(Plan):
    """Trials of one sweep file, all with one seed, and the runs that confirm the best over other seeds."""

    kind: ClassVar[str] = "sweep"

    sweep: dict[str, Any] = field(default_factory=dict)
    """The sweep file's content, as far as it decides what is run."""
    trials: int = 0
    attention: str = "none"
    """Attention module where the sweep does not say."""
    seed: int = 0
    """Of the sampler and of every trial."""
    confirm: int = 0
    """How many of the best settings are trained again."""
    confirm_seeds: int = 3
    confirmed: list[dict[str, Any]] = field(default_factory=list)
    """Those settings: ``trial``, the run they are from, and ``params``, as Optuna has them."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SweepPlan:
        return typed(cls, {**values, "settings": typed(RunSettings, values["settings"])})

    def check(self) -> None:
        super().check()
        at_least(0, trials=self.trials, confirm=self.confirm, confirm_seeds=self.confirm_seeds)
        for found in self.confirmed:
            if not (isinstance(found.get("trial"), str) and isinstance(found.get("params"), dict)):
                raise UserError(f"confirmed cannot hold {found!r:.80}")
        self.file  # noqa: B018 reading it checks it

    def most_runs(self) -> int:
        confirmed = max(self.confirm, len(self.confirmed))
        return self.trials + confirmed * self.confirm_seeds

    @cached_property
    def file(self) -> Sweep:
        """The sweep as its file has it."""
        return parse_sweep(self.sweep)

    def networks(self) -> tuple[list[str], list[str]]:
        swept = {p.setting: list(p.bounds) for p in self.file.parameters}
        return swept.get("attention", [self.attention]), swept.get("model", [self.settings.model])

    def runs(self) -> list[Run]:
        """All trials in order, then the runs that confirm, seed by seed."""
        sweep, grid = self.file, self.file.method == "grid"
        trials = [
            Run(trial_name(i), {"trial": i}, sweep.grid_point(i) if grid else {})
            for i in range(self.trials)
        ]
        return trials + [
            Run(
                f"{found['trial']}-seed{seed}",
                {"of": found["trial"], "seed": seed},
                found["params"],
            )
            for seed in self.fresh_seeds()
            for found in self.confirmed
        ]

    def fresh_seeds(self) -> list[int]:
        """The seeds of the runs that confirm: none of them the trials' own."""
        return list(range(self.seed + 1, self.seed + 1 + self.confirm_seeds))

    def extended(self, wanted: Plan) -> SweepPlan:
        assert isinstance(wanted, SweepPlan)
        changed = differences(
            *({**p.sweep, "--attention": p.attention, "--seed": p.seed} for p in (self, wanted))
        )
        if changed:
            raise UserError(
                f"the study holds another sweep ({'; '.join(changed)}): choose another --out"
            )
        return dataclasses.replace(
            self,
            trials=max(self.trials, wanted.trials),
            confirm=wanted.confirm,
            # Seeds that have been trained stay.
            confirm_seeds=max(wanted.confirm_seeds, self.confirm_seeds if self.confirmed else 0),
            plugin=list(dict.fromkeys([*self.plugin, *wanted.plugin])),
        )

    def job(self, trial: optuna.Trial) -> Job:
        values = {p.name: p.suggest(trial) for p in self.file.parameters}
        return self.job_of(values, trial.user_attrs)

    def job_of(self, values: dict[str, Any], attributes: dict[str, Any]) -> Job:
        """Return what is trained with these values of the sweep's parameters."""
        sweep = self.file
        chosen = {p.setting: values[p.name] for p in sweep.parameters}
        title = told({p.name: values[p.name] for p in sweep.swept})
        seed = chosen.get("seed", self.seed)
        if "of" in attributes:
            seed = attributes["seed"]
            title += f", seed {seed}"
        return Job(
            attention=chosen.get("attention", self.attention),
            seed=seed,
            settings=settings_with(self.settings, chosen),
            title=title,
            test="of" in attributes,
        )

    def sampler(self, number: int) -> optuna.samplers.BaseSampler | None:
        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        if self.file.method != "bayes":
            # A grid's trials come with all their parameters: it is never asked.
            return optuna.samplers.RandomSampler(seed=seed)
        # It takes trials under way for bad ones, so that workers do not all try the same.
        return optuna.samplers.TPESampler(seed=seed, constant_liar=True)

    def pruner(self) -> optuna.pruners.BasePruner | None:
        early = self.file.early
        if early is None or early.first >= self.epochs():
            return None
        return _TrialsOnly(early, self)

    def epochs(self) -> int:
        """The most epochs of a run."""
        epochs = [p.bounds for p in self.file.parameters if p.setting == "epochs"]
        return max(epochs[0]) if epochs else self.settings.epochs

    def train(self, job: Job, data: Any, folder: Path, **how: Any) -> Any:
        try:
            return super().train(job, data, folder, **how)
        except optuna.TrialPruned:
            for checkpoint in folder.glob("*.ckpt"):
                checkpoint.unlink()
            raise

    def outcome(self, record: Record) -> str:
        final = record.final
        assert final is not None
        return (
            f"validation loss {final.val_loss:.4f}, accuracy {100 * final.val_accuracy:.2f} %, "
            f"{final.train_seconds:.0f} s"
        )

    def follow_up(self, study: Study) -> list[Run]:
        """Choose the settings to confirm, once no trial is left to run, and return their runs."""
        trials = [t for t in study.read_trials() if "trial" in t.user_attrs]
        ended = {t.user_attrs["run"] for t in trials if t.user_attrs.get("error") != CANCELLED}
        if len(ended) < self.trials and not self.target_reached(study):
            return []
        known = [found["trial"] for found in self.confirmed]
        new = [found for found in self.best(study, self.confirm) if found["trial"] not in known]
        self.confirmed += new
        study.queue.change_study("plan", lambda there: {**there, "confirmed": self.confirmed})
        return [run for run in self.runs() if "of" in run.attributes]

    def best(self, study: Study, count: int) -> list[dict[str, Any]]:
        """Return the ``count`` best settings that differ, best first, by the trials' validation metric."""
        trials = self._finished(study)
        trials.sort(key=lambda t: t.value or 0.0, reverse=self.direction == "maximize")
        found: dict[str, dict[str, Any]] = {}
        for trial in trials:
            found.setdefault(
                repr(trial.params), {"trial": trial.user_attrs["run"], "params": trial.params}
            )
        return list(found.values())[:count]

    def target_reached(self, study: Study) -> bool:
        """Whether a trial has reached the metric's target, if the file names one."""
        target, sign = self.file.target, 1 if self.direction == "maximize" else -1
        return target is not None and any(
            sign * (trial.value or 0.0) >= sign * target for trial in self._finished(study)
        )

    def _finished(self, study: Study) -> list[FrozenTrial]:
        """The trials that have come to their end with a metric that is a number."""
        ended = study.read_trials(TrialState.COMPLETE)
        return [t for t in ended if "trial" in t.user_attrs and math.isfinite(t.value or 0.0)]

    def write_report(self, study: Study, out: Path | None = None) -> Path:
        from ecanet.experiments.analysis.sweep import summarise
        from ecanet.experiments.report.sweep import write_report

        return write_report(summarise(study), out or study.report_folder())


class _TrialsOnly(optuna.pruners.BasePruner):
    """Ends trials early, and never a run that confirms, nor one that has ended anyway."""

    def __init__(self, early: EarlyTermination, plan: SweepPlan) -> None:
        last = early.last or plan.epochs()
        self.epochs = next((p for p in plan.file.swept if p.setting == "epochs"), None)
        self.most = plan.epochs()
        self.pruner: optuna.pruners.BasePruner
        if early.strict:
            self.pruner = optuna.pruners.SuccessiveHalvingPruner(
                min_resource=early.first, reduction_factor=early.eta, min_early_stopping_rate=0
            )
        else:
            self.pruner = optuna.pruners.HyperbandPruner(
                min_resource=early.first,
                max_resource=max(last, early.first),
                reduction_factor=early.eta,
            )

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        if "of" in trial.user_attrs:
            return False
        epochs = self.epochs.value(trial.params[self.epochs.name]) if self.epochs else self.most
        return (trial.last_step or 0) < epochs and self.pruner.prune(study, trial)


def trial_name(index: int) -> str:
    """Return the name of a trial's folder: ``trial-0007``."""
    return f"trial-{index:04d}"


def effective_settings(settings: RunSettings) -> RunSettings:
    """Return the settings with the learning rate that a run takes for them."""
    from ecanet.config import with_lr

    return dataclasses.replace(settings, optimizer=with_lr(settings.optimizer, settings.batch_size))
