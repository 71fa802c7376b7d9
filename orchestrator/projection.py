"""Make Optuna show what foldtune's tables say. Idempotent: whoever comes next completes what a crash left.

One process at a time projects a study, under a lock of its own: a trial takes some dozen statements, and
under the study's row lock nobody could take or finish a unit meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Engine, text

import foldtune
from orchestrator import curves, history, objective, plots, queries, space, study, words
from orchestrator.contract import digest
from orchestrator.database.engine import readable_errors, transaction
from orchestrator.records import FoldResult, StudyRecord, TrialRecord, key_of, trial_of

CURVES = "learning-curves"
AT_ONCE = 20  # ends that a worker between two units tells Optuna of


def project(engine: Engine, name: str, *, wait: bool = True) -> None:
    """Bring the Optuna study of `name` up to date.

    Without `wait`, leave it to whoever is at it just now, and do a part: one trial's end may have stopped a thousand.
    """
    with transaction(engine) as connection:
        found, behind = _behind(connection, name)
    if not behind:
        return
    with readable_errors(engine.url), study.alone(engine.url, found, wait=wait) as mine:
        if not mine:
            return
        with transaction(engine) as connection:
            if not _behind(connection, name)[1]:
                return
            record = queries.study(connection, name)
        _project(engine, record, None if wait else AT_ONCE)


def _project(engine: Engine, record: StudyRecord, most: int | None) -> None:
    attributes = {
        "foldtune:version": foldtune.__version__,
        "foldtune:digest": record.spec.digest(),
        "foldtune:snapshot": record.snapshot,
        "foldtune:folds": record.plan.digest(),
    }
    shown = study.open_projection(
        engine.url, record.name, record.spec.objective, maximize=record.spec.maximize, attributes=attributes
    )
    _forget_lost(engine, record, shown)
    running = study.running(shown)
    left_behind = {key: number for number, key in running.items()}  # by one who died before it wrote that down
    with transaction(engine) as connection:
        unshown = queries.unshown_trials(connection, record.id)
    for trial in unshown:
        number = left_behind.get(trial.key)
        if number is None:
            number = study.show_start(shown, trial.key, trial.params, record.spec.space, {"origin": trial.origin})
        _remember(engine, trial.id, trial.generation, "number = :number", number=number)
    _drop_orphans(engine, record, shown, running)
    ended = _tell_ended(engine, shown, record, most)
    if ended or record.noted is None:
        _note(engine, shown, record)


def _behind(connection: Connection, name: str) -> tuple[int, bool]:
    """(the study's id, whether a trial was opened or closed that Optuna has not heard of).

    Asked after every step of every worker. Raises NoStudy.
    """
    query = (
        f"SELECT s.id, s.noted IS NULL OR EXISTS (SELECT 1 FROM trial WHERE study = s.id AND {queries.UNTOLD}) "  # noqa: S608
        f"OR EXISTS (SELECT 1 FROM trial WHERE study = s.id AND {queries.UNSHOWN}) FROM study s WHERE s.name = :name"
    )
    row = connection.execute(text(query), {"name": name}).one_or_none()
    if row is None:
        raise queries.no_study(connection, name)
    return int(row[0]), bool(row[1])


def _forget_lost(engine: Engine, record: StudyRecord, shown: Any) -> None:
    """Trials that Optuna has no more, since a person deleted them or the whole Optuna study, get a new one."""
    with transaction(engine) as connection:
        rows = connection.execute(
            text(
                "SELECT id, generation, number FROM trial WHERE study = :study AND number IN "
                "((SELECT max(number) FROM trial WHERE study = :study), "
                "(SELECT min(number) FROM trial WHERE study = :study))"
            ),
            {"study": record.id},
        ).all()
        if study.is_whole(shown, {number: key_of(trial, generation) for trial, generation, number in rows}):
            return
        query = "SELECT id, generation FROM trial WHERE study = :study AND number IS NOT NULL"
        shown_once = connection.execute(text(query), {"study": record.id}).all()
    numbers = study.numbers(shown)
    for trial, generation in shown_once:
        if key_of(trial, generation) not in numbers:
            _remember(engine, trial, generation, "number = NULL, told = false")


def _drop_orphans(engine: Engine, record: StudyRecord, shown: Any, running: Mapping[int, str | None]) -> None:
    """End what runs in Optuna and stands for no trial, or for an earlier life of one."""
    if not running:
        return
    with transaction(engine) as connection:
        rows = connection.execute(
            text("SELECT id, generation FROM trial WHERE study = :study AND id = ANY(:ids)"),
            {"study": record.id, "ids": [trial_of(key) for key in running.values() if key is not None]},
        ).all()
    known = {key_of(trial, generation) for trial, generation in rows}
    for number, key in running.items():
        if key not in known:
            study.drop_orphan(shown, number)


def _tell_ended(engine: Engine, shown: Any, record: StudyRecord, most: int | None) -> bool:
    """Whether there was an end to tell of."""
    with transaction(engine) as connection:
        untold = queries.untold_trials(connection, record.id, most)
        ids = [trial.id for trial in untold]
        results = history.by_trial(queries.fold_results(connection, record.id, ids)) if untold else {}
        learnt = queries.fold_curves(connection, record.id, ids) if untold else {}
        evidence = {trial.id: _evidence(connection, trial) for trial in untold}
    for trial in untold:
        if trial.number is not None:
            folds = results.get(trial.id, [])
            done = [fold for fold in learnt.get(trial.id, []) if fold.done]
            note = words.trial_note(record, trial, folds, evidence[trial.id], done)
            past = history.past(record, trial.params, trial.state, trial.value, folds)
            chosen = {} if trial.epoch is None else space.internal(record.spec.space, {"epochs": trial.epoch})
            study.show_end(shown, trial.number, past, _attributes(record, folds), note, chosen=chosen)
        _remember(engine, trial.id, trial.generation, "told = true")
    return bool(untold)


def _remember(engine: Engine, trial: int, generation: int, what: str, **values: Any) -> None:
    """Write down what Optuna knows of a trial; of this life of it: `resume` may have begun the next meanwhile."""
    with transaction(engine) as connection:
        connection.execute(
            text(f"UPDATE trial SET {what} WHERE id = :id AND generation = :generation"),  # noqa: S608
            {**values, "id": trial, "generation": generation},
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


def _note(engine: Engine, shown: Any, record: StudyRecord) -> None:
    with transaction(engine) as connection:
        counts = queries.counts(connection, record.id)
        best = next(iter(queries.best_trials(connection, record.id, 1, maximize=record.spec.maximize)), None)
        default = next(iter(queries.default_trials(connection, record.id)), None)
        measured = queries.baseline_trials(connection, record.id)
        learnt = "" if best is None else _learnt(connection, record, best)
    searched = {state: count for (state, of_search), count in counts.items() if of_search}
    note = words.study_note_of(record, searched, best, default, words.best_baseline(record, measured), learnt)
    if digest(note) != record.noted:
        study.save_note(shown, note)
        with transaction(engine) as connection:
            connection.execute(
                text("UPDATE study SET noted = :noted WHERE id = :id"), {"noted": digest(note), "id": record.id}
            )
    _plot(engine, shown, record, best, default)


def _learnt(connection: Connection, record: StudyRecord, trial: TrialRecord) -> str:
    """How a complete trial learnt, in words."""
    folds = queries.fold_curves(connection, record.id, [trial.id]).get(trial.id, [])
    results = queries.fold_results(connection, record.id, [trial.id])
    return words.course(curves.pooled(folds, record.plan), curves.reported(results, folds, record.plan))


def _plot(
    engine: Engine, shown: Any, record: StudyRecord, best: TrialRecord | None, default: TrialRecord | None
) -> None:
    """The curves of the best trial and of the default configuration; drawn anew only where these are others."""
    named = {trial.id: trial for trial in (best, default) if trial is not None and trial.value is not None}
    shows = " ".join(f"{trial.key}={trial.name}" for trial in named.values())
    if not named or study.plotted(shown, CURVES) == shows:
        return
    with transaction(engine) as connection:
        learnt = queries.fold_curves(connection, record.id, list(named))
    labelled = {words.label(trial, best): learnt.get(trial.id, []) for trial in named.values()}
    study.save_plot(shown, CURVES, plots.learning_curves(record.plan, labelled), shows)
