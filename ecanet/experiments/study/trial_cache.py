"""Trials as samplers and pruners read them: without those that wait, and cached once they have ended."""

from __future__ import annotations

from collections.abc import Container

import sqlalchemy as sql
from optuna.storages import RDBStorage, _CachedStorage
from optuna.trial import FrozenTrial, TrialState

from ecanet.experiments.study.rows import TRIALS


class BegunTrials(_CachedStorage):
    """Optuna's cached storage for studies in which thousands of trials wait.

    Optuna reads every trial that has not ended again for each call of a sampler or pruner: seconds for
    10,000 waiting trials, which hold nothing that a sampler or pruner uses.
    """

    def __init__(self, backend: RDBStorage) -> None:
        super().__init__(backend)
        self._seen_at_end: set[int] = set()

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        self.get_study_name_from_id(study_id)
        return super().get_all_trials(study_id, deepcopy, states)

    def _read_trials_from_remote_storage(self, study_id: int) -> None:
        begun = sql.select(TRIALS.c.trial_id).where(
            TRIALS.c.study_id == study_id, TRIALS.c.state != TrialState.WAITING
        )
        with self._backend.engine.connect() as connection:
            ids = set(connection.execute(begun).scalars())
        with self._lock:
            cached = self._studies[study_id].trials
            for trial in list(cached.values()):
                if trial._trial_id not in ids:
                    # It was requeued.
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
