"""Optuna's private tables and methods that the queue uses: why pyproject.toml pins its major version."""

from __future__ import annotations

import inspect
from pathlib import Path

import sqlalchemy
from helpers import stub_study
from optuna.storages import RDBStorage, _CachedStorage
from optuna.storages._rdb.models import TrialValueModel

from ecanet.experiments.study import rows
from ecanet.experiments.study.location import Location

COLUMNS = {
    "STUDIES": "study_id study_name",
    "STUDY_ATTRIBUTES": "study_user_attribute_id study_id key value_json",
    "TRIALS": "trial_id number study_id state datetime_start datetime_complete",
    "ATTRIBUTES": "trial_user_attribute_id trial_id key value_json",
    "SYSTEM_ATTRIBUTES": "trial_system_attribute_id trial_id key value_json",
    "PARAMS": "param_id trial_id param_name param_value distribution_json",
    "VALUES": "trial_value_id trial_id objective value value_type",
    "STEPS": "trial_intermediate_value_id trial_id step intermediate_value intermediate_value_type",
    "HEARTBEATS": "trial_heartbeat_id trial_id heartbeat",
}
UPSERT_KEYS = {
    "STUDY_ATTRIBUTES": ["study_id", "key"],
    "ATTRIBUTES": ["trial_id", "key"],
    "HEARTBEATS": ["trial_id"],
}


def test_tables_have_the_columns_that_the_queue_reads_and_writes(tmp_path: Path) -> None:
    study = stub_study.make_study(Location(tmp_path / "study"), 1)
    database = sqlalchemy.inspect(study.queue.engine)
    tables = {
        name: value for name, value in vars(rows).items() if isinstance(value, sqlalchemy.Table)
    }
    assert tables.keys() == COLUMNS.keys()
    for name, table in tables.items():
        stored = [column["name"] for column in database.get_columns(table.name)]
        assert set(stored) == set(table.c.keys()) == set(COLUMNS[name].split()), name
    for name, keys in UPSERT_KEYS.items():
        constraints = database.get_unique_constraints(tables[name].name)
        assert keys in [constraint["column_names"] for constraint in constraints], name


def test_private_methods_take_what_they_are_given() -> None:
    assert TrialValueModel.value_to_stored_repr(0.5)[0] == 0.5
    for method, parameters in {
        RDBStorage._get_trials: "self study_id states included_trial_ids trial_id_greater_than",
        _CachedStorage._read_trials_from_remote_storage: "self study_id",
        _CachedStorage._add_trials_to_cache: "self study_id trials",
    }.items():
        assert list(inspect.signature(method).parameters) == parameters.split()
