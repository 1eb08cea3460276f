"""``ecanet worker``."""

from __future__ import annotations

import argparse
import signal
from typing import Any

from ecanet.cli.compare import say
from ecanet.cli.options import OneLineParser, add_study_arguments
from ecanet.errors import at_least
from ecanet.interrupts import stop_without


def run(arguments: list[str]) -> int:
    """Work on a study's runs until all have ended, beside any number of workers on any machines.

    SIGTERM and Ctrl-C put the run under way back into the queue; whoever takes it up goes on from its
    last checkpoint if the study's folder is the same. A worker that dies without a word, or is cut off,
    is noticed by the others.
    """
    parser = OneLineParser("ecanet worker", description=run.__doc__)
    add_study_arguments(parser)
    parser.add_argument("--data", help="where the study's images are on this machine")
    parser.add_argument(
        "--jobs",
        type=int,
        help="workers on this machine; by default one a GPU, or one a CPU core as far as memory reaches",
    )
    parser.add_argument(
        "--no-wait",
        action="store_true",
        help="leave when no run waits, in place of staying in case one comes back",
    )
    # For the workers that this command and compare start.
    parser.add_argument("--index", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--of", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    flags = parser.parse_args(arguments)
    at_least(1, jobs=flags.jobs)
    if flags.parent:
        # The run goes back into the queue, if there is time.
        stop_without(flags.parent, signal.SIGTERM, 10.0)

    from ecanet.experiments.study import load_study, locate
    from ecanet.experiments.worker import work

    study = load_study(locate(flags.folder, flags.storage, flags.study))
    how: dict[str, Any] = {"data_path": flags.data, "wait": not flags.no_wait, "say": say}
    if flags.index is not None or flags.jobs == 1:
        work(study, index=flags.index or 0, jobs=flags.of or 1, **how)
        return 0

    from ecanet.experiments.pool import fitting_jobs, run_workers

    plan = study.plan()
    jobs = flags.jobs or fitting_jobs(plan)
    extra = [*(["--data", flags.data] if flags.data else []), *(["--no-wait"] * flags.no_wait)]
    run_workers(study.location, plan.settings.threads, jobs, say, extra)
    return 0
