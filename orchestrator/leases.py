"""Leases: a worker's right to one unit until a time on the database's clock, fenced by an epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, text

from orchestrator import budget, lifecycle
from orchestrator.contract import Settings, build
from orchestrator.database.engine import transaction
from orchestrator.errors import TRY_AGAIN, FoldtuneError
from orchestrator.records import Lease, StudyRecord


class Fenced(FoldtuneError):
    """The lease was lost: somebody else owns the unit, or nobody wants it trained any more. Nothing was written.

    closed: why nobody wants it, empty where somebody else may train it now.
    reason: why the lease is worth nothing though nobody took it.
    """

    def __init__(self, lease: Lease, found: int | None, closed: str = "", reason: str = "it ran out") -> None:
        if found and found > lease.epoch:
            why, closed = f"epoch {lease.epoch} < {found}", ""
        else:
            why = closed or reason
        super().__init__(
            f"lease of unit {lease.unit} was lost ({why}); stopping it, nothing was written", code=TRY_AGAIN
        )
        self.lease = lease
        self.closed = closed


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
                "RETURNING settings, configuration, params->>'model' AS model"
            ),
            {"id": row["trial"]},
        )
        .mappings()
        .one()
    )
    connection.execute(
        text(
            "INSERT INTO attempt (unit, lease_epoch, number, worker) VALUES (:unit, :lease_epoch, :attempts, :worker)"
        ),
        {"unit": unit, "lease_epoch": row["lease_epoch"], "attempts": row["attempts"], "worker": worker},
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
        seconds_left=None if record.spec.budget.hours is None else budget.seconds_left(connection, record.id),
        charges=row["charges"],
        model=(trial["model"] or record.model.path) if record.models else None,
    )


@dataclass(frozen=True)
class Renewal:
    """What came of renewing several leases."""

    lost: Sequence[Fenced]
    seconds_left: Mapping[int, float]  # unit -> device seconds it may still take, where hours are limited


def renew(engine: Engine, leases: Sequence[Lease]) -> Renewal:
    """Extend leases; a lost one is part of the answer and does not keep the others from being extended."""
    lost: list[Fenced] = []
    seconds: dict[int, float] = {}
    with transaction(engine) as connection:
        for lease in sorted(leases, key=lambda lease: lease.unit):  # everybody locks units in this order
            try:
                hold(connection, lease)
            except Fenced as fenced:
                lost.append(fenced)
                continue
            left = budget.seconds_left(connection, lease.study)
            if left is not None:
                seconds[lease.unit] = left
    return Renewal(lost, seconds)


def disown(connection: Connection, record: StudyRecord, worker: int, held: Sequence[str]) -> None:
    """Give back what was leased to a worker that does not know of it: the answer to its claim was lost on the way.

    held: tokens of the leases that it knows of. Under the study's lock.
    """
    _release_but(connection, worker, held, record.id, "the answer to the claim was lost")


def release_all(engine: Engine, worker: int) -> None:
    """Give back, uncharged, whatever a worker still holds: it leaves."""
    with transaction(engine) as connection:
        _release_but(connection, worker, (), None, "the worker left")


def _release_but(connection: Connection, worker: int, kept: Sequence[str], study_id: int | None, reason: str) -> None:
    """Release a worker's leases in a study (None: in all), except those with these tokens."""
    connection.execute(
        text(
            "WITH given AS (UPDATE unit SET state = state_at_rest(id), worker = NULL, expires_at = NULL "
            "WHERE state = 'leased' AND worker = :worker AND NOT token = ANY(CAST(:kept AS uuid[])) "
            "AND (CAST(:study AS bigint) IS NULL OR study = :study) RETURNING id, lease_epoch) "
            "UPDATE attempt a SET ended_at = now(), cause = 'released', reason = :reason "
            "FROM given WHERE a.unit = given.id AND a.lease_epoch = given.lease_epoch"
        ),
        {"worker": worker, "kept": list(kept), "study": study_id, "reason": reason},
    )


def bury(engine: Engine, worker: int) -> int:
    """Let the leases of a worker that is known to be dead run out now; how many it held."""
    with transaction(engine) as connection:
        return connection.execute(
            text("UPDATE unit SET expires_at = now() WHERE worker = :worker AND state = 'leased'"), {"worker": worker}
        ).rowcount


def release(connection: Connection, lease: Lease, cause: str, reason: str) -> None:
    """Give a unit back, uncharged; somebody else may take it at once. Nothing happens if the lease was lost."""
    given = connection.execute(
        text(
            "UPDATE unit SET state = state_at_rest(id), worker = NULL, expires_at = NULL "
            "WHERE id = :unit AND lease_epoch = :epoch AND token = CAST(:token AS uuid) AND state = 'leased'"
        ),
        {"unit": lease.unit, "epoch": lease.epoch, "token": lease.token},
    ).rowcount
    if given:
        end_attempt(connection, lease, cause, reason)


def end_attempt(
    connection: Connection, lease: Lease, cause: str, reason: str = "", evidence: str = "", *, charged: bool = False
) -> None:
    """Write down how an attempt ended."""
    connection.execute(
        text(
            "UPDATE attempt SET ended_at = now(), cause = :cause, reason = :reason, evidence = :evidence, "
            "charged = :charged WHERE unit = :unit AND lease_epoch = :epoch AND ended_at IS NULL"
        ),
        {
            "unit": lease.unit,
            "epoch": lease.epoch,
            "cause": cause,
            "reason": reason,
            "evidence": evidence,
            "charged": charged,
        },
    )


def hold(connection: Connection, lease: Lease) -> None:
    """Extend the lease inside this transaction, or refuse everything in it: raises Fenced.

    A lease that ran out counts as long as nobody else was given the unit: then nobody else can have begun.
    """
    held = connection.execute(
        text(
            "UPDATE unit SET expires_at = now() + make_interval(secs => :ttl) "
            "WHERE id = :unit AND lease_epoch = :epoch AND token = CAST(:token AS uuid) AND state = 'leased'"
        ),
        {"unit": lease.unit, "epoch": lease.epoch, "token": lease.token, "ttl": lifecycle.LEASE_SECONDS},
    ).rowcount
    if held != 1:
        query = "SELECT lease_epoch, state = 'cancelled' AS closed, reason FROM unit WHERE id = :id"
        found = connection.execute(text(query), {"id": lease.unit}).mappings().one_or_none()
        if found is None:
            raise Fenced(lease, None, "its study was deleted")
        raise Fenced(
            lease, found["lease_epoch"], (found["reason"] or "its trial was closed") if found["closed"] else ""
        )
