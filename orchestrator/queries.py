"""Reads that several use cases share: rows -> frozen values."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, text

from orchestrator.curves import FoldCurve
from orchestrator.errors import USAGE, FoldtuneError
from orchestrator.hyperparameters import did_you_mean
from orchestrator.objective import Tallies
from orchestrator.records import FoldResult, StudyRecord, TrialRecord


class NoStudy(FoldtuneError):
    """There is no such study, or no longer."""


def study(connection: Connection, name: str) -> StudyRecord:
    """A study by name.

    Raises:
        NoStudy: there is none; suggests a near name.
    """
    row = connection.execute(text("SELECT * FROM study WHERE name = :name"), {"name": name}).mappings().one_or_none()
    if row is None:
        raise no_study(connection, name)
    return StudyRecord.from_row(dict(row))


def no_study(connection: Connection, name: str) -> NoStudy:
    """That there is none of this name; suggests a near one."""
    names = study_names(connection)
    help = did_you_mean(name, names).replace("known keys", "studies") if names else "`foldtune launch` makes one"
    return NoStudy(f"no study named {name!r}", help=help, code=USAGE)


def study_by_id(connection: Connection, study_id: int) -> StudyRecord | None:
    """A study as it is, not locked; None: it was deleted."""
    row = connection.execute(text("SELECT * FROM study WHERE id = :id"), {"id": study_id}).mappings().one_or_none()
    return None if row is None else StudyRecord.from_row(dict(row))


def study_names(connection: Connection, *, open_only: bool = False) -> list[str]:
    """Names of studies, oldest first."""
    query = "SELECT name FROM study WHERE state = 'open' OR NOT :open_only ORDER BY created_at, id"
    return [str(name) for name in connection.execute(text(query), {"open_only": open_only}).scalars()]


def lock_named(connection: Connection, name: str) -> StudyRecord:
    """`lock_study`, by name.

    Raises:
        NoStudy: as `study` does.
    """
    query = text("SELECT * FROM study WHERE name = :name FOR UPDATE")
    row = connection.execute(query, {"name": name}).mappings().one_or_none()
    if row is None:
        raise no_study(connection, name)
    return StudyRecord.from_row(dict(row))


def lock_study(connection: Connection, study_id: int) -> StudyRecord:
    """The study's row, locked until the transaction ends: whoever decides about a study holds this lock.

    Raises:
        NoStudy: it was deleted.
    """
    query = text("SELECT * FROM study WHERE id = :id FOR UPDATE")
    row = connection.execute(query, {"id": study_id}).mappings().one_or_none()
    if row is None:  # between the caller's look and the lock
        raise NoStudy("the study was deleted meanwhile", code=USAGE)
    return StudyRecord.from_row(dict(row))


def trials(connection: Connection, study_id: int) -> list[TrialRecord]:
    """Every trial of a study, in the order of creation. For readers: who decides reads what decides, see below."""
    return _trials(connection, "true", study=study_id)


def default_trials(connection: Connection, study_id: int) -> list[TrialRecord]:
    """The default configuration, if the study has it."""
    return _trials(connection, "is_default", study=study_id)


def baseline_trials(connection: Connection, study_id: int) -> list[TrialRecord]:
    """What the study's fine-tunes are measured against."""
    return _trials(connection, "origin = 'baseline'", study=study_id)


def best_trials(connection: Connection, study_id: int, count: int, *, maximize: bool) -> list[TrialRecord]:
    """The best complete fine-tunes, at most so many, best first; of equals the earlier first."""
    order = f"ORDER BY value {'DESC' if maximize else 'ASC'}, id LIMIT :count"
    return _trials(connection, BEST, order, study=study_id, count=count)


def best_ids(connection: Connection, study_id: int, count: int, *, maximize: bool) -> list[int]:
    """Their ids."""
    order = f"ORDER BY value {'DESC' if maximize else 'ASC'}, id LIMIT :count"
    query = f"SELECT id FROM trial WHERE study = :study AND {BEST} {order}"  # noqa: S608
    return [int(trial) for trial in connection.execute(text(query), {"study": study_id, "count": count}).scalars()]


def unshown_trials(connection: Connection, study_id: int) -> list[TrialRecord]:
    """Trials that were opened, and that Optuna has not heard of."""
    return _trials(connection, UNSHOWN, study=study_id)


def untold_trials(connection: Connection, study_id: int, most: int | None = None) -> list[TrialRecord]:
    """Trials that are closed, and whose end Optuna has not heard of; at most so many, the oldest."""
    return _trials(connection, UNTOLD, "ORDER BY id LIMIT CAST(:most AS integer)", study=study_id, most=most)


# As the indices `trial_best`, `trial_unshown` and `trial_untold` have it, or they would not be used.
BEST = "value IS NOT NULL AND duplicate_of IS NULL AND origin <> 'baseline'"
UNSHOWN = "number IS NULL AND in_space AND state <> 'waiting'"
UNTOLD = "NOT told AND state NOT IN ('waiting', 'running')"


def _trials(connection: Connection, which: str, order: str = "ORDER BY id", **parameters: Any) -> list[TrialRecord]:
    query = text(f"SELECT * FROM trial WHERE study = :study AND {which} {order}")  # noqa: S608
    return [TrialRecord.from_row(dict(row)) for row in connection.execute(query, parameters).mappings()]


def counts(connection: Connection, study_id: int) -> dict[tuple[str, bool], int]:
    """(state, searched) -> how many trials of a study."""
    rows = connection.execute(
        text(
            "SELECT CAST(state AS text), searched, trials FROM (SELECT state, searched, count(*) AS trials FROM trial "
            "WHERE study = :study GROUP BY state, searched) counted ORDER BY state, searched"
        ),
        {"study": study_id},
    )
    return {(str(state), bool(searched)): int(count) for state, searched, count in rows}


def fold_results(connection: Connection, study_id: int, trial_ids: Sequence[int] | None = None) -> list[FoldResult]:
    """Of each trial the finished folds, at the epoch that counts, in the order of (trial, repeat, fold).

    A trial that another one's run answers for has that one's folds.
    """
    rows = connection.execute(
        text(
            "SELECT t.id AS trial, u.repeat, u.fold, r.epoch, r.tallies "
            "FROM trial t JOIN unit u ON u.trial = coalesce(t.run, t.id) "
            "JOIN LATERAL (SELECT epoch, tallies FROM result "
            "WHERE unit = u.id AND epoch <= coalesce(t.epoch, u.epoch, epoch) ORDER BY epoch DESC LIMIT 1) r ON true "
            "WHERE t.study = :study AND u.state = 'done' AND (:every OR t.id = ANY(:trials)) "
            "ORDER BY t.id, u.repeat, u.fold"
        ),
        {"study": study_id, "every": trial_ids is None, "trials": list(trial_ids or [])},
    )
    return [FoldResult(**row) for row in rows.mappings()]


def finished_epochs(connection: Connection, trial_ids: Sequence[int]) -> dict[int, list[dict[int, Tallies]]]:
    """trial that trained -> of each finished fold: epoch -> tallies."""
    rows = connection.execute(
        text(
            "SELECT u.trial, u.id, r.epoch, r.tallies FROM unit u JOIN result r ON r.unit = u.id "
            "WHERE u.trial = ANY(:trials) AND u.state = 'done' ORDER BY u.trial, u.repeat, u.fold, r.epoch"
        ),
        {"trials": list(trial_ids)},
    ).all()
    found: dict[int, list[dict[int, Tallies]]] = {}
    for (trial, _), fold in itertools.groupby(rows, key=lambda row: (row.trial, row.id)):
        found.setdefault(trial, []).append({row.epoch: row.tallies for row in fold})
    return found


def fold_curves(
    connection: Connection, study_id: int, trial_ids: Sequence[int] | None = None, *, metrics: bool = False
) -> dict[int, list[FoldCurve]]:
    """trial -> what its folds reported after each epoch up to the one that counts, in the order of (repeat, fold).

    Folds without a result are left out. metrics: with whole tallies; else with nats and items alone, which losses need.
    """
    tallies = "r.tallies" if metrics else "json_build_object('nats', r.tallies->'nats', 'items', r.tallies->'items')"
    rows = connection.execute(
        text(
            f"SELECT t.id AS trial, u.repeat, u.fold, u.state = 'done' AS done, r.epoch, "  # noqa: S608
            f"nullif(r.train_loss, 'NaN') AS train_loss, {tallies} AS tallies "
            "FROM trial t JOIN unit u ON u.trial = coalesce(t.run, t.id) "
            "JOIN result r ON r.unit = u.id AND r.epoch <= coalesce(t.epoch, r.epoch) "
            "WHERE t.study = :study AND (:every OR t.id = ANY(:trials)) ORDER BY t.id, u.repeat, u.fold, r.epoch"
        ),
        {"study": study_id, "every": trial_ids is None, "trials": list(trial_ids or [])},
    ).all()
    found: dict[int, list[FoldCurve]] = {}
    for (trial, repeat, fold, done), own in itertools.groupby(rows, key=lambda r: (r.trial, r.repeat, r.fold, r.done)):
        epochs = {row.epoch: (row.train_loss, row.tallies) for row in own}
        found.setdefault(trial, []).append(FoldCurve(trial=trial, repeat=repeat, fold=fold, done=done, epochs=epochs))
    return found


def identity(connection: Connection) -> str:
    """Which database this is, whatever host and port it is reached by."""
    return str(scalar(connection, "SELECT id FROM identity"))


def scalar(connection: Connection, query: str, **parameters: Any) -> Any:
    """One value."""
    return connection.execute(text(query), parameters).scalar()
