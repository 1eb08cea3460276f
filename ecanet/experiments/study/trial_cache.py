"""What samplers and pruners see of a study: the trials that have begun, read as they change."""

from __future__ import annotations

from collections.abc import Container

import sqlalchemy as sql
from optuna.storages import RDBStorage, _CachedStorage
from optuna.storages._rdb.models import TrialModel
from optuna.trial import FrozenTrial, TrialState


class BegunTrials(_CachedStorage):
    """Optuna's cached storage, for studies in which thousands of trials wait.

    Optuna reads every trial that has not ended anew, at each look of a sampler or a pruner: seconds for
    ten thousand that wait. A waiting trial has nothing to tell them.
    """

    def __init__(self, backend: RDBStorage) -> None:
        super().__init__(backend)
        self._seen_at_end: set[int] = set()

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        self.get_study_name_from_id(study_id)
        return super().get_all_trials(study_id, deepcopy, states)

    def _read_trials_from_remote_storage(self, study_id: int) -> None:
        table = TrialModel.__table__
        begun = sql.select(table.c.trial_id).where(
            table.c.study_id == study_id, table.c.state != TrialState.WAITING
        )
        with self._backend.engine.connect() as connection:
            ids = set(connection.execute(begun).scalars())
        with self._lock:
            cached = self._studies[study_id].trials
            for trial in list(cached.values()):
                if trial._trial_id not in ids:
                    # Its worker gave it back.
                    del cached[trial.number]
            new = ids - self._seen_at_end
            if not new:
                return
            states = [state for state in TrialState if state != TrialState.WAITING]
            trials = self._backend._get_trials(
                study_id, states, included_trial_ids=new, trial_id_greater_than=max(new)
            )
            self._add_trials_to_cache(study_id, trials)
            self._seen_at_end |= {t._trial_id for t in trials if t.state.is_finished()}
