"""The budget of device hours, summed over all workers of a study."""

from __future__ import annotations

from sqlalchemy import Connection, text

from orchestrator import lifecycle
from orchestrator.records import StudyRecord


def hours_spent(connection: Connection, record: StudyRecord) -> bool:
    """Whether one more epoch, as long as those so far, would pass the limit."""
    if record.spec.budget.hours is None:
        return False
    total, used, epoch, _ = _usage(connection, record.id)
    return total is not None and used + epoch > total * 3600


def has_room(connection: Connection, record: StudyRecord) -> bool:
    """Whether one more unit could train an epoch beside those that run.

    Without it the last minutes would be shared out in pieces too short for any epoch: idle workers would suggest,
    lease and cancel one trial after another.
    """
    if record.spec.budget.hours is None:
        return True
    total, used, epoch, running = _usage(connection, record.id)
    return total is None or used + epoch * (running + 1) <= total * 3600


def used_seconds(connection: Connection, study_id: int) -> float:
    """Device seconds of every reported epoch."""
    return _usage(connection, study_id)[1]


def seconds_left(connection: Connection, study_id: int) -> float | None:
    """Device seconds that each running unit may still take; None: no limit."""
    if not _limited(connection, study_id):
        return None
    total, used, _, running = _usage(connection, study_id)
    return lifecycle.seconds_left(total, used, running)


def _limited(connection: Connection, study_id: int) -> bool:
    """Whether hours are limited at all. What was used is summed over every unit and result, for each question anew."""
    query = text("SELECT hours_total IS NOT NULL FROM study WHERE id = :id")
    return bool(connection.execute(query, {"id": study_id}).scalar())


def _usage(connection: Connection, study_id: int) -> tuple[float | None, float, float, int]:
    """(hours allowed, seconds used, mean seconds of an epoch, units running)."""
    row = connection.execute(
        text(
            "SELECT s.hours_total, "
            "(SELECT coalesce(sum(seconds), 0) FROM unit WHERE study = s.id), "
            "(SELECT coalesce(avg(r.seconds), 0) FROM result r JOIN unit u ON u.id = r.unit WHERE u.study = s.id), "
            "(SELECT count(*) FROM unit WHERE study = s.id AND state = 'leased') "
            "FROM study s WHERE s.id = :id"
        ),
        {"id": study_id},
    ).one()
    return row[0], float(row[1]), float(row[2]), int(row[3])
