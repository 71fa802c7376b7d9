"""Make Optuna show what foldtune's tables say. Idempotent: whoever comes next completes what a crash left.

One process at a time projects a study, under a lock of its own: Optuna takes some hundred statements for a trial, and
under the study's row lock nobody could take or finish a unit meanwhile.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

from sqlalchemy import Connection, Engine, text

import foldtune
from orchestrator import lifecycle, objective, queries, study, words
from orchestrator.contract import digest
from orchestrator.database.engine import readable_errors, transaction
from orchestrator.records import FoldResult, StudyRecord, TrialRecord
from orchestrator.study import Past


def project(engine: Engine, name: str, *, wait: bool = True) -> None:
    """Bring the Optuna study of `name` up to date. Without `wait`, leave it to whoever is at it just now."""
    with transaction(engine) as connection:
        found = queries.study(connection, name)
        if not _behind(connection, found):
            return
    with readable_errors(engine.url), study.alone(engine.url, found.id, wait=wait) as mine:
        if not mine:
            return
        with transaction(engine) as connection:
            record = queries.study(connection, name)
            if not _behind(connection, record):
                return
        _project(engine, record)


def _project(engine: Engine, record: StudyRecord) -> None:
    attributes = {
        "foldtune:version": foldtune.__version__,
        "foldtune:digest": record.spec.digest(),
        "foldtune:snapshot": record.snapshot,
        "foldtune:folds": record.plan.digest(),
    }
    shown = study.open_projection(
        engine.url, record.name, record.spec.objective, maximize=record.spec.maximize, attributes=attributes
    )
    known = study.shown_keys(shown)
    for trial in _trials(engine, record):
        if trial.number is not None and trial.key not in known:  # a person deleted it, or the whole Optuna study
            _remember(engine, trial, "number = NULL, told = false")
    for trial in _trials(engine, record):
        if trial.in_space and trial.state != "waiting" and trial.number is None:
            _start(engine, shown, record, trial)
    trials = _trials(engine, record)
    for number in study.orphans(shown, [trial.key for trial in trials]):
        study.drop_orphan(shown, number)
    _tell_ended(engine, shown, record, trials)
    _note(engine, shown, record, trials)


def _trials(engine: Engine, record: StudyRecord) -> list[TrialRecord]:
    with transaction(engine) as connection:
        return queries.trials(connection, record.id)


def _behind(connection: Connection, record: StudyRecord) -> bool:
    """Whether a trial was opened or closed that Optuna has not heard of. Asked after every step of every worker."""
    return record.noted is None or bool(
        queries.scalar(
            connection,
            "SELECT EXISTS (SELECT 1 FROM trial WHERE study = :study AND "
            "(state NOT IN ('waiting', 'running') AND NOT told OR state <> 'waiting' AND in_space AND number IS NULL))",
            study=record.id,
        )
    )


def past_of(connection: Connection, record: StudyRecord, trials: list[TrialRecord]) -> list[Past]:
    """What the sampler may know: every opened trial whose values lie in the space."""
    known = [trial for trial in trials if trial.in_space and trial.state != "waiting"]
    results = _by_trial(queries.fold_results(connection, record.id))
    return [_past(record, trial, results) for trial in known]


def running_values(record: StudyRecord, results: list[FoldResult]) -> list[float]:
    """The objective pooled over the first 1, 2, ... finished folds."""
    sums = itertools.accumulate((result.tallies for result in results), lambda a, b: objective.add([a, b]))
    values = [objective.metrics(tallies)[record.spec.objective] for tallies in sums]
    return [float(value) for value in values]


def _past(record: StudyRecord, trial: TrialRecord, results: dict[int, list[FoldResult]]) -> Past:
    folds = results.get(trial.duplicate_of or trial.id, [])
    reports = running_values(record, folds) if trial.state in lifecycle.TERMINAL else []
    return Past(params=trial.params, state=trial.state, value=trial.value, reports=reports)


def _start(engine: Engine, shown: Any, record: StudyRecord, trial: TrialRecord) -> None:
    number = study.show_start(shown, trial.key, trial.params, record.spec.space, {"origin": trial.origin})
    _remember(engine, trial, "number = :number", number=number)


def _tell_ended(engine: Engine, shown: Any, record: StudyRecord, trials: list[TrialRecord]) -> None:
    untold = [trial for trial in trials if trial.state in lifecycle.TERMINAL and not trial.told]
    if not untold:
        return
    with transaction(engine) as connection:
        results = _by_trial(queries.fold_results(connection, record.id))
        evidence = {trial.id: _evidence(connection, trial) for trial in untold}
    for trial in untold:
        if trial.number is not None:
            folds = results.get(trial.duplicate_of or trial.id, [])
            note = words.trial_note(record, trial, folds, evidence[trial.id])
            study.show_end(shown, trial.number, _past(record, trial, results), _attributes(record, folds), note)
        _remember(engine, trial, "told = true")


def _remember(engine: Engine, trial: TrialRecord, what: str, **values: Any) -> None:
    """Write down what Optuna knows of a trial; of this life of it: `resume` may have begun the next meanwhile."""
    with transaction(engine) as connection:
        connection.execute(
            text(f"UPDATE trial SET {what} WHERE id = :id AND generation = :generation"),  # noqa: S608
            {**values, "id": trial.id, "generation": trial.generation},
        )


def _evidence(connection: Connection, trial: TrialRecord) -> str:
    """What is known of a failure."""
    if trial.state != "failed":
        return ""
    query = "SELECT evidence FROM unit WHERE trial = :trial AND state = 'failed' ORDER BY id LIMIT 1"
    return str(queries.scalar(connection, query, trial=trial.id) or "")


def _attributes(record: StudyRecord, folds: list[FoldResult]) -> dict[str, Any]:
    if not folds:
        return {}
    pooled = objective.metrics(objective.add(fold.tallies for fold in folds))
    each = {
        f"repeat {fold.repeat} fold {fold.fold}": round(objective.validation_loss(fold.tallies), 6)
        for fold in folds
        if fold.tallies["items"]
    }
    finite = {name: round(value, 6) for name, value in pooled.items() if math.isfinite(value)}
    return {**finite, "fold losses": each}


def _note(engine: Engine, shown: Any, record: StudyRecord, trials: list[TrialRecord]) -> None:
    note = words.study_note(record, trials)
    if digest(note) != record.noted:
        study.save_note(shown, None, note)
        with transaction(engine) as connection:
            connection.execute(
                text("UPDATE study SET noted = :noted WHERE id = :id"), {"noted": digest(note), "id": record.id}
            )


def _by_trial(results: list[FoldResult]) -> dict[int, list[FoldResult]]:
    return {trial: list(group) for trial, group in itertools.groupby(results, key=lambda result: result.trial)}
