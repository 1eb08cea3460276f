"""TensorBoard and W&B beside the CSV that every run writes."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ecanet.aliases import METRICS
from ecanet.errors import UserError
from ecanet.files import read_json, write_json
from ecanet.record import Row

log = logging.getLogger(__name__)

# Seconds that W&B's server has to answer at the start.
_ANSWER_WITHIN = 30


@contextmanager
def open_loggers(
    names: list[str],
    folder: Path,
    *,
    project: str | None,
    run: str,
    group: str | None,
    config: dict[str, Any],
) -> Iterator[list[Any]]:
    """Yield loggers of these ``names``, ``tensorboard`` or ``wandb``; close them after.

    A W&B run keeps its id in ``folder`` and is resumed under it. When its server does not answer the
    run is kept in ``folder``, to be sent with ``wandb sync`` later.

    Args:
        project: of W&B; ``ecanet`` by default.
        run: name of the run there.
        group: of runs there.
        config: the run's settings, plain values.

    Raises:
        UserError: a logger's package is missing, or W&B has no key and is not offline.
    """
    loggers: list[Any] = []
    for name in names:
        try:
            if name == "tensorboard":
                from lightning_fabric.loggers import TensorBoardLogger

                loggers.append(TensorBoardLogger(folder, name="", version="tensorboard"))
            else:
                loggers.append(_wandb_logger(folder, project or "ecanet", run, group, config))
        except ModuleNotFoundError:
            raise UserError(
                f"the {name} logger needs its package: pip install 'ecanet[{name}]'"
            ) from None
    try:
        yield loggers
    finally:
        for logger in loggers:
            if hasattr(logger, "finalize"):
                logger.finalize("success")
        if "wandb" in names:
            # Else the next run of this process would join it.
            import wandb

            wandb.finish()


class _Wandb:
    """A W&B run as a logger. Steps come beside the metrics, as several loggers may count on."""

    def __init__(self, experiment: Any) -> None:
        self.experiment = experiment
        experiment.define_metric("*", step_metric="trainer/global_step", step_sync=True)

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.experiment.log({**metrics, "trainer/global_step": step})


def swept_by_wandb() -> bool:
    """Whether a W&B agent has started this process, as one run of its sweep."""
    return "WANDB_SWEEP_ID" in os.environ


def sweep_metrics(row: Row) -> Row:
    """Return an epoch's validation metrics under every name by which a sweep may select on them."""
    return {
        name: row[metric] for metric, names in METRICS.items() if metric in row for name in names
    }


def check_wandb() -> None:
    """Refuse at once what W&B would ask for at the terminal, minutes into the run.

    Raises:
        UserError: W&B is to log online, and there is no key; or the current folder names its server.
    """
    try:
        import wandb
    except ModuleNotFoundError:
        raise UserError("the wandb logger needs its package: pip install 'ecanet[wandb]'") from None
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


def _wandb_logger(
    folder: Path, project: str, run: str, group: str | None, config: dict[str, Any]
) -> Any:
    check_wandb()
    import wandb

    arguments: dict[str, Any] = {
        "name": run, "group": group, "dir": str(folder.absolute()), "resume": "allow", "config": config,
    }  # fmt: skip
    if not swept_by_wandb():  # an agent has said both in the environment
        kept = folder / "wandb.json"
        if read_json(kept) is None:
            write_json(kept, {"id": uuid.uuid4().hex[:12]})
        arguments |= {"project": project, "id": (read_json(kept) or {})["id"]}
    try:
        begun = wandb.init(**arguments, settings=wandb.Settings(init_timeout=_ANSWER_WITHIN))
    except (wandb.errors.CommError, wandb.errors.UsageError) as error:
        reason = str(error).split("\n")[0][:150]
        log.warning(
            f"W&B cannot be reached ({reason}): the run is logged in {folder / 'wandb'}, upload "
            f"it later with `wandb sync`"
        )
        wandb.teardown()  # else the id counts as taken
        begun = wandb.init(**arguments, mode="offline")
    return _Wandb(begun)
