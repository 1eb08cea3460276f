"""Two hosts in network namespaces on one PostgreSQL study, and the link of one cut for a while."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers import stub_study
from helpers.postgres_server import Postgres
from helpers.waiting import wait_until

from ecanet.experiments.study.location import Location

GRACE = 6.0
WORKER = stub_study.python("worker(sys.argv[1], sys.argv[2:])")


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
                *WORKER, folder.with_suffix(".news"), folder,
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
            ip("-n", host.name, "addr", "add", f"10.213.{i}.2/24", "dev", "eth0")
            ip("-n", host.name, "link", "set", "eth0", "up")
            ip("-n", host.name, "link", "set", "lo", "up")
        yield made
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        pytest.skip(f"needs the right to make network namespaces ({error})")
    finally:
        for host in made:
            subprocess.run(["ip", "netns", "del", host.name], capture_output=True)
            subprocess.run(["ip", "link", "del", host.link], capture_output=True)


def times(folder: Path, run: str) -> list[float]:
    """Return when the epochs of a run that were trained in this folder ended."""
    file = folder / "runs" / run / "times"
    return [float(line) for line in file.read_text().split()] if file.exists() else []


@pytest.mark.slow
def test_a_host_is_disconnected_for_a_while(
    tmp_path: Path, postgres: Postgres, hosts: list[Host]
) -> None:
    """For longer than the grace period: its run is trained on the other host only. For less: it continues."""
    folders = [tmp_path / "one", tmp_path / "two"]
    study = stub_study.make_study(
        Location(tmp_path / "main", postgres.url(), "hosts"),
        16, heartbeat=0.5, grace=GRACE, seconds=0.8,
    )  # fmt: skip
    workers = [h.start(postgres, f) for h, f in zip(hosts, folders, strict=True)]

    def first_run() -> str | None:
        """The run that the first host has claimed, and of which it has trained an epoch."""
        at = {a["run"] for _, a in study.queue.running()}
        return next((run for run in at if times(folders[0], run)), None)

    try:
        wait_until(first_run, 90)
        short = first_run()
        hosts[0].cut()
        time.sleep(GRACE / 4)
        hosts[0].heal()
        wait_until(lambda: first_run() not in (None, short), 90)

        lost = first_run()
        hosts[0].cut()
        cut = time.time()
        wait_until(lambda: times(folders[1], lost), 90)
        time.sleep(GRACE)
        healed = time.time()
        hosts[0].heal()
        wait_until(lambda: not study.queue.counts().open, 90)
        assert [worker.wait(30) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()

    assert study.queue.counts().complete == 16
    calm = stub_study.make_study(Location(tmp_path / "calm"), 16, seconds=0.0)
    subprocess.run([*WORKER, tmp_path / "calm.news", calm.folder, "--jobs", "1"], check=True)
    assert stub_study.outcome(study) == stub_study.outcome(calm)

    # The short cut cost nothing; the long one cost the first host its run, never trained twice at once.
    assert len(times(folders[0], short)) == stub_study.EPOCHS
    assert not times(folders[1], short)
    assert max(times(folders[0], lost)) < min(times(folders[1], lost))
    assert len(times(folders[1], lost)) == stub_study.EPOCHS
    after = [t for run in folders[0].glob("runs/*") for t in times(folders[0], run.name)]
    assert not [t for t in after if cut + GRACE < t < healed], "paused while it was disconnected"
    assert [t for t in after if t > healed], "training again afterwards"
