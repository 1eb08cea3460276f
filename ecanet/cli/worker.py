"""``ecanet worker``."""

from __future__ import annotations

import argparse
import signal
from typing import TYPE_CHECKING, Any

from ecanet.activity import activity
from ecanet.cli.options import TRUST, OneLineParser, StudyCommand, add_study_arguments
from ecanet.cli.output import log_to_stdout, say, warn
from ecanet.config import check_ranges
from ecanet.errors import UserError, first_of
from ecanet.inputs import check_study
from ecanet.plugins import check_trust
from ecanet.signals import exit_with_parent

if TYPE_CHECKING:
    from ecanet.experiments.study.study import Study


def parser() -> OneLineParser:
    """Return the command's parser."""
    parser = OneLineParser("ecanet worker", description=run.__doc__)
    add_study_arguments(parser)
    parser.add_argument(
        "--data", help="folder of the images on this machine, if not the one that the study names"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="number of runs to train at the same time on this machine; by default as many as keep each GPU "
        "busy, or one per CPU core, if memory suffices",
    )
    parser.add_argument(
        "--no-wait",
        action="store_true",
        help="exit when no run is queued, instead of waiting for runs that may be requeued",
    )
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="FILE",
        help="Python file, trainer or command that the study names; may be repeated",
    )  # fmt: skip
    parser.add_argument("--trust-plugins", action="store_true", help=TRUST.format("the study"))
    # For the workers that this command, compare and sweep start.
    for flag in ("--index", "--of", "--parent"):
        parser.add_argument(flag, type=int, help=argparse.SUPPRESS)
    return parser


def run(arguments: list[str]) -> int:
    """Train the runs of a study until all have ended, alongside any number of workers on any machines.

    SIGTERM and Ctrl-C requeue the current run; the next worker resumes it from its last checkpoint if it uses
    the same folder. If a worker is killed or disconnected, the others requeue its run. The exit code is 1 if
    runs of the study have failed, or if workers were lost and runs are left.
    """
    flags = parser().parse_args(arguments)
    check_ranges(StudyCommand(jobs=flags.jobs))
    if flags.parent:
        # 10 s to requeue the current run.
        exit_with_parent(flags.parent, signal.SIGTERM, 10.0)

    check_study(flags.folder, flags.storage)
    from ecanet.experiments.study.cells import has_cells, open_studies
    from ecanet.experiments.study.queue import CANCELLED
    from ecanet.experiments.study.worker import enqueue_more, work

    studies = open_studies(flags.folder, flags.storage, flags.study)
    trusted = None if flags.trust_plugins else flags.plugin
    if flags.index is not None:
        # The parent forwards standard output, and its exit code covers the study.
        log_to_stdout()
        how: Any = {"data_path": flags.data, "wait": not flags.no_wait, "plugin": trusted}
        work(studies[0], index=flags.index, jobs=flags.of, **how)
        return 0
    plans = [study.plan() for study in studies]
    for plan in plans:
        check_trust(plan.programs(), trusted, "the study")
    if flags.data and len({getattr(plan.settings, "data", None) for plan in plans}) > 1:
        raise UserError(
            f"--data: {flags.folder} has several data sets; give one of its folders, such as "
            f"{studies[0].folder}"
        )
    lost = 0
    several = has_cells(flags.folder)
    with activity("runs", studies=studies, at_once=True):
        # First what waits in any cell, then what workers elsewhere may requeue.
        for wait in [False, True] if several and not flags.no_wait else [not flags.no_wait]:
            for study in studies:
                if not several or enqueue_more(study) or study.queue.counts().open:
                    lost += _work(study, flags, trusted, wait)
    found = [run for study in studies for run in study.failed_runs()]
    failed = [run["run"] for run in found if run.get("error") != CANCELLED]
    if failed:
        number = "1 run has" if len(failed) == 1 else f"{len(failed)} runs have"
        warn(f"{number} failed: {first_of(failed, 3)}")
    if left := sum(study.queue.counts().open for study in studies) if lost else 0:
        say(f"{left} runs are left; run the same command to resume")
    return 1 if failed or left else 0


def _work(study: Study, flags: argparse.Namespace, trusted: list[str] | None, wait: bool) -> int:
    """Work on a study, in this process or several; return how many of these were lost."""
    from ecanet.experiments.study.pool import fitting_jobs, plugin_flags, run_workers
    from ecanet.experiments.study.worker import work

    plan = study.plan()
    jobs = flags.jobs or fitting_jobs(plan)
    if jobs == 1:
        work(study, data_path=flags.data, wait=wait, plugin=trusted)
        return 0
    extra = [*(["--data", flags.data] if flags.data else []), *(["--no-wait"] * (not wait))]
    return run_workers(study, plan.settings.threads, jobs, [*extra, *plugin_flags(trusted)])
