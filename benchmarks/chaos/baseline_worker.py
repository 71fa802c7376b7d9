"""A worker of the baseline: plain `study.optimize`, as Optuna's documentation sets it up for workers that may die.

`python -m benchmarks.chaos.baseline_worker STUDY_FILE`; the storage comes from OPTUNA_STORAGE.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import optuna
from optuna.samplers import GridSampler
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback

from benchmarks.chaos import study
from benchmarks.chaos.light import LightPack
from benchmarks.chaos.study import Plan

HEARTBEAT_SECONDS = 5  # as often as foldtune renews its leases
GRACE_SECONDS = 30  # as long as foldtune's leases


def storage(url: str) -> RDBStorage:
    """With heartbeats, retries without limit, and pool_pre_ping, which its documentation advises where links break."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return RDBStorage(
            url,
            engine_kwargs={"pool_pre_ping": True},
            heartbeat_interval=HEARTBEAT_SECONDS,
            grace_period=GRACE_SECONDS,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
        )


def sampler(plan: Plan) -> GridSampler:
    """Every worker with one seed: the grid's order hangs on it, and others would miss points."""
    space = {name: list(entry.points()) for name, entry in plan.spec.space.items()}
    return GridSampler(space, seed=plan.spec.seed)


class Objective:
    """The folds of one configuration, trained by the light engine in this process."""

    def __init__(self, plan: Plan, history: Path) -> None:
        self.plan = plan
        self.history = history / f"{os.getpid()}.jsonl"

    def __call__(self, trial: optuna.Trial) -> float:
        self.note("leased", trial.number)
        point = {
            name: trial.suggest_categorical(name, list(entry.points())) for name, entry in self.plan.spec.space.items()
        }
        pack = LightPack(
            self.plan.examples,
            epoch_seconds=float(os.environ["FOLDTUNE_LIGHT_EPOCH_SECONDS"]),
            log=os.environ["FOLDTUNE_LIGHT_LOG"],
        )
        return self.plan.loss(point, lambda unit: study.tallies(pack, replace(unit, unit=trial.number)))

    def told(self, _study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        """Called once Optuna has the value."""
        self.note("ended", trial.number)

    def note(self, event: str, number: int) -> None:
        """A line of history, in the form that foldtune's workers write."""
        line = {"time": time.time(), "event": event, "unit": number, "lease_epoch": 1}
        with self.history.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def main() -> None:
    """Optimize until the sampler says that the grid is exhausted."""
    plan = study.planned(Path(sys.argv[1]))
    shared = optuna.load_study(
        study_name=study.NAME, storage=storage(os.environ["OPTUNA_STORAGE"]), sampler=sampler(plan)
    )
    objective = Objective(plan, Path(os.environ["CHAOS_HISTORY"]))
    shared.optimize(objective, callbacks=[objective.told])


if __name__ == "__main__":
    main()
