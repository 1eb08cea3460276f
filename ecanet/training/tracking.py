"""TensorBoard, W&B, trackio and MLflow beside the CSV that every run writes.

All of them get the same metrics under the same names, at the number of steps done, and the metrics that the
run is judged by as ``final/NAME``. A tracker that fails is left out with a warning: it never ends a run.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ecanet.aliases import METRICS
from ecanet.config import flatten
from ecanet.errors import Preempted, UserError, one_line
from ecanet.files import read_json, write_json
from ecanet.record import Row

log = logging.getLogger(__name__)

STATE = "tracking.json"
"""File in a run's folder: its id in the trackers, and the step up to which each metric was logged."""
# Seconds that a tracker's server has to answer at the start.
_ANSWER_WITHIN = 30
# MLflow's limit is 6000 characters for a parameter.
_LONGEST = 500


@dataclass
class TrackedRun:
    """A run, as trackers file it."""

    folder: Path
    """Of the run. Its last part is the run's name."""
    project: str | None
    """W&B's and trackio's project, MLflow's experiment; None: ecanet."""
    group: str | None
    """Of runs in the project: the attention module, or the model."""
    config: dict[str, Any]
    """The run's settings, plain values."""
    id: str = ""
    mlflow: dict[str, str] = field(default_factory=dict)
    """The run's id in each MLflow store, by the address of the store."""
    logged: dict[str, int] = field(default_factory=dict)
    """The last step at which each metric was logged."""

    def __post_init__(self) -> None:
        kept = read_json(self.folder / STATE) or {}
        self.id = kept.get("id") or uuid.uuid4().hex[:12]
        self.mlflow, self.logged = kept.get("mlflow", {}), kept.get("logged", {})

    def save(self) -> None:
        """Keep the ids and the steps for when the run is resumed."""
        kept = {"id": self.id, "mlflow": self.mlflow, "logged": self.logged}
        write_json(self.folder / STATE, kept)

    @property
    def flat_config(self) -> dict[str, Any]:
        """The settings without nesting: ``optimizer.lr``."""
        return flatten(self.config)


class _Tracker:
    """One open tracker. Any method may raise; :class:`Trackers` deals with it."""

    def log(self, metrics: Row, step: int) -> None:
        raise NotImplementedError

    def log_final(self, metrics: Row, step: int) -> None:
        self.log(metrics, step)

    def log_checkpoint(self, path: Path) -> None:
        """Keep a checkpoint, if the tracker has a place for it."""

    def close(self, ending: str) -> None:
        """End the run: finished, failed or stopped."""


class _TensorBoard(_Tracker):
    def __init__(self, run: TrackedRun) -> None:
        from lightning_fabric.loggers import TensorBoardLogger

        self.logger = TensorBoardLogger(run.folder, name="", version="tensorboard")
        self.config = run.flat_config
        _ = self.logger.experiment  # its file: opened now

    def log(self, metrics: Row, step: int) -> None:
        self.logger.log_metrics(metrics, step)

    def log_final(self, metrics: Row, step: int) -> None:
        # TensorBoard compares settings by metrics that are logged with them.
        self.logger.log_hyperparams(self.config, metrics, step)

    def close(self, ending: str) -> None:
        self.logger.finalize("success")


class _Wandb(_Tracker):
    def __init__(self, run: TrackedRun) -> None:
        import wandb

        arguments: dict[str, Any] = {
            "name": run.folder.name, "group": run.group, "dir": str(run.folder.absolute()),
            "resume": "allow", "config": run.config,
        }  # fmt: skip
        if not swept_by_wandb():  # an agent has set both in the environment
            arguments |= {"project": run.project or "ecanet", "id": run.id}
        try:
            settings = wandb.Settings(init_timeout=_ANSWER_WITHIN)
            self.run = wandb.init(**arguments, settings=settings)
        except (wandb.errors.CommError, wandb.errors.UsageError) as error:
            reason = str(error).split("\n")[0][:150]
            log.warning(
                f"W&B cannot be reached ({reason}): the run is logged in {run.folder / 'wandb'}; upload "
                "it later with `wandb sync`"
            )
            wandb.teardown()  # else the id counts as taken
            self.run = wandb.init(**arguments, mode="offline")
        # Steps come beside the metrics, as others may count W&B's own.
        self.run.define_metric("*", step_metric="trainer/global_step", step_sync=True)

    def log(self, metrics: Row, step: int) -> None:
        if swept_by_wandb():
            metrics = metrics | sweep_metrics(metrics)
        self.run.log({**metrics, "trainer/global_step": step})

    def log_checkpoint(self, path: Path) -> None:
        self.run.log_artifact(str(path), name=f"checkpoint-{self.run.id}", type="model")

    def close(self, ending: str) -> None:
        # Else the next run of this process would join it.
        self.run.finish(exit_code=int(ending == "failed"))


class _Trackio(_Tracker):
    def __init__(self, run: TrackedRun) -> None:
        import trackio

        with redirect_stdout(sys.stderr):  # standard output is for results
            self.run = trackio.init(
                project=run.project or "ecanet",
                # It resumes by name.
                name=f"{run.folder.name}-{run.id}",
                group=run.group,
                config=run.flat_config,
                resume="allow",
                embed=False,
            )

    def log(self, metrics: Row, step: int) -> None:
        self.run.log(metrics, step)

    def close(self, ending: str) -> None:
        with redirect_stdout(sys.stderr):
            self.run.finish()


class _MLflow(_Tracker):
    """An MLflow run, in the store of ``MLFLOW_TRACKING_URI`` or else MLflow's default."""

    def __init__(self, run: TrackedRun) -> None:
        import mlflow

        try:
            with _quick_answers():
                self._open(run, mlflow.get_tracking_uri())
        except mlflow.exceptions.MlflowException as error:
            own = f"sqlite:///{(run.folder / 'mlflow.db').absolute()}"
            log.warning(
                f"MLflow cannot be reached ({one_line(error)}): the run is logged in its folder; show it "
                f"with `mlflow ui --backend-store-uri {own}`"
            )
            self._open(run, own)

    def _open(self, run: TrackedRun, store: str) -> None:
        from mlflow.entities import Param, RunStatus
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient(store)
        if found := run.mlflow.get(store):
            self.client.update_run(found, status=RunStatus.to_string(RunStatus.RUNNING))
            self.id = found
            return
        name = run.project or "ecanet"
        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            with suppress(MlflowException):  # another run of a study was first
                self.client.create_experiment(name)
            experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            raise MlflowException(f"experiment {name} cannot be created")
        tags = {"group": run.group} if run.group else {}
        created = self.client.create_run(
            experiment.experiment_id, run_name=run.folder.name, tags=tags
        )
        self.id = run.mlflow[store] = created.info.run_id
        params = [Param(name, str(value)[:_LONGEST]) for name, value in run.flat_config.items()]
        self.client.log_batch(self.id, params=params)

    def log(self, metrics: Row, step: int) -> None:
        import time

        from mlflow.entities import Metric

        now = int(1000 * time.time())
        points = [Metric(name, value, now, step) for name, value in metrics.items()]
        self.client.log_batch(self.id, metrics=points)

    def close(self, ending: str) -> None:
        status = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}[ending]
        self.client.set_terminated(self.id, status)


@contextmanager
def _quick_answers() -> Iterator[None]:
    """Keep MLflow from trying for minutes to reach a server that does not answer at the start."""
    from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES as RETRIES
    from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_TIMEOUT as TIMEOUT

    ours = [
        (one, value) for one, value in ((RETRIES, 1), (TIMEOUT, _ANSWER_WITHIN)) if not one.is_set()
    ]
    for variable, value in ours:
        variable.set(value)
    try:
        yield
    finally:
        for variable, _ in ours:
            variable.unset()


_TRACKERS: dict[str, tuple[str, Callable[[TrackedRun], _Tracker]]] = {
    "tensorboard": ("TensorBoard", _TensorBoard),
    "wandb": ("W&B", _Wandb),
    "trackio": ("trackio", _Trackio),
    "mlflow": ("MLflow", _MLflow),
}


class Trackers:
    """The open trackers of a run."""

    def __init__(self, run: TrackedRun, opened: dict[str, _Tracker]) -> None:
        self.run, self.opened = run, opened

    def log(self, metrics: Row, step: int) -> None:
        """Log metrics at a number of steps done, but for those that were logged there before a resume."""
        if new := self._new(metrics, step):
            self._each(lambda tracker: tracker.log(new, step))

    def log_final(self, metrics: Row, step: int) -> None:
        """Log the metrics that the run is judged by, as ``final/NAME``; those not measured are left out."""
        final = {f"final/{name}": value for name, value in metrics.items() if math.isfinite(value)}
        if new := self._new(final, step):
            self._each(lambda tracker: tracker.log_final(new, step))

    def log_checkpoint(self, path: Path) -> None:
        """Offer a checkpoint to the trackers that keep files."""
        self._each(lambda tracker: tracker.log_checkpoint(path))

    def close(self, ending: str) -> None:
        """End the run in all trackers: finished, failed or stopped."""
        self._each(lambda tracker: tracker.close(ending))

    def _new(self, metrics: Row, step: int) -> Row:
        """Return the metrics that no tracker has had at this step, and note that they do now.

        A resumed run makes the steps since its last checkpoint again, with the same results.
        """
        logged = self.run.logged
        new = {name: value for name, value in metrics.items() if step > logged.get(name, -1)}
        if new and self.opened:
            logged |= dict.fromkeys(new, step)
            self.run.save()
        return new

    def _each(self, act: Callable[[_Tracker], None]) -> None:
        for name, tracker in list(self.opened.items()):
            try:
                act(tracker)
            except Exception as error:
                del self.opened[name]
                _warn_lost(name, "takes no more metrics", error)


def _warn_lost(name: str, what: str, error: Exception) -> None:
    log.warning(
        f"{_TRACKERS[name][0]} {what} ({type(error).__name__}: {one_line(error)}): the run continues "
        "without it, and metrics.csv has everything"
    )


@contextmanager
def open_trackers(names: Iterable[str], run: TrackedRun) -> Iterator[Trackers]:
    """Yield the trackers of these ``names``; end the run in them after.

    A resumed run keeps its id in all of them. If the server of W&B or MLflow does not answer, the run is
    logged in its own folder.
    """
    opened: dict[str, _Tracker] = {}
    for name in names:
        try:
            opened[name] = _TRACKERS[name][1](run)
        except Exception as error:
            _warn_lost(name, "cannot be opened", error)
    if opened:
        run.save()
    trackers, ending = Trackers(run, opened), "failed"
    try:
        yield trackers
        ending = "finished"
    except (Preempted, KeyboardInterrupt):
        ending = "stopped"
        raise
    finally:
        trackers.close(ending)


def swept_by_wandb() -> bool:
    """Whether a W&B agent has started this process, as one run of its sweep."""
    return "WANDB_SWEEP_ID" in os.environ


def sweep_metrics(row: Row) -> Row:
    """Return an epoch's validation metrics under every name by which a sweep may select on them."""
    return {
        name: row[metric] for metric, names in METRICS.items() if metric in row for name in names
    }


def check_trackers(names: Iterable[str]) -> None:
    """Refuse trackers that cannot work, minutes before the first metric.

    Raises:
        UserError: a tracker's package is missing; W&B is to log online, and there is no key; or the current
            folder names W&B's server.
    """
    for name in names:
        # None stands for a package that cannot be imported.
        known = sys.modules[name] if name in sys.modules else importlib.util.find_spec(name)
        if known is None:
            raise UserError(f"the {name} logger needs its package: pip install 'ecanet[{name}]'")
        if name == "wandb":
            _check_wandb()


def _check_wandb() -> None:
    import wandb

    files = [Path(folder, "settings") for folder in ("wandb", ".wandb")]
    found = [file.read_text(errors="replace") for file in files if file.is_file()]
    names_a_server = any("base_url" in text for text in found)
    if names_a_server and "WANDB_BASE_URL" not in os.environ:
        raise UserError(
            "wandb/settings in this folder names a server, which would get your key: if you trust it, set "
            "WANDB_BASE_URL"
        )
    offline = os.environ.get("WANDB_MODE", "online") in ("offline", "disabled", "dryrun")
    try:
        ready = offline or wandb.api.api_key
    except wandb.Error as error:  # a variable of the environment that it does not take
        raise UserError(f"W&B: {error}") from None
    if not ready:
        raise UserError(
            "W&B has no key: run `wandb login`, set WANDB_API_KEY, or log offline with "
            "WANDB_MODE=offline"
        )
