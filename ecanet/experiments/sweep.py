"""A sweep: settings chosen by a sampler, each tried on the validation split, the best confirmed."""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from ecanet.config import RunSettings, StudySettings, SweepSettings, check_ranges
from ecanet.data import Data
from ecanet.errors import UserError
from ecanet.experiments.analysis.sweep import SweepSummary, summarise
from ecanet.experiments.compare import check_settings, guess_of, notices_of, resolve, single_thread
from ecanet.experiments.plans.sweep import SweepPlan
from ecanet.experiments.plans.sweep_file import Sweep, read_sweep, settings_with
from ecanet.experiments.study.location import locate
from ecanet.experiments.study.plan import read_data
from ecanet.experiments.study.pool import open_study, run_study
from ecanet.experiments.study.study import Study, check_folder
from ecanet.profiling.counts import count_parameters
from ecanet.profiling.memory import activation_bytes
from ecanet.record import Cost
from ecanet.training.run import build_model

# Trials where neither the command nor the file says how many, and there is no grid.
TRIALS = 20
MOST_TRIALS = 100_000


def sweep(
    file: str | Path,
    out: str | Path,
    settings: RunSettings | None = None,
    sweep_settings: SweepSettings | None = None,
    *,
    storage: str | None = None,
    name: str | None = None,
    jobs: int | None = None,
    trust_plugins: bool = False,
    progress: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> SweepSummary:
    """Run the sweep of a W&B sweep file on this machine, and write the report to ``out/report``.

    Called again with the same arguments it goes on where it stopped; with more trials, or more settings
    or seeds to confirm, it adds their runs.

    Args:
        file: the sweep file.
        out: the study's folder; made if missing.
        settings: what all runs share; what the file sets holds before it.
        sweep_settings: how many trials, and what is done with the best.
        storage: address of a PostgreSQL database that is to hold the study, for several machines.
        name: of the study in that database; by default the folder's.
        jobs: processes that train at the same time on this machine; by default one a GPU, or one
            a CPU core (at most 8) as far as memory reaches.
        trust_plugins: whether a study that is there may name plugins that ``sweep_settings`` does
            not: they are programs, and are run.
        progress: show a progress bar for each run, if one job works.
        say: called with each line of news.

    Returns:
        What the sweep has found.

    Raises:
        UserError: anything the caller can put right; nothing half-written is left behind.
    """
    settings, chosen = settings or RunSettings(), sweep_settings or SweepSettings()
    location = locate(out, storage, name)
    found = read_sweep(file)
    for note in found.notes:
        say(f"{file}: {note}")
    settings = settings_with(settings, found.constants)
    check_sweep(found, settings, chosen, jobs)
    check_folder(location)
    data = read_data(settings, say)
    values = {p.setting: p.bounds for p in found.parameters}
    largest = {s: max(v) for s, v in values.items() if s == "batch_size"}
    least = min(values.get("batch_size", [settings.batch_size]))
    attention = values.get("attention", [chosen.attention])
    with single_thread():
        tried = [
            resolve(settings_with(settings, {"model": model, **largest}), attention, data, least)
            for model in values.get("model", [settings.model])
        ]
    lines = [line for one in tried for line in notices_of(one, data, compared=len(attention) > 1)]
    for line in (*dict.fromkeys(lines), guess_of(data)):
        say(line)
    plan = SweepPlan(
        settings=dataclasses.replace(
            tried[-1],
            model=settings.model,
            batch_size=settings.batch_size,
            # A rate that nobody has given follows each run's optimizer and batch.
            optimizer=settings.optimizer,
        ),
        data_fingerprint=data.fingerprint,
        skipped_images=list(data.skipped),
        plugin=[str(Path(plugin).resolve()) for plugin in chosen.plugin],
        metric=found.metric,
        direction="maximize" if found.maximize else "minimize",
        sweep=found.content,
        trials=planned_trials(found, chosen, say),
        attention=chosen.attention,
        seed=chosen.seed,
        confirm=chosen.confirm,
        confirm_seeds=chosen.confirm_seeds,
    )

    def weigh() -> tuple[list[Cost], int]:
        return [], max(_step_bytes(one, name, data) for one in tried for name in attention)

    study, jobs = open_study(location, plan, weigh, jobs=jobs, trust_plugins=trust_plugins)
    if found.early and plan.pruner() is None:
        say(f"early_terminate never acts: runs have no more than {plan.epochs()} epochs")
    watching = _Watch(study, plan, chosen.timeout, say)
    trusted = None if trust_plugins else plan.plugin
    run_study(study, data, jobs, plugin=trusted, watching=watching, progress=progress, say=say)
    return summarise(study)


def check_sweep(
    found: Sweep, settings: RunSettings, chosen: SweepSettings, jobs: int | None
) -> None:
    """Refuse what cannot be run, before anything is read or written.

    Raises:
        UserError: one line that names the parameter or flag.
    """
    check_ranges(chosen)
    base = StudySettings([chosen.attention], 1, chosen.seed, chosen.plugin)
    check_settings(settings, base, jobs)
    for p in found.parameters:
        for value in p.bounds:
            tried = StudySettings(
                [value] if p.setting == "attention" else [chosen.attention],
                1,
                value if p.setting == "seed" else chosen.seed,
            )
            try:
                check_settings(settings_with(settings, {p.setting: value}), tried, jobs)
            except UserError as error:
                raise UserError(f"parameter {p.name}: {error}") from None


def planned_trials(found: Sweep, chosen: SweepSettings, say: Callable[[str], None]) -> int:
    """Return how many trials there shall be: as asked, within a grid's size and the file's cap."""
    wanted = chosen.trials
    limits = [found.run_cap] if found.run_cap else []
    if found.method == "grid":
        limits.append(found.grid_size())
    planned = min([wanted or math.inf, *limits]) if wanted or limits else TRIALS
    if planned > MOST_TRIALS:
        raise UserError(
            f"the sweep has {planned} trials, and a study may have {MOST_TRIALS}: give --trials or run_cap"
        )
    if wanted and limits and wanted > min(limits):
        why = "the grid has no more" if min(limits) != found.run_cap else "run_cap allows no more"
        say(f"--trials {wanted}: {min(limits)} trials, {why}")
    return int(planned)


def _step_bytes(settings: RunSettings, attention: str, data: Data) -> int:
    """Return about what a training step holds: weights, their gradients, Adam's two states, activations."""
    model = build_model(settings, attention, data)
    try:
        kept, _ = activation_bytes(model, data.image_size, data.channels)
    except Exception:
        # What depends on values cannot be weighed without them.
        return 0
    activations = kept * settings.batch_size // (1 if settings.precision == "float32" else 2)
    return activations + 4 * 4 * count_parameters(model)


class _Watch:
    """Takes what waits out of the queue when the time is up, or a trial has reached the target."""

    def __init__(
        self, study: Study, plan: SweepPlan, timeout: float | None, say: Callable[[str], None]
    ) -> None:
        self.study, self.plan, self.say = study, plan, say
        self.deadline = time.monotonic() + timeout if timeout else None
        self.reached = plan.file.target is None
        self.closed = threading.Event()

    def __enter__(self) -> None:
        if self.deadline is None and self.reached:
            return
        self._look()
        threading.Thread(target=self._keep_looking, daemon=True).start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.closed.set()

    def _keep_looking(self) -> None:
        # What is wrong with the study is said by the one who works on it.
        with suppress(UserError):
            while not self.closed.wait(1.0):
                self._look()

    def _look(self) -> None:
        if self.deadline is not None and time.monotonic() > self.deadline:
            if number := self.study.queue.cancel(running=False):
                self.say(
                    f"the time is up: {number} runs are left; the same command goes on with them"
                )
        elif not self.reached and self.plan.target_reached(self.study):
            # Once: the runs that confirm the best come later.
            self.reached = True
            number = self.study.queue.cancel(running=False)
            self.say(f"a trial has reached the target: {number} are not run")
