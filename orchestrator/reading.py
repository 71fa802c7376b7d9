"""What `status`, `best` and `list` say, from the database alone. Plain JSON values; schemas in docs/schemas."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, text

from orchestrator import budget, curves, learnt, objective, queries, words
from orchestrator.curves import Epoch, FoldCurve
from orchestrator.database.engine import transaction
from orchestrator.records import FoldResult, StudyRecord, TrialRecord

TRIAL_STATES = ("waiting", "running", "complete", "stopped", "diverged", "infeasible", "failed", "cancelled")


@dataclass(frozen=True)
class View:
    """One consistent look at a study."""

    record: StudyRecord
    trials: Sequence[TrialRecord]
    results: Sequence[FoldResult]
    used_seconds: float
    units: Mapping[int, Mapping[str, int]]  # trial id -> unit state -> count
    running: Sequence[Mapping[str, Any]]  # leased units with their last epoch
    elapsed: float  # seconds since the launch, on the database's clock
    learnt: Mapping[int, Sequence[FoldCurve]]  # trial id -> its folds' curves; of the best trial, or of all

    def trial_results(self, trial: TrialRecord) -> list[FoldResult]:
        """The finished folds of a trial."""
        return [result for result in self.results if result.trial == trial.id]

    def curve(self, trial: TrialRecord) -> list[Epoch]:
        """Of its finished folds, pooled."""
        return curves.pooled([fold for fold in self.learnt.get(trial.id, ()) if fold.done], self.record.plan)

    def reported(self, trial: TrialRecord) -> Epoch | None:
        """Its losses at the epoch that counts, pooled over its finished folds."""
        return curves.reported(self.trial_results(trial), self.learnt.get(trial.id, ()), self.record.plan)

    @property
    def best(self) -> TrialRecord | None:
        """The best complete trial, the default configuration included."""
        return words.best_trial(self.record, self.trials)

    @property
    def default(self) -> TrialRecord | None:
        """The default configuration's trial."""
        return next((trial for trial in self.trials if trial.is_default), None)


def view(engine: Engine, name: str, *, every_curve: bool = False) -> View:
    """Look at a study.

    every_curve: read the learning curves of all trials, with every metric, and not the best one's losses alone.

    Raises:
        FoldtuneError: there is none of that name.
    """
    with transaction(engine) as connection:
        connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
        record = queries.study(connection, name)
        trials = queries.trials(connection, record.id)
        best = words.best_trial(record, trials)
        wanted = None if every_curve else [] if best is None else [best.id]
        return View(
            record=record,
            trials=trials,
            learnt=queries.fold_curves(connection, record.id, wanted, metrics=every_curve),
            results=queries.fold_results(connection, record.id),
            used_seconds=budget.used_seconds(connection, record.id),
            units=_units(connection, record.id),
            running=_running(connection, record.id),
            elapsed=float(
                queries.scalar(
                    connection, "SELECT extract(epoch FROM now() - created_at) FROM study WHERE id = :id", id=record.id
                )
            ),
        )


def status(seen: View) -> dict[str, Any]:
    """`status --json`."""
    counts = Counter(trial.state for trial in seen.trials if trial.searched)
    best = seen.best
    opened = sum(trial.searched and trial.state != "waiting" for trial in seen.trials)
    return {
        "study": seen.record.name,
        "state": seen.record.state,
        "trials": {state: counts[state] for state in TRIAL_STATES},
        "budget": {
            "trials": {"used": opened, "total": seen.record.trials_total},
            "hours": {"used": seen.used_seconds / 3600, "total": seen.record.spec.budget.hours},
        },
        "best": None if best is None else {"trial": best.number, "value": best.value, "default": best.is_default},
    }


def all_curves(seen: View) -> list[dict[str, Any]]:
    """`status --json --curves`: of every trial that has reported an epoch, unfinished folds too; no baselines."""
    return [
        learnt.described(trial, seen.learnt[trial.id], seen.curve(trial), seen.reported(trial))
        for trial in seen.trials
        if trial.id in seen.learnt and not trial.is_baseline
    ]


def best(seen: View) -> dict[str, Any] | None:
    """`best --json`; None while nothing is complete."""
    trial = seen.best
    if trial is None:
        return None
    course = learnt.course(seen.curve(trial), seen.reported(trial))
    return describe(seen, trial) | course | {"baselines": baselines(seen)}


def baselines(seen: View) -> list[dict[str, Any]]:
    """What each baseline reached, in the order of the study; value and metrics are null unless it is complete."""
    return [
        {
            "name": trial.name,
            "state": trial.state,
            "reason": trial.reason,
            "value": trial.value,
            "metrics": describe(seen, trial)["metrics"] if trial.value is not None else None,
        }
        for trial in seen.trials
        if trial.is_baseline
    ]


def describe(seen: View, trial: TrialRecord) -> dict[str, Any]:
    """One complete trial: its number, value, hyperparameters, folds and pooled metrics."""
    results = seen.trial_results(trial)
    pooled = objective.metrics(objective.add(result.tallies for result in results))
    return {
        "study": seen.record.name,
        "trial": trial.number,
        "default": trial.is_default,
        "value": trial.value,
        "direction": "maximize" if seen.record.spec.maximize else "minimize",
        "objective": seen.record.spec.objective,
        "params": dict(trial.shown),
        "settings": dataclasses.asdict(trial.settings) | ({"epochs": trial.epoch} if trial.epoch is not None else {}),
        "folds": [
            {
                "repeat": result.repeat,
                "fold": result.fold,
                "epoch": result.epoch,
                "loss": objective.validation_loss(result.tallies),
                "n": int(result.tallies["items"]),
            }
            for result in results
        ],
        "metrics": learnt.finite(pooled),
    }


def studies(engine: Engine) -> list[dict[str, Any]]:
    """`list --json`: every study's status, oldest first."""
    with transaction(engine) as connection:
        names = queries.study_names(connection)
    return [status(view(engine, name)) for name in names]


def failures(engine: Engine, name: str) -> list[dict[str, Any]]:
    """Units that did not end well, with their evidence."""
    with transaction(engine) as connection:
        record = queries.study(connection, name)
        rows = connection.execute(
            text(
                "SELECT CASE WHEN t.is_default THEN 'default' ELSE CAST(t.number AS text) END AS trial, "
                "u.repeat, u.fold, CAST(u.state AS text) AS state, u.charges, u.reason, "
                "u.evidence FROM unit u JOIN trial t ON t.id = u.trial WHERE u.study = :study "
                "AND (u.state IN ('failed', 'diverged', 'infeasible') OR u.charges > 0) ORDER BY u.id"
            ),
            {"study": record.id},
        )
        return [dict(row) for row in rows.mappings()]


def attempts(engine: Engine, name: str) -> dict[str, int]:
    """How the attempts that have ended did so: cause -> count, the most frequent first."""
    with transaction(engine) as connection:
        rows = connection.execute(
            text(
                "SELECT a.cause, count(*) FROM attempt a JOIN unit u ON u.id = a.unit JOIN study s ON s.id = u.study "
                "WHERE s.name = :name AND a.cause IS NOT NULL GROUP BY a.cause ORDER BY count(*) DESC, a.cause"
            ),
            {"name": name},
        )
        return {str(cause): int(count) for cause, count in rows}


def excerpt(evidence: str, lines: int = 8) -> list[str]:
    """Where a unit failed, and the last that was heard of it."""
    said = evidence.rstrip().splitlines()
    return said if len(said) <= lines + 1 else [said[0], "...", *said[-lines:]]


def _units(connection: Connection, study_id: int) -> dict[int, dict[str, int]]:
    rows = connection.execute(
        text("SELECT trial, CAST(state AS text), count(*) FROM unit WHERE study = :study GROUP BY trial, state"),
        {"study": study_id},
    )
    units: dict[int, dict[str, int]] = {}
    for trial, state, count in rows:
        units.setdefault(trial, {})[state] = count
    return units


def _running(connection: Connection, study_id: int) -> list[dict[str, Any]]:
    rows = connection.execute(
        text(
            "SELECT u.trial, u.repeat, u.fold, w.name AS worker, w.device, r.epoch, r.tallies, r.train_loss "
            "FROM unit u LEFT JOIN worker w ON w.id = u.worker "
            "LEFT JOIN LATERAL (SELECT epoch, tallies, train_loss FROM result WHERE unit = u.id "
            "ORDER BY epoch DESC LIMIT 1) r ON true WHERE u.study = :study AND u.state = 'leased' ORDER BY u.id"
        ),
        {"study": study_id},
    )
    return [dict(row) for row in rows.mappings()]


def folds_saved(seen: View) -> int:
    """Folds that racing has made needless: those that its stopped trials never finished."""
    stopped = [trial.id for trial in seen.trials if trial.state == "stopped" and trial.duplicate_of is None]
    return sum(sum(seen.units.get(id, {}).values()) - seen.units.get(id, {}).get("done", 0) for id in stopped)


def seconds_to_go(seen: View) -> float | None:
    """A forecast from the pace so far: elapsed time for each finished unit, times the units still to come.

    None before the first unit is done, and once the study has ended.
    """
    done = sum(counts.get("done", 0) for counts in seen.units.values())
    if not done or seen.record.state != "open":
        return None
    each = len(seen.record.plan.units)
    planned = seen.record.trials_total + sum(not trial.searched for trial in seen.trials)
    ended = sum(
        each - seen.units.get(trial.id, {}).get("done", 0)
        for trial in seen.trials
        if trial.state not in ("waiting", "running")
    )
    return seen.elapsed / done * max(0, planned * each - done - ended)
