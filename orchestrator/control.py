"""Stop, resume and delete a study."""

from __future__ import annotations

import contextlib

from pydantic import ValidationError
from sqlalchemy import Connection, Engine, text

from orchestrator import budget, cleaning, projection, queries, study
from orchestrator.database.engine import transaction
from orchestrator.errors import USAGE, FoldtuneError
from orchestrator.reconcile import cancel, settle
from orchestrator.spec import Budget


def stop(engine: Engine, name: str) -> str:
    """Cancel what is open and let no more begin; workers notice within seconds. What to say about it."""
    with transaction(engine) as connection:
        record = queries.lock_study(connection, queries.study(connection, name).id)
        if record.state != "open":
            return f"study {name!r} is {record.state}; nothing was changed"
        connection.execute(text("UPDATE study SET state = 'stopped' WHERE id = :id"), {"id": record.id})
        cancel(connection, record, "the study was stopped", running=True)
    projection.project(engine, name)
    return f"study {name!r} stopped; finished folds are kept, `foldtune resume {name}` goes on from them"


def resume(engine: Engine, name: str, *, trials: int | None = None, hours: float | None = None) -> str:
    """Make cancelled trials wait again, with a raised budget if one is given. What to say about it.

    Raises:
        FoldtuneError: fewer trials than exist, a number no budget may have, or a grid with more points.
    """
    with transaction(engine) as connection:
        record = queries.lock_study(connection, queries.study(connection, name).id)
        used = queries.scalar(connection, "SELECT count(*) FROM trial WHERE study = :id AND searched", id=record.id)
        if trials is not None and record.spec.search.sampler == "grid" and trials != record.trials_total:
            raise FoldtuneError(f"a grid has its {record.trials_total} points and no more", code=USAGE)
        if trials is not None and trials < used:
            raise FoldtuneError(f"--trials is a total and {used} trials exist — got {trials}", code=USAGE)
        try:  # a number that no study file may have would make the row unreadable for every later command
            Budget(trials=trials, hours=hours)
        except ValidationError as error:
            wrong = error.errors()[0]
            rule = wrong["msg"].removeprefix("Input should be ")
            raise FoldtuneError(f"--{wrong['loc'][0]} must be {rule} — got {wrong['input']:g}", code=USAGE) from None
        waiting = _revive(connection, record.id)
        connection.execute(
            text(
                "UPDATE study SET state = 'open', trials_total = coalesce(:trials, trials_total), "
                "hours_total = coalesce(:hours, hours_total) WHERE id = :id"
            ),
            {"id": record.id, "trials": trials, "hours": hours},
        )
        record = queries.lock_study(connection, record.id)
        if budget.hours_spent(connection, record):
            used_up = budget.used_seconds(connection, record.id) / 3600
            message = f"the study's device hours are used up ({used_up:.3g}); --hours is a total and must be above that"
            raise FoldtuneError(message, code=USAGE)
        settle(connection, record)
        state = queries.scalar(connection, "SELECT CAST(state AS text) FROM study WHERE id = :id", id=record.id)
    projection.project(engine, name)
    return f"study {name!r} is {state}; {waiting} cancelled trials wait again"


def _revive(connection: Connection, study_id: int) -> int:
    connection.execute(
        text(
            "UPDATE unit SET state = 'waiting', worker = NULL, ended_at = NULL, reason = '' WHERE state = 'cancelled' "
            "AND trial IN (SELECT id FROM trial WHERE study = :id AND state = 'cancelled')"
        ),
        {"id": study_id},
    )
    connection.execute(
        text(
            "UPDATE unit SET state = 'done', ended_at = now() FROM trial t WHERE t.id = unit.trial AND t.study = :id "
            "AND unit.state = 'waiting' AND state_at_rest(unit.id) = 'done'"
        ),
        {"id": study_id},
    )
    # A cancelled Optuna trial cannot run again: the revived trial gets a new one when it opens.
    return connection.execute(
        text(
            "UPDATE trial SET state = 'waiting', reason = '', closed_at = NULL, opened_at = NULL, number = NULL, "
            "told = false, generation = generation + 1 WHERE study = :id AND state = 'cancelled'"
        ),
        {"id": study_id},
    ).rowcount


def delete_if_there(engine: Engine, name: str) -> None:
    """`delete`, or nothing."""
    with contextlib.suppress(queries.NoStudy):
        delete(engine, name)


def delete(engine: Engine, name: str) -> None:
    """Remove a study, its results, its artifacts and its Optuna study for good.

    Files that cannot be deleted now, of other machines or a store that is away, go when a worker or `clean` sweeps.
    """
    with transaction(engine) as connection:
        found = queries.study(connection, name)
    with study.alone(engine.url, found.id, wait=True), transaction(engine) as connection:
        study.delete(engine.url, name)  # first: a crash after it leaves a study that can be deleted again
        record = queries.lock_study(connection, found.id)
        cleaning.forget(connection, record)
        connection.execute(text("DELETE FROM study WHERE id = :id"), {"id": record.id})
        connection.execute(
            text(
                "DELETE FROM snapshot WHERE sha256 = ANY(:rows) AND NOT EXISTS "
                "(SELECT FROM study WHERE sha256 IN (study.snapshot, study.pool))"
            ),
            {"rows": [rows for rows in (record.snapshot, record.pool) if rows]},
        )
    cleaning.leftovers(engine)
