"""Derive what the tables imply about a study, and write it. Any crash heals here; run by whoever wants work.

Everything here runs under the study's row lock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, text

from orchestrator import budget, cleaning, lifecycle, objective, queries, rungs
from orchestrator.records import StudyRecord


def reconcile(connection: Connection, record: StudyRecord) -> None:
    """Derive what the tables imply, and write it. Run by whoever wants work; any crash heals here."""
    settle(connection, record, judged=_release_expired(connection, record))


def _release_expired(connection: Connection, record: StudyRecord) -> list[int]:
    """Units of vanished workers wait again; their trials, of which nobody may have judged the last result.

    One that makes every worker vanish is charged, or it would never end.

    One whose last epoch was accepted is done: its worker only did not come to say so. Where the server itself was
    down, nobody could renew: the owners have a few seconds to come back first, unless it goes down again and again.
    """
    released = connection.execute(
        text(
            "WITH late AS (SELECT u.id, u.lease_epoch, "
            "CAST(u.vanished + 1 >= :patience AS integer) AS charged, "
            "state_at_rest(u.id) = 'done' AS done FROM unit u "
            "WHERE u.study = :study AND u.state = 'leased' AND u.expires_at < now() "
            "AND (now() > pg_postmaster_start_time() + make_interval(secs => :return) "
            "OR now() > u.expires_at + make_interval(secs => 3 * :return))), "
            "ended AS (UPDATE attempt a SET ended_at = now(), charged = l.charged = 1 AND NOT l.done, "
            "cause = CASE WHEN l.done THEN 'done' ELSE 'vanished' END, "
            "reason = CASE WHEN l.done THEN '' ELSE 'its worker vanished' END "
            "FROM late l WHERE a.unit = l.id AND a.lease_epoch = l.lease_epoch AND a.ended_at IS NULL) "
            "UPDATE unit SET state = CASE WHEN l.done THEN CAST('done' AS unit_state) "
            "WHEN charges + l.charged >= :most THEN 'failed' ELSE 'waiting' END, "
            "charges = charges + CASE WHEN l.done THEN 0 ELSE l.charged END, "
            "vanished = vanished + 1, worker = NULL, expires_at = NULL, "
            "reason = CASE WHEN l.done THEN '' ELSE 'its worker vanished' END, "
            "ended_at = CASE WHEN l.done OR charges + l.charged >= :most THEN now() END "
            "FROM late l WHERE unit.id = l.id RETURNING unit.trial"
        ),
        {
            "study": record.id,
            "patience": lifecycle.PATIENCE,
            "most": lifecycle.MAX_CHARGES,
            "return": lifecycle.RETURN_SECONDS,
        },
    )
    return [int(trial) for trial in released.scalars()]


def settle(connection: Connection, record: StudyRecord, *, judged: Sequence[int] | None = None) -> None:
    """Close every trial whose units or whose rivals decide it, and the study when nothing is left to do.

    judged: the open trials that have new results, for racing to look at. All of them where a trial closes here, which
    may be the one to beat from now on, and with None.
    """
    spent = budget.hours_spent(connection, record)
    if record.state == "open" and spent:
        # Trials that cannot get all their folds end here, planned ones too; what runs may end its epoch.
        cancel(connection, record, "the budget of device hours is used up", running=False)
    rows = connection.execute(
        text(
            "SELECT t.id, array_agg(CAST(u.state AS text)) AS units FROM trial t JOIN unit u ON u.trial = t.id "
            "WHERE t.study = :study AND t.state = 'running' GROUP BY t.id ORDER BY t.id"
        ),
        {"study": record.id},
    ).all()
    ends = [(trial_id, state) for trial_id, units in rows if (state := lifecycle.trial_end(units)) is not None]
    for trial_id, state in ends:
        _close(connection, record, trial_id, state)
    if record.spec.share_epochs:
        _close_members(connection, record)
    # after the trials that are complete, which may be the ones to beat
    stopped = rungs.verdicts(connection, record, None if ends else judged)
    _choose_epochs(connection, record, list(stopped))
    _stop(connection, stopped)
    if stopped and record.spec.share_epochs:
        _close_members(connection, record)
    _end_attempts(connection, record)
    if ends or stopped:
        cleaning.prune(connection, record)
    is_open, repeats = _still_open(connection, record)
    if repeats:
        _close_duplicates(connection, record)
        is_open, _ = _still_open(connection, record)
    if not is_open:
        _close_study(connection, record, hours_spent=spent)


def _close(connection: Connection, record: StudyRecord, trial_id: int, state: str) -> None:
    value, reason = None, ""
    if state == "complete":
        _choose_epochs(connection, record, [trial_id])
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
    _end_trial(connection, trial_id, state, value, reason or "")


def _choose_epochs(connection: Connection, record: StudyRecord, trials: Sequence[int]) -> None:
    """Under `share_epochs`: the epoch that is best over what these have finished is theirs from now on.

    A point of a grid has its own, and so has the default configuration.
    """
    if not record.spec.share_epochs:
        return
    for trial, epoch in rungs.best_epochs(connection, record, trials).items():
        query = "UPDATE trial SET epoch = :epoch WHERE id = :trial AND epoch IS NULL AND searched"
        connection.execute(text(query), {"epoch": epoch, "trial": trial})


def _close_members(connection: Connection, record: StudyRecord) -> None:
    """Points of a grid for which the run of another one answers: open while it is, and ended when it ends."""
    connection.execute(
        text(
            "UPDATE trial m SET state = 'running', opened_at = now() FROM trial r WHERE m.study = :study "
            "AND m.run = r.id AND m.duplicate_of IS NULL AND m.state = 'waiting' AND r.state <> 'waiting'"
        ),
        {"study": record.id},
    )
    rows = connection.execute(
        text(
            "SELECT m.id, CAST(r.state AS text) AS state, r.reason FROM trial m JOIN trial r ON r.id = m.run "
            "WHERE m.study = :study AND m.duplicate_of IS NULL AND m.state = 'running' "
            "AND r.state NOT IN ('waiting', 'running') ORDER BY m.id"
        ),
        {"study": record.id},
    ).all()
    for row in rows:
        if row.state == "complete":
            _close(connection, record, row.id, "complete")
        else:
            _end_trial(
                connection, row.id, row.state, None, f"its run of {record.spec.most_epochs} epochs: {row.reason}"
            )


def _stop(connection: Connection, stopped: Mapping[int, str]) -> None:
    """Close the trials that racing stops, with its reason. Whoever trains a unit of theirs learns it by its renewal."""
    if not stopped:
        return
    # All at once: the first complete trial may stop a thousand. Units are locked in the order in which a worker renews
    # its leases, or the two could wait for each other.
    query = "SELECT id FROM unit WHERE trial = ANY(:ids) AND state IN ('waiting', 'leased') ORDER BY id FOR UPDATE"
    connection.execute(text(query), {"ids": list(stopped)})
    connection.execute(
        text(
            "UPDATE trial SET state = 'stopped', reason = why, closed_at = now() "
            "FROM unnest(CAST(:ids AS bigint[]), CAST(:reasons AS text[])) AS given(stopped, why) WHERE id = stopped"
        ),
        {"ids": list(stopped), "reasons": list(stopped.values())},
    )
    connection.execute(
        text(
            "UPDATE unit SET state = 'cancelled', expires_at = NULL, ended_at = now(), "
            "reason = 'its trial was stopped by racing' WHERE trial = ANY(:ids) AND state IN ('waiting', 'leased')"
        ),
        {"ids": list(stopped)},
    )


def _end_trial(connection: Connection, trial_id: int, state: str, value: float | None, reason: str) -> None:
    connection.execute(
        text(
            "UPDATE trial SET state = CAST(:state AS trial_state), value = :value, reason = :reason, "
            "closed_at = now() WHERE id = :id"
        ),
        {"id": trial_id, "state": state, "value": value, "reason": reason},
    )
    connection.execute(
        text(
            "UPDATE unit SET state = 'cancelled', expires_at = NULL, ended_at = now() "
            "WHERE trial = :id AND state IN ('waiting', 'leased')"
        ),
        {"id": trial_id},
    )


def _end_attempts(connection: Connection, record: StudyRecord) -> None:
    """Attempts whose lease somebody took away are over."""
    connection.execute(
        text(
            "UPDATE attempt a SET ended_at = now(), cause = 'cancelled', reason = u.reason FROM unit u "
            "WHERE u.id = a.unit AND u.study = :study AND a.ended_at IS NULL "
            "AND (u.state <> 'leased' OR u.lease_epoch <> a.lease_epoch)"
        ),
        {"study": record.id},
    )


def _close_duplicates(connection: Connection, record: StudyRecord) -> None:
    """A suggestion that repeats a trial gets that trial's end, without training."""
    connection.execute(
        text(
            "UPDATE trial d SET state = o.state, value = o.value, epoch = o.epoch, closed_at = now(), "
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


def _still_open(connection: Connection, record: StudyRecord) -> tuple[bool, bool]:
    """Whether any trial is open or planned, and whether such a one repeats another."""
    row = connection.execute(
        text(
            "SELECT EXISTS (SELECT 1 FROM trial WHERE study = :study AND state IN ('waiting', 'running')), "
            "EXISTS (SELECT 1 FROM trial WHERE study = :study AND state IN ('waiting', 'running') "
            "AND duplicate_of IS NOT NULL)"
        ),
        {"study": record.id},
    ).one()
    return bool(row[0]), bool(row[1])


def _close_study(connection: Connection, record: StudyRecord, *, hours_spent: bool) -> None:
    counts = queries.counts(connection, record.id)
    state = lifecycle.study_end(
        trials=[state for state, _ in counts],
        trials_used=sum(count for (_, searched), count in counts.items() if searched),
        trials_total=record.trials_total,
        hours_spent=hours_spent,
    )
    if state is not None:
        connection.execute(
            text("UPDATE study SET state = CAST(:state AS study_state) WHERE id = :id AND state = 'open'"),
            {"state": state, "id": record.id},
        )


def cancel(connection: Connection, record: StudyRecord, reason: str, *, running: bool) -> None:
    """Cancel every waiting unit and every planned trial; with `running` also what is leased and open."""
    for statement in (
        "UPDATE unit SET state = 'cancelled', expires_at = NULL, ended_at = now(), reason = :reason "
        "WHERE study = :study AND (state = 'waiting' OR :running AND state = 'leased')",
        "UPDATE trial SET state = 'cancelled', closed_at = now(), reason = :reason "
        "WHERE study = :study AND (state = 'waiting' OR :running AND state = 'running')",
    ):
        connection.execute(text(statement), {"study": record.id, "reason": reason, "running": running})
    cleaning.prune(connection, record)
