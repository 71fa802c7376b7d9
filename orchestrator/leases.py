"""Leases: a worker's right to one unit until a time on the database's clock, fenced by an epoch."""

from __future__ import annotations

from sqlalchemy import Connection, Engine, text

from orchestrator import budget, lifecycle, queries
from orchestrator.contract import Settings, build
from orchestrator.database.engine import transaction
from orchestrator.errors import TRY_AGAIN, FoldtuneError
from orchestrator.records import Lease, StudyRecord


class Fenced(FoldtuneError):
    """The lease was lost: somebody else owns the unit, or the trial was closed. Nothing was written."""

    def __init__(self, lease: Lease, found: int | None) -> None:
        owner = (
            f"epoch {lease.epoch} < {found}" if found and found > lease.epoch else "it ran out, or the trial was closed"
        )
        super().__init__(
            f"lease of unit {lease.unit} was lost ({owner}); stopping it, nothing was written", code=TRY_AGAIN
        )


def grant(connection: Connection, record: StudyRecord, unit: int, worker: int) -> Lease:
    """Lease a waiting unit to a worker, and open its trial. Under the study's lock."""
    row = (
        connection.execute(
            text(
                "UPDATE unit SET state = 'leased', worker = :worker, lease_epoch = lease_epoch + 1, "
                "token = gen_random_uuid(), "
                "attempts = attempts + 1, started_at = coalesce(started_at, now()), "
                "expires_at = now() + make_interval(secs => :ttl) WHERE id = :unit "
                "RETURNING id, trial, repeat, fold, attempts, lease_epoch, CAST(token AS text) AS token, charges"
            ),
            {"unit": unit, "worker": worker, "ttl": lifecycle.LEASE_SECONDS},
        )
        .mappings()
        .one()
    )
    trial = (
        connection.execute(
            text(
                "UPDATE trial SET state = 'running', opened_at = coalesce(opened_at, now()) WHERE id = :id "
                "RETURNING settings, configuration"
            ),
            {"id": row["trial"]},
        )
        .mappings()
        .one()
    )
    return Lease(
        study=record.id,
        trial=row["trial"],
        unit=row["id"],
        epoch=row["lease_epoch"],
        token=row["token"],
        repeat=row["repeat"],
        fold=row["fold"],
        attempt=row["attempts"],
        settings=build(Settings, trial["settings"]),
        configuration=trial["configuration"],
        seconds_left=budget.seconds_left(connection, record.id),
        charges=row["charges"],
    )


def renew(engine: Engine, lease: Lease) -> float | None:
    """Extend the lease; device seconds that the unit may still take, None without a limit.

    Raises:
        Fenced: the lease was lost.
    """
    with transaction(engine) as connection:
        hold(connection, lease)
        return budget.seconds_left(connection, lease.study)


def release(engine: Engine, lease: Lease) -> None:
    """Give a unit back, uncharged; somebody else may take it at once. Nothing happens if the lease was lost."""
    with transaction(engine) as connection:
        connection.execute(
            text(
                "UPDATE unit SET state = 'waiting', worker = NULL, expires_at = NULL "
                "WHERE id = :unit AND lease_epoch = :epoch AND token = CAST(:token AS uuid) AND state = 'leased'"
            ),
            {"unit": lease.unit, "epoch": lease.epoch, "token": lease.token},
        )


def hold(connection: Connection, lease: Lease) -> None:
    """Extend the lease inside this transaction, or refuse everything in it: raises Fenced."""
    held = connection.execute(
        text(
            "UPDATE unit SET expires_at = now() + make_interval(secs => :ttl) "
            "WHERE id = :unit AND lease_epoch = :epoch AND token = CAST(:token AS uuid) AND state = 'leased'"
        ),
        {"unit": lease.unit, "epoch": lease.epoch, "token": lease.token, "ttl": lifecycle.LEASE_SECONDS},
    ).rowcount
    if held != 1:
        found = queries.scalar(connection, "SELECT lease_epoch FROM unit WHERE id = :id", id=lease.unit)
        raise Fenced(lease, found)
