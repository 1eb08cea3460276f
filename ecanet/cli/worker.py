"""``ecanet worker``."""

from __future__ import annotations

import argparse
import functools
import signal
from typing import Any

from ecanet.cli.options import (
    OneLineParser,
    StudyCommand,
    add_plugin_arguments,
    add_study_arguments,
)
from ecanet.cli.output import say
from ecanet.config import check_ranges
from ecanet.plugins import check_trust
from ecanet.signals import stop_without


def run(arguments: list[str]) -> int:
    """Work on a study's runs until all have ended, beside any number of workers on any machines.

    SIGTERM and Ctrl-C put the run under way back into the queue; whoever takes it up goes on from its
    last checkpoint if the study's folder is the same. A worker that dies without a word, or is cut off,
    is noticed by the others. The exit code is 1 if runs of the study have failed, or workers were lost
    and runs are left.
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
    add_plugin_arguments(parser)
    # For the workers that this command and compare start.
    parser.add_argument("--index", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--of", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    flags = parser.parse_args(arguments)
    check_ranges(StudyCommand(jobs=flags.jobs))
    if flags.parent:
        # The run goes back into the queue, if there is time.
        stop_without(flags.parent, signal.SIGTERM, 10.0)

    from ecanet.experiments.study.location import locate
    from ecanet.experiments.study.pool import fitting_jobs, plugin_flags, run_workers
    from ecanet.experiments.study.queue import CANCELLED
    from ecanet.experiments.study.study import failures, load_study
    from ecanet.experiments.study.worker import work

    study = load_study(locate(flags.folder, flags.storage, flags.study))
    trusted = None if flags.trust_plugins else flags.plugin
    how: dict[str, Any] = {
        "data_path": flags.data, "wait": not flags.no_wait, "plugin": trusted,
    }  # fmt: skip
    if flags.index is not None:
        # The command that has started this one passes on its standard output, and judges the study.
        work(
            study, index=flags.index, jobs=flags.of, say=functools.partial(print, flush=True), **how
        )
        return 0
    plan = study.plan()
    check_trust(plan.plugin, trusted, "the study")
    jobs = flags.jobs or fitting_jobs(plan)
    lost = 0
    if jobs == 1:
        work(study, say=say, **how)
    else:
        extra = [*(["--data", flags.data] if flags.data else []), *(["--no-wait"] * flags.no_wait)]
        extra += plugin_flags(trusted)
        lost = run_workers(study, plan.settings.threads, jobs, say, extra)
    failed = [found["run"] for found in failures(study) if found.get("error") != CANCELLED]
    if failed:
        number = "1 run has" if len(failed) == 1 else f"{len(failed)} runs have"
        say(f"{number} failed: {', '.join(failed[:3])}{' …' if failed[3:] else ''}")
    left = study.queue.counts().open if lost else 0
    if left:
        say(f"{left} runs are left; the same command goes on")
    return 1 if failed or left else 0
