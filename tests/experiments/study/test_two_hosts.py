"""Two hosts in network namespaces on one PostgreSQL study, and the link of one cut for a while."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers import stub_study
from helpers.postgres_server import Postgres

from ecanet.experiments.study.location import Location
from ecanet.experiments.study.study import Study

GRACE = 6.0


@dataclass
class Host:
    """A network of its own, with one link to the database's machine."""

    name: str
    link: str
    address: str
    """Of the database's machine, as seen from here."""

    def cut(self) -> None:
        ip("link", "set", self.link, "down")

    def heal(self) -> None:
        ip("link", "set", self.link, "up")

    def start(self, postgres: Postgres, folder: Path) -> subprocess.Popen[bytes]:
        """Start a worker here on the study of that name."""
        return subprocess.Popen(
            [
                "ip", "netns", "exec", self.name,
                sys.executable, stub_study.__file__, folder.with_suffix(".news"), folder,
                "--storage", postgres.url(self.address), "--study", "hosts", "--jobs", "1",
            ]
        )  # fmt: skip


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    made = []
    try:
        for i in (1, 2):
            host = Host(f"ecanet-test-{i}", f"ecanet-t{i}", f"10.213.{i}.1")
            ip("netns", "add", host.name)
            made.append(host)
            ip("link", "add", host.link, "type", "veth", "peer", "name", "eth0", "netns", host.name)
            ip("addr", "add", f"{host.address}/24", "dev", host.link)
            ip("link", "set", host.link, "up")
            for command in (
                ["addr", "add", f"10.213.{i}.2/24", "dev", "eth0"],
                ["link", "set", "eth0", "up"],
                ["link", "set", "lo", "up"],
            ):
                ip("-n", host.name, *command)
        yield made
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        pytest.skip(f"needs the right to make network namespaces ({error})")
    finally:
        for host in made:
            subprocess.run(["ip", "netns", "del", host.name], capture_output=True)
            subprocess.run(["ip", "link", "del", host.link], capture_output=True)


def wait(study: Study, until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not until():
        assert time.monotonic() < deadline, study.queue.counts()
        time.sleep(0.05)


def times(folder: Path, run: str) -> list[float]:
    """When the epochs of a run ended that were made in this folder."""
    file = folder / "runs" / run / "times"
    return [float(line) for line in file.read_text().split()] if file.exists() else []


@pytest.mark.slow
def test_a_host_is_cut_off_for_a_while(
    tmp_path: Path, postgres: Postgres, hosts: list[Host]
) -> None:
    """Longer than the grace period: its run is made elsewhere, and there alone. Shorter: it goes on."""
    folders = [tmp_path / "one", tmp_path / "two"]
    study = stub_study.make_study(
        Location(tmp_path / "main", postgres.url(), "hosts"),
        16, heartbeat=0.5, grace=GRACE, seconds=0.8,
    )  # fmt: skip
    workers = [h.start(postgres, f) for h, f in zip(hosts, folders, strict=True)]

    def first_run() -> str | None:
        """The run that the first host has in hand, and of which it has made an epoch."""
        at = {a["run"] for _, a in study.queue.running()}
        return next((run for run in at if times(folders[0], run)), None)

    try:
        wait(study, lambda: first_run() is not None)
        short = first_run()
        assert short is not None
        hosts[0].cut()
        time.sleep(GRACE / 4)
        hosts[0].heal()
        wait(study, lambda: first_run() not in (None, short))

        lost = first_run()
        assert lost is not None
        hosts[0].cut()
        cut = time.time()
        wait(study, lambda: len(times(folders[1], lost)) > 0)
        time.sleep(GRACE)
        healed = time.time()
        hosts[0].heal()
        wait(study, lambda: not study.queue.counts().open)
        assert [worker.wait(30) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()

    assert study.queue.counts().complete == 16
    calm = stub_study.make_study(Location(tmp_path / "calm"), 16, seconds=0.0)
    subprocess.run(
        [sys.executable, stub_study.__file__, tmp_path / "calm.news", calm.folder, "--jobs", "1"],
        check=True,
    )
    assert stub_study.outcome(study) == stub_study.outcome(calm)

    # The short cut cost nothing; the long one cost the first host its run, and no run twice at once.
    assert len(times(folders[0], short)) == stub_study.EPOCHS
    assert not times(folders[1], short)
    assert max(times(folders[0], lost)) < min(times(folders[1], lost))
    assert len(times(folders[1], lost)) == stub_study.EPOCHS
    after = [t for run in folders[0].glob("runs/*") for t in times(folders[0], run.name)]
    assert not [t for t in after if cut + GRACE < t < healed], "held while it was cut off"
    assert [t for t in after if t > healed], "at work again afterwards"
