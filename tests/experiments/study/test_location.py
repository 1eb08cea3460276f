"""Where a study is, and databases of it on a real PostgreSQL."""

from __future__ import annotations

import json
import shlex
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy
from helpers import stub_study
from helpers.postgres_server import Postgres
from sqlalchemy.exc import DBAPIError

from ecanet.errors import UserError
from ecanet.experiments.plans.compare import run_name
from ecanet.experiments.study.location import Location, locate, parse_address, valid_run_name
from ecanet.experiments.study.storage import open_storage, study_names
from ecanet.experiments.study.study import load_study

SECRET = "hunter2hunter2"


@pytest.fixture(autouse=True)
def own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.mark.parametrize(
    ("given", "address", "password"),
    [
        ("postgresql://me@h/x", "postgresql://me@h/x", None),
        ("postgresql+psycopg://me:p%40w@h:5432/x", "postgresql://me@h:5432/x", "p@w"),
        ("postgresql://me@h/x?sslmode=a&password=pw", "postgresql://me@h/x?sslmode=a", "pw"),
        ("postgresql://me@/x?host=a:1&host=b:2", "postgresql://me@/x?host=a%3A1&host=b%3A2", None),
        ("postgresql:///x?host=/run/postgresql", "postgresql:///x?host=%2Frun%2Fpostgresql", None),
        ("postgresql://me:pw@[::1]:5432/x", "postgresql://me@[::1]:5432/x", "pw"),
    ],
)
def test_addresses_are_kept_without_their_password(
    given: str, address: str, password: str | None
) -> None:
    assert parse_address(given) == (address, password)
    assert parse_address(address) == (address, None), "what was kept is what was named"


def test_the_refusal_of_an_unknown_database_names_the_flags_to_give(tmp_path: Path) -> None:
    location = Location(tmp_path, "postgresql://me@h/x?sslmode=require", "a study's")
    pointer = {"storage": location.storage, "study": location.name}
    (tmp_path / "study.json").write_text(json.dumps(pointer))
    with pytest.raises(UserError, match="not used here before") as error:
        locate(tmp_path)
    flags = shlex.split(str(error.value).partition("give ")[2])
    assert flags == location.flags()[1:]
    assert locate(tmp_path, flags[1], flags[3]) == location
    assert locate(tmp_path) == location


def test_generated_run_names_are_valid_and_differ() -> None:
    for spec in ("none", "eca:kernel_size=9", "cbam:reduction=8:kernel_size=3", "my_gate:x=-1.5"):
        name = f"{spec.replace(':', '-')}-seed12"
        assert valid_run_name(run_name(spec, 12)) == name
    assert valid_run_name("trial-0007-seed3")


def test_reading_a_postgresql_database_creates_no_tables(
    tmp_path: Path, postgres: Postgres
) -> None:
    import psycopg

    name = f"empty_{tmp_path.name.lower()[-6:]}"
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    url = postgres.url().replace("/postgres", f"/{name}")
    assert study_names(Location(tmp_path, url)) == []
    with pytest.raises(UserError, match="holds no study"):
        load_study(Location(tmp_path, url), "read")
    with psycopg.connect(url) as connection:
        tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
        assert connection.execute(tables).fetchone() == (0,)
        connection.execute("CREATE TABLE studies (name text)")
    for mode in ("read", "write", "create"):
        with pytest.raises(UserError, match="another program"):
            open_storage(Location(tmp_path, url), mode)  # type: ignore[arg-type]


def test_a_study_opened_to_read_cannot_be_written(tmp_path: Path, postgres: Postgres) -> None:
    there = Location(tmp_path / "b", postgres.url(), "readonly")
    for location in (Location(tmp_path / "a"), there):
        stub_study.make_study(location, 2).queue.engine.dispose()
        study = load_study(location, "read")
        assert study.queue.counts().waiting == 2
        with (
            pytest.raises(DBAPIError, match=r"read-?only"),
            study.queue.engine.begin() as connection,
        ):
            connection.execute(sqlalchemy.text("UPDATE studies SET study_name = 'x'"))


def test_no_file_and_no_row_holds_the_password(
    tmp_path: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psycopg

    location = locate(tmp_path / "study", postgres.url().replace("@", f":{SECRET}@"), "secretive")
    study = stub_study.make_study(location, 1)
    assert location.password == SECRET
    assert study.queue.counts().waiting == 1
    assert study.queue_for_heartbeats().engine.url.password == SECRET
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or SECRET not in path.read_text(errors="replace")
    with psycopg.connect(postgres.url()) as connection:
        for table in ("study_user_attributes", "trial_user_attributes"):
            rows = connection.execute(f"SELECT value_json FROM {table}").fetchall()
            assert SECRET not in str(rows)


def test_a_study_is_read_while_its_log_is_open(tmp_path: Path) -> None:
    """By another process: what has not come into the database's file yet is seen as well."""
    study = stub_study.make_study(Location(tmp_path), 3)
    assert (tmp_path / "study.db-wal").exists()
    reading = load_study(tmp_path, "read")
    study.queue.claim({})
    assert reading.queue.counts().running == 1
    with closing(sqlite3.connect(f"file:{tmp_path}/study.db?immutable=1", uri=True)) as database:
        waiting = "SELECT count(*) FROM trials"
        assert database.execute(waiting).fetchone() == (0,), "else this test shows nothing"
