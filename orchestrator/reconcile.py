"""Derive what the tables imply about a study, and write it. Any crash heals here; run by whoever wants work.

Everything here runs under the study's row lock.
"""

from __future__ import annotations

from sqlalchemy import Connection, text

from orchestrator import budget, lifecycle, objective, queries
from orchestrator.records import StudyRecord


def reconcile(connection: Connection, record: StudyRecord) -> None:
    """Derive what the tables imply, and write it. Run by whoever wants work; any crash heals here."""
    _release_expired(connection, record)
    settle(connection, record)


def _release_expired(connection: Connection, record: StudyRecord) -> None:
    """Units of vanished workers wait again. One that makes every worker vanish is charged, or it would never end."""
    connection.execute(
        text(
            "UPDATE unit SET state = CASE WHEN charges + charged >= :most THEN CAST('failed' AS unit_state) "
            "ELSE 'waiting' END, charges = charges + charged, vanished = vanished + 1, worker = NULL, "
            "expires_at = NULL, reason = 'its worker vanished', "
            "ended_at = CASE WHEN charges + charged >= :most THEN now() END "
            "FROM (SELECT id AS expired, CAST(vanished + 1 >= :patience AS integer) AS charged FROM unit "
            "WHERE study = :study AND state = 'leased' AND expires_at < now()) e WHERE id = expired"
        ),
        {"study": record.id, "patience": lifecycle.PATIENCE, "most": lifecycle.MAX_CHARGES},
    )


def settle(connection: Connection, record: StudyRecord) -> None:
    """Close every trial whose units decide it, and the study when nothing is left to do."""
    spent = budget.hours_spent(connection, record.id)
    if record.state == "open" and spent:
        # Trials that cannot get all their folds end here, planned ones too; what runs may end its epoch.
        cancel(connection, record.id, "the budget of device hours is used up", running=False)
    rows = connection.execute(
        text(
            "SELECT t.id, array_agg(CAST(u.state AS text)) AS units FROM trial t JOIN unit u ON u.trial = t.id "
            "WHERE t.study = :study AND t.state = 'running' GROUP BY t.id ORDER BY t.id"
        ),
        {"study": record.id},
    ).all()
    for trial_id, units in rows:
        state = lifecycle.trial_end(units)
        if state is not None:
            _close(connection, record, trial_id, state)
    _close_duplicates(connection, record)
    _close_study(connection, record, hours_spent=spent)


def _close(connection: Connection, record: StudyRecord, trial_id: int, state: str) -> None:
    value, reason = None, ""
    if state == "complete":
        results = queries.fold_results(connection, record.id, [trial_id])
        value = objective.value(record.spec.objective, (result.tallies for result in results))
        if value is None:
            state, reason = "diverged", f"{record.spec.objective} is not finite"
    else:
        reason = queries.scalar(
            connection,
            "SELECT reason FROM unit WHERE trial = :trial AND state = CAST(:state AS unit_state) LIMIT 1",
            trial=trial_id,
            state=state,
        )
    connection.execute(
        text(
            "UPDATE trial SET state = CAST(:state AS trial_state), value = :value, reason = :reason, "
            "closed_at = now() WHERE id = :id"
        ),
        {"id": trial_id, "state": state, "value": value, "reason": reason or ""},
    )
    connection.execute(
        text(
            "UPDATE unit SET state = 'cancelled', expires_at = NULL, ended_at = now() "
            "WHERE trial = :id AND state IN ('waiting', 'leased')"
        ),
        {"id": trial_id},
    )


def _close_duplicates(connection: Connection, record: StudyRecord) -> None:
    """A suggestion that repeats a trial gets that trial's end, without training."""
    connection.execute(
        text(
            "UPDATE trial d SET state = o.state, value = o.value, closed_at = now(), "
            "opened_at = coalesce(d.opened_at, now()), reason = 'same configuration as trial ' || "
            "coalesce(CAST(o.number AS text), 'default') FROM trial o "
            "WHERE d.study = :study AND d.duplicate_of = o.id AND d.state IN ('waiting', 'running') "
            "AND o.state NOT IN ('waiting', 'running')"
        ),
        {"study": record.id},
    )
    connection.execute(
        text(
            "UPDATE trial SET state = 'running', opened_at = now() "
            "WHERE study = :study AND duplicate_of IS NOT NULL AND state = 'waiting'"
        ),
        {"study": record.id},
    )


def _close_study(connection: Connection, record: StudyRecord, *, hours_spent: bool) -> None:
    trials = queries.trials(connection, record.id)
    state = lifecycle.study_end(
        trials=[trial.state for trial in trials],
        trials_used=sum(trial.searched for trial in trials),
        trials_total=record.trials_total,
        hours_spent=hours_spent,
    )
    if state is not None:
        connection.execute(
            text("UPDATE study SET state = CAST(:state AS study_state) WHERE id = :id AND state = 'open'"),
            {"state": state, "id": record.id},
        )


def cancel(connection: Connection, study_id: int, reason: str, *, running: bool) -> None:
    """Cancel every waiting unit and every planned trial; with `running` also what is leased and open."""
    for statement in (
        "UPDATE unit SET state = 'cancelled', expires_at = NULL, ended_at = now(), reason = :reason "
        "WHERE study = :study AND (state = 'waiting' OR :running AND state = 'leased')",
        "UPDATE trial SET state = 'cancelled', closed_at = now(), reason = :reason "
        "WHERE study = :study AND (state = 'waiting' OR :running AND state = 'running')",
    ):
        connection.execute(text(statement), {"study": study_id, "reason": reason, "running": running})
