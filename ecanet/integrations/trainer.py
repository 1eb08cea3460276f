"""Runs that a function or a command of the user's own trains: see :class:`ecanet.config.TrainerSettings`."""

from __future__ import annotations

import logging
import math
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ecanet.config import TrainerSettings
from ecanet.environment import environment
from ecanet.errors import Diverged, UserError, as_user_error
from ecanet.integrations.command import run_command, words
from ecanet.integrations.containment import OUTPUT
from ecanet.integrations.function import file_of, load_function
from ecanet.integrations.reports import Report, checked_metrics, judged_metric
from ecanet.models.counts import counted_macs
from ecanet.profiling.speed import Subject, measure_subjects, slow_sgd
from ecanet.record import Cost, Record
from ecanet.training.device import resolve_device
from ecanet.training.task import Hooks, OutsideTask

log = logging.getLogger(__name__)

_REPEATS = 5
_LARGEST_PROGRAM = 2**20  # bytes; greater files that a command names are data


@dataclass
class Programs:
    """In the place of data: the files that the results come from, as far as they are known."""

    fingerprint: str
    skipped: list[str] = field(default_factory=list)


class OwnTrainer(OutsideTask):
    """Runs that a function or a command of the user's own trains."""

    @staticmethod
    def read(settings: TrainerSettings, alone: bool = False) -> Programs:
        files = [file_of(where) for where in (settings.trainer, settings.network) if where]
        if settings.command:
            directory = Path(settings.directory or ".").expanduser()
            files += [directory / word for word in words(settings.command, "", 0, Path())]
        # What a study compares must be trained by one and the same program.
        content = [
            file.read_bytes()
            for file in files
            if file.is_file() and file.stat().st_size < _LARGEST_PROGRAM
        ]
        return Programs(sha256(b"\n".join(content)).hexdigest()[:16])

    @staticmethod
    def resolve(settings: TrainerSettings, data: Programs, alone: bool = False) -> TrainerSettings:
        directory = settings.directory
        if settings.command:
            directory = str(Path(directory or ".").expanduser().resolve())
            if not Path(directory).is_dir():
                raise UserError(f"--directory {directory}: there is no such folder")
        elif directory is not None:
            raise UserError("--directory is for --command: leave it out")
        return replace(
            settings,
            trainer=_absolute(settings.trainer),
            network=_absolute(settings.network),
            directory=directory,
            device=resolve_device(settings.device).type,
            threads=settings.threads or 1,
        )

    @staticmethod
    def check(settings: TrainerSettings, data: Programs) -> None:
        if settings.trainer:
            load_function(settings.trainer, _ARGUMENTS)
        if settings.command:
            program, *others = words(settings.command, "", 0, Path())
            assert settings.directory is not None
            directory = Path(settings.directory)
            if not (shutil.which(program) or (directory / program).is_file()):
                raise UserError(f"--command: there is no program {program}")
            script = others[0] if program == sys.executable and others else ""
            if script.endswith(".py") and not (directory / script).is_file():
                raise UserError(f"--command: there is no file {directory / script}")

    @staticmethod
    def costs(settings: TrainerSettings, attention: list[str], data: Programs) -> list[Cost]:
        if not settings.network:
            return []
        log.info("measuring the cost of %s", ", ".join(attention))
        network = load_function(settings.network, ("attention",))
        device = resolve_device(settings.device)
        subjects, macs, size = [], [], 0
        for name in attention:
            with as_user_error(f"{settings.network} fails for attention {name}"):
                made = network(attention=name)
            model, batch = made if isinstance(made, tuple) and len(made) == 2 else (None, None)
            if not (isinstance(model, nn.Module) and isinstance(batch, Tensor)):
                raise UserError(
                    f"{settings.network} returned {type(made).__name__}: return the model and an example "
                    "batch of images, as in return model, torch.zeros(8, 3, 224, 224)"
                )
            with as_user_error(f"the network of {settings.network} fails with attention {name}"):
                subjects.append(_subject(name, model.to(device), batch.to(device)))
                with counted_macs(model) as total:
                    model(batch[:1].to(device))
                macs.append(total())
            size = len(batch)
        return measure_subjects(subjects, macs, device, size, "float32", _REPEATS)

    @staticmethod
    def train(
        settings: TrainerSettings,
        folder: Path,
        hooks: Hooks,
        *,
        test: bool = True,
        keep_weights: bool = True,
    ) -> Record:
        assert settings.attention is not None
        assert settings.threads is not None
        whose, folder = settings.title(), folder.resolve()
        report = Report(folder, hooks, settings.metric, whose)
        if settings.trainer:
            train = load_function(settings.trainer, _ARGUMENTS)
            values = (settings.attention, settings.seed, folder, report)
            with _contained(folder, whose):
                found = train(**dict(zip(_ARGUMENTS, values, strict=True)))
        else:
            assert settings.command is not None
            assert settings.directory is not None
            command = words(settings.command, settings.attention, settings.seed, folder)
            found = run_command(
                command, folder, report, directory=settings.directory, threads=settings.threads
            )
        report.stop_if_asked()
        metrics = checked_metrics(found, whose)
        value = judged_metric(metrics, settings.metric, whose)
        if math.isnan(value):
            raise Diverged(f"the {settings.metric} that {whose} returned is not a number")
        seconds = sum(row["seconds"] for row in report.rows) + report.elapsed()
        last = report.rows[-1]["epoch"] if report.rows else 0
        return Record(
            settings=asdict(settings),
            environment=environment(torch.device(settings.device)),
            epochs=report.rows,
            final={**metrics, "epoch": last, "train_seconds": seconds},
        )


@contextmanager
def _contained(folder: Path, whose: str) -> Iterator[None]:
    """Let what is printed go to ``output.txt``, and neither end the process nor leave its current folder."""
    here = Path.cwd()
    try:
        with (folder / OUTPUT).open("a") as output, redirect_stdout(output):
            yield
    except SystemExit as error:
        raise RuntimeError(f"{whose} called sys.exit({error.code!r})") from error
    finally:
        os.chdir(here)


_ARGUMENTS = ("attention", "seed", "folder", "report")


def _absolute(where: str | None) -> str | None:
    return where and f"{file_of(where)}:{where.rpartition(':')[2]}"


def _subject(name: str, model: nn.Module, images: Tensor) -> Subject:
    """Return a network to measure, of whatever output."""

    def criterion() -> Tensor:
        leaves = [leaf for leaf in tree_leaves(model(images)) if isinstance(leaf, Tensor)]
        return sum(leaf.float().square().mean() for leaf in leaves if leaf.requires_grad)  # type: ignore[return-value]

    return Subject(name, model, slow_sgd(model), [images], lambda: model(images), criterion, None)
