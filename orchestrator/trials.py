"""The use cases of a trial's life: take, report, finish.

Every decision about a study is made under its row lock. Every write of a result carries the lease's epoch and is
refused when the lease was lost.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence

from sqlalchemy import Connection, Engine, text

from orchestrator import budget, leases, lifecycle, projection, queries, space, study
from orchestrator.contract import EpochDone, Outcome, UnitEnded
from orchestrator.database.engine import transaction
from orchestrator.errors import UNAVAILABLE, FoldtuneError
from orchestrator.launch import insert_trial
from orchestrator.reconcile import reconcile, settle
from orchestrator.records import Lease, StudyRecord

REDRAWS = 10


def take(engine: Engine, worker: int, names: Sequence[str]) -> tuple[StudyRecord, Lease] | None:
    """A unit to train, from the first of these studies that has one; None while there is none.

    Further folds of open trials first, then planned trials, then a new suggestion.
    """
    for name in names:
        try:
            with transaction(engine) as connection:
                record = queries.lock_study(connection, queries.study(connection, name).id)
                reconcile(connection, record)
                lease = _lease_next(connection, record, worker) if _is_open(connection, record) else None
        except queries.NoStudy:  # deleted since the caller read its name
            continue
        try:
            projection.project(engine, name)
        except FoldtuneError as error:
            if lease is None or error.code != UNAVAILABLE:
                raise
            # A lease that is not returned is lost until it runs out. Whoever comes next brings Optuna up to date.
        if lease is not None:
            return record, lease
    return None


def _is_open(connection: Connection, record: StudyRecord) -> bool:
    return bool(queries.scalar(connection, "SELECT state = 'open' FROM study WHERE id = :id", id=record.id))


def _lease_next(connection: Connection, record: StudyRecord, worker: int) -> Lease | None:
    if not budget.has_room(connection, record.id):
        return None
    unit = _waiting_unit(connection, record, "running")
    if unit is None:
        unit = _waiting_unit(connection, record, "waiting")
    while unit is None and _suggest(connection, record):  # one that repeats a configuration brings no unit
        unit = _waiting_unit(connection, record, "waiting")
    return None if unit is None else leases.grant(connection, record, unit, worker)


def _waiting_unit(connection: Connection, record: StudyRecord, trial_state: str) -> int | None:
    found = queries.scalar(
        connection,
        "SELECT u.id FROM unit u JOIN trial t ON t.id = u.trial "
        "WHERE u.study = :study AND u.state = 'waiting' AND t.state = CAST(:state AS trial_state) "
        "ORDER BY t.id, u.repeat, u.fold LIMIT 1",
        study=record.id,
        state=trial_state,
    )
    return None if found is None else int(found)


def _suggest(connection: Connection, record: StudyRecord) -> bool:
    """Insert the next suggestion as a waiting trial; False if the budget or the cap on open trials forbids it."""
    if record.spec.search.sampler == "grid":
        return False
    trials = queries.trials(connection, record.id)
    if sum(trial.searched for trial in trials) >= record.trials_total:
        return False
    cap = lifecycle.open_cap(record.spec.search.sampler, record.trials_total, _capable_workers(connection))
    open_now = sum(trial.searched and trial.state == "running" for trial in trials)
    if cap is not None and open_now >= cap:
        return False
    known = {space.configuration_digest(trial.settings): trial.id for trial in trials if trial.duplicate_of is None}
    past = projection.past_of(connection, record, trials)
    suggestion = int(queries.scalar(connection, "SELECT suggestions FROM study WHERE id = :id", id=record.id))
    for redraw in range(REDRAWS + 1):
        question = study.Question(
            sampler=record.spec.search.sampler,
            space=record.spec.search.space,
            maximize=record.spec.maximize,
            trials=record.trials_total,
            seed=study.suggestion_seed(record.spec.seed, suggestion, redraw),
            past=past,
        )
        params, origin = study.suggest(question)
        duplicate = known.get(space.configuration_digest(record.settings(params)))
        if duplicate is None:
            break
    insert_trial(connection, record, params, origin=origin, duplicate_of=duplicate)
    connection.execute(text("UPDATE study SET suggestions = suggestions + 1 WHERE id = :id"), {"id": record.id})
    if duplicate is not None:
        settle(connection, record)
    return True


def _capable_workers(connection: Connection) -> int:
    capacity = queries.scalar(
        connection,
        "SELECT coalesce(sum(capacity), 0) FROM worker WHERE left_at IS NULL "
        "AND seen_at > now() - make_interval(secs => :ttl)",
        ttl=lifecycle.LEASE_SECONDS,
    )
    return int(capacity)


def report(engine: Engine, lease: Lease, done: EpochDone) -> bool:
    """Accept one epoch's result. False: that epoch had been accepted before, and stays as it was.

    Raises:
        Fenced: the lease was lost; nothing was written.
    """
    predictions = done.predictions
    with transaction(engine) as connection:
        leases.hold(connection, lease)
        accepted = connection.execute(
            text(
                "INSERT INTO result (unit, epoch, lease_epoch, train_loss, seconds, tallies, nats, counts, logits) "
                "VALUES (:unit, :epoch, :lease_epoch, :train_loss, :seconds, :tallies, :nats, :counts, :logits) "
                "ON CONFLICT (unit, epoch) DO NOTHING"
            ),
            {
                "unit": lease.unit,
                "epoch": done.epoch,
                "lease_epoch": lease.epoch,
                "train_loss": done.train_loss,
                "seconds": done.seconds,
                "tallies": json.dumps(dict(done.tallies), allow_nan=False),
                "nats": base64.b64decode(predictions.nats),
                "counts": base64.b64decode(predictions.counts),
                "logits": base64.b64decode(predictions.logits) if predictions.logits else None,
            },
        ).rowcount
        # An epoch trained anew by a later lease costs its device time again; a report sent twice does not.
        connection.execute(
            text(
                "UPDATE unit SET vanished = 0, seconds = seconds + :seconds "
                "WHERE id = :unit AND (:accepted OR NOT EXISTS "
                "(SELECT 1 FROM result WHERE unit = :unit AND epoch = :epoch AND lease_epoch = :lease_epoch))"
            ),
            {
                "seconds": done.seconds,
                "unit": lease.unit,
                "accepted": bool(accepted),
                "epoch": done.epoch,
                "lease_epoch": lease.epoch,
            },
        )
    return bool(accepted)


def finish(engine: Engine, name: str, lease: Lease, ended: UnitEnded) -> None:
    """Close a unit, and its trial if that decides it; then show Optuna.

    Raises:
        Fenced: the lease was lost; nothing was written.
    """
    with transaction(engine) as connection:
        record = queries.lock_study(connection, lease.study)
        if not _recorded(connection, lease, ended):
            _end_unit(connection, lease, ended)
            settle(connection, record)
    projection.project(engine, name)


def _recorded(connection: Connection, lease: Lease, ended: UnitEnded) -> bool:
    """Whether an earlier call wrote this very end, and its caller only did not hear of it."""
    unit = connection.execute(
        text("SELECT CAST(state AS text) AS state, lease_epoch, charges, reason FROM unit WHERE id = :id"),
        {"id": lease.unit},
    ).one()
    state = _unit_state(ended.outcome, unit.charges)
    return (unit.lease_epoch, unit.state, unit.reason) == (lease.epoch, state, storable(ended.reason))


def _end_unit(connection: Connection, lease: Lease, ended: UnitEnded) -> None:
    leases.hold(connection, lease)
    charge = ended.outcome == Outcome.FAILED
    charges = queries.scalar(connection, "SELECT charges FROM unit WHERE id = :id", id=lease.unit) + charge
    state = _unit_state(ended.outcome, charges)
    connection.execute(
        text(
            "UPDATE unit SET state = CAST(:state AS unit_state), charges = :charges, reason = :reason, "
            "evidence = :evidence, expires_at = NULL, "
            "ended_at = CASE WHEN :state = 'waiting' THEN NULL ELSE now() END WHERE id = :unit"
        ),
        {
            "unit": lease.unit,
            "state": state,
            "charges": charges,
            "reason": storable(ended.reason),
            "evidence": storable(ended.evidence[-20_000:]),
        },
    )


def storable(text: str) -> str:
    """Text without U+0000, which Postgres refuses: a trainer's last words may be anything."""
    return text.replace("\x00", "\N{REPLACEMENT CHARACTER}")


def _unit_state(outcome: Outcome, charges: int) -> str:
    if outcome == Outcome.FAILED:
        return "failed" if charges >= lifecycle.MAX_CHARGES else "waiting"
    return {Outcome.DROPPED: "waiting", Outcome.OVER_BUDGET: "cancelled"}.get(outcome, outcome.value)
