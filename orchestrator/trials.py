"""The use cases of a trial's life: take, report, finish.

Every decision about a study is made under its row lock. Every write of a result carries the lease's epoch and is
refused when the lease was lost.
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Engine, text

from orchestrator import (
    artifacts,
    budget,
    history,
    leases,
    lifecycle,
    projection,
    queries,
    rungs,
    study,
    turns,
    waiting,
)
from orchestrator.artifacts import Stored
from orchestrator.contract import EpochDone, Outcome, UnitEnded
from orchestrator.database.engine import transaction
from orchestrator.errors import UNAVAILABLE, FoldtuneError
from orchestrator.launch import insert_trial
from orchestrator.reconcile import reconcile, settle
from orchestrator.records import Lease, StudyRecord
from orchestrator.waiting import Opened

REDRAWS = 10
Taken = tuple[StudyRecord, Lease] | None


def take(
    engine: Engine,
    worker: int,
    names: Sequence[str],
    *,
    held: Sequence[str] | None = None,
    opened: Opened | None = None,
) -> Taken:
    """A unit to train, from the first of these studies that has one; None while there is none.

    Further folds of open trials first, then planned trials, then a new suggestion; under racing the first folds of all
    of these come before further ones. Units of trials that had a failure last, and never for a worker that trains
    others: only what fails alone is charged.

    held: tokens of the leases that this worker knows of; what else it is said to hold is given back. None: not known.
    opened: the model that it has loaded, of a study that has several.
    """
    for name in names:
        try:
            taken = _take_from(engine, worker, name, held, opened)
        except queries.NoStudy:  # deleted since the caller read its name
            continue
        try:
            projection.project(engine, name, wait=False)
        except queries.NoStudy:  # deleted just now, its unit with it
            continue
        except FoldtuneError as error:
            if taken is None or error.code != UNAVAILABLE:
                raise
            # A lease that is not returned is lost until it runs out. Whoever comes next brings Optuna up to date.
        if taken is not None:
            return taken
    return None


def _take_from(engine: Engine, worker: int, name: str, held: Sequence[str] | None, opened: Opened | None) -> Taken:
    """Lease what waits; else ask the sampler when it is this worker's turn, and look again.

    Asked outside the study's lock: a Gaussian process thinks for seconds, and nobody else could end a unit meanwhile.
    """
    record, lease, wanting = _look(engine, worker, name, held, opened)
    if not wanting:
        return None if lease is None else (record, lease)
    with turns.turn(engine, record.id) as mine:
        while mine and wanting:
            record, lease, wanting = _look(engine, worker, name, held, opened, _draw(engine, record))
    if wanting:  # others draw all the time, or one is frozen: what comes after new suggestions
        record, lease, _ = _look(engine, worker, name, held, opened, draws=False)
    return None if lease is None else (record, lease)


def _look(
    engine: Engine,
    worker: int,
    name: str,
    held: Sequence[str] | None,
    opened: Opened | None,
    suggested: Suggested | None = None,
    *,
    draws: bool = True,
) -> tuple[StudyRecord, Lease | None, bool]:
    """(study, a unit of it, whether a suggestion would bring one), once this suggestion is among the trials.

    draws: whether the caller can bring one; else it gets what would come after.
    """
    with transaction(engine) as connection:
        record = queries.lock_named(connection, name)
        if held is not None:
            leases.disown(connection, record, worker, held)
        reconcile(connection, record)
        if suggested is not None:
            _insert(connection, record, suggested)
        if not _is_open(connection, record) or not budget.has_room(connection, record):
            return record, None, False
        raced = record.spec.racing.on
        opened = opened if record.models else None
        first = waiting.first_rung_unit if raced else waiting.next_unit
        unit = first(connection, record, opened)
        # another model's unit that waits is no reason to draw, or all of the budget would be drawn meanwhile
        passed_by = unit is None and opened is not None and opened.only and first(connection, record) is not None
        wanting = draws and unit is None and not passed_by and _next_number(connection, record) is not None
        if unit is None and not wanting and raced:
            unit = waiting.further_unit(connection, record, opened)
        if unit is None and not wanting and not held:
            unit = waiting.next_unit(connection, record, opened, blameless=False)
        lease = None if unit is None else leases.grant(connection, record, unit, worker)
        return record, lease, wanting


def _is_open(connection: Connection, record: StudyRecord) -> bool:
    return bool(queries.scalar(connection, "SELECT state = 'open' FROM study WHERE id = :id", id=record.id))


@dataclass(frozen=True)
class Suggested:
    """The sampler's answer. It counts only while its number is the next one."""

    number: int  # of the suggestion
    params: Mapping[str, Any]
    origin: str
    duplicate: int | None


def _next_number(connection: Connection, record: StudyRecord) -> int | None:
    """The number of the next suggestion; None if the budget or the cap on open trials forbids one."""
    sampler = record.spec.search.sampler
    if sampler == "grid":
        return None
    row = connection.execute(
        text(
            "SELECT s.suggestions, (SELECT count(*) FROM trial WHERE study = s.id AND searched) AS used, "
            "(SELECT count(*) FROM trial WHERE study = s.id AND searched AND state = 'running') AS running "
            "FROM study s WHERE s.id = :id"
        ),
        {"id": record.id},
    ).one()
    if row.used >= record.trials_total:
        return None
    cap = lifecycle.open_cap(sampler, record.trials_total, _capable_workers(connection, record))
    return int(row.suggestions) if cap is None or row.running < cap else None


def _draw(engine: Engine, record: StudyRecord) -> Suggested | None:
    """Ask the sampler, and again while it proposes what is known; None: no suggestion is wanted any more."""
    sampler = record.spec.search.sampler
    with transaction(engine) as connection:
        number = _next_number(connection, record)
        past = history.past_of(connection, record) if number is not None and sampler != "random" else []
    if number is None:
        return None
    question = study.Question(
        sampler=sampler,
        space=record.spec.proposed,
        maximize=record.spec.maximize,
        trials=record.trials_total,
        seed=0,
        past=past,
    )
    for redraw in range(REDRAWS + 1):
        seed = study.suggestion_seed(record.spec.seed, number, redraw)
        params, origin = study.suggest(replace(question, seed=seed))
        duplicate = _trained(engine, record, params)
        if duplicate is None:
            break
    return Suggested(number, params, origin, duplicate)


def _trained(engine: Engine, record: StudyRecord, params: Mapping[str, Any]) -> int | None:
    """The trial that has this configuration."""
    query = "SELECT id FROM trial WHERE study = :study AND configuration = :digest AND duplicate_of IS NULL"
    digest = record.configuration(params)
    with transaction(engine) as connection:
        found = queries.scalar(connection, query, study=record.id, digest=digest)
    return None if found is None else int(found)


def _insert(connection: Connection, record: StudyRecord, suggested: Suggested) -> None:
    """Make a suggestion a waiting trial, unless another worker's was first or the study needs none any more."""
    if not _is_open(connection, record) or _next_number(connection, record) != suggested.number:
        return
    insert_trial(connection, record, suggested.params, origin=suggested.origin, duplicate_of=suggested.duplicate)
    connection.execute(text("UPDATE study SET suggestions = suggestions + 1 WHERE id = :id"), {"id": record.id})
    if suggested.duplicate is not None:  # it brings no unit
        settle(connection, record, judged=())


def _capable_workers(connection: Connection, record: StudyRecord) -> int:
    """Units that living workers can train at once. Under racing a pack counts once, however wide.

    Without racing its slots are filled with further folds first. With it each would open a trial of its own, and a
    model-based sampler would have proposed all of them before the first was judged.
    """
    capacity = queries.scalar(
        connection,
        "SELECT coalesce(sum(CASE WHEN :raced THEN 1 ELSE capacity END), 0) FROM worker WHERE left_at IS NULL "
        "AND seen_at > now() - make_interval(secs => :ttl)",
        raced=record.spec.racing.on,
        ttl=lifecycle.LEASE_SECONDS,
    )
    return int(capacity)


def report(engine: Engine, lease: Lease, epochs: Sequence[EpochDone], stored: Stored | None = None) -> int:
    """Accept results of one unit, one for each epoch; how many of them had not been accepted before.

    An epoch that was accepted stays as it was. Under racing what is new may stop open trials, this one too: the next
    renewal then finds the lease lost. stored: where the last one's checkpoint is, if that could be stored.

    Raises:
        Fenced: the lease was lost, or earlier results of the unit are; nothing was written.
        FoldtuneError: the database has no room for the checkpoint (exit code 73); nothing was written.
    """
    with transaction(engine) as connection:
        leases.hold(connection, lease)
        _follow_on(connection, lease, epochs)
        accepted = sum(_accept(connection, lease, done) for done in epochs)
        checkpoint = epochs[-1].checkpoint
        if checkpoint is not None and stored is not None:
            artifacts.record(connection, lease, checkpoint, stored)
        rule = "SELECT spec->'racing'->>'rule' FROM study WHERE id = :id"
        raced = accepted and queries.scalar(connection, rule, id=lease.study) not in (None, "none")
    if raced:
        _race(engine, lease)
    return accepted


def _follow_on(connection: Connection, lease: Lease, epochs: Sequence[EpochDone]) -> None:
    """Refuse results that leave a gap: raises Fenced, and the unit is trained again from what the database has.

    A standby that took over may lack results that were acknowledged and still know the lease; so may the results'
    disk, if it was full for a while. With its last epoch there the unit would be done, and they would never come.
    """
    missing = _missing(connection, lease, epochs[-1].epoch) - {done.epoch for done in epochs}
    if missing:
        raise leases.Fenced(lease, None, reason=f"the database lacks its result of epoch {min(missing)}")


def _missing(connection: Connection, lease: Lease, epoch: int) -> set[int]:
    """Epochs up to this one of which the database has no result."""
    known = connection.execute(text("SELECT epoch FROM result WHERE unit = :unit"), {"unit": lease.unit}).scalars()
    return set(range(1, epoch + 1)) - set(known)


def _race(engine: Engine, lease: Lease) -> None:
    """Stop what the new results decide. Apart from their transaction: that locks a unit, and this the study first.

    A crash in between costs nothing: whoever next takes or finishes a unit decides the same.
    """
    with transaction(engine) as connection:
        record = queries.study_by_id(connection, lease.study)
        # most epochs stop nobody, and need no lock; others than this one were judged when their own results came
        if record is None or not rungs.verdicts(connection, record, [lease.trial]):
            return
    with contextlib.suppress(queries.NoStudy):
        with transaction(engine) as connection:
            settle(connection, queries.lock_study(connection, lease.study), judged=[lease.trial])
        projection.project(engine, record.name, wait=False)


def _accept(connection: Connection, lease: Lease, done: EpochDone) -> bool:
    predictions = done.predictions
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
    first = connection.execute(
        text(
            "UPDATE attempt SET counted = :epoch WHERE unit = :unit AND lease_epoch = :lease_epoch AND counted < :epoch"
        ),
        {"unit": lease.unit, "epoch": done.epoch, "lease_epoch": lease.epoch},
    ).rowcount
    connection.execute(
        text(
            "UPDATE unit SET vanished = 0, seconds = seconds + :seconds, "
            "epoch = coalesce(epoch, CAST(:chosen AS integer)) WHERE id = :unit"
        ),
        {"seconds": done.seconds if first else 0.0, "unit": lease.unit, "chosen": done.chosen},
    )
    return bool(accepted)


def finish(engine: Engine, name: str, lease: Lease, ended: UnitEnded, stored: Stored | None = None) -> None:
    """Close a unit, and its trial if that decides it; then show Optuna. A dropped unit is given back instead.

    stored: where the checkpoint of a dropped unit is, if it has one that could be stored.

    Raises:
        Fenced: the lease was lost; nothing was written. Giving back a lost lease is not an error.
    """
    if ended.outcome == Outcome.DROPPED:
        _give_back(engine, lease, ended, stored)
        return
    with transaction(engine) as connection:
        record = queries.lock_study(connection, lease.study)
        if ended.outcome == Outcome.DONE and not _has_last_epoch(connection, lease):
            # It was kept in the memory of a process that died, or could not be written: trained again, never missing.
            leases.hold(connection, lease)
            leases.release(connection, lease, lifecycle.Cause.RELEASED, "the result of its last epoch never arrived")
        elif not _recorded(connection, lease, ended):
            _end_unit(connection, lease, ended)
            settle(connection, record, judged=[lease.trial])
    projection.project(engine, name, wait=False)


def _give_back(engine: Engine, lease: Lease, ended: UnitEnded, stored: Stored | None) -> None:
    with contextlib.suppress(leases.Fenced), transaction(engine) as connection:
        if ended.checkpoint is not None and stored is not None:
            leases.hold(connection, lease)
        # a state beyond a lost result would have every later attempt refused for the gap
        if (
            ended.checkpoint is not None
            and stored is not None
            and not _missing(connection, lease, ended.checkpoint.epoch)
        ):
            artifacts.record(connection, lease, ended.checkpoint, stored)
        leases.release(connection, lease, lifecycle.cause_of(ended.outcome, ended.cause), storable(ended.reason))


def forgive(engine: Engine, worker: int, charged: Sequence[Lease]) -> None:
    """Take back what these attempts were charged: the machine was at fault.

    Not where the unit failed on another machine too, or a poison unit would outlive one worker after another; and what
    has failed for good stays so.
    """
    with transaction(engine) as connection:
        for lease in charged:
            taken_back = connection.execute(
                text(
                    "UPDATE attempt SET charged = false WHERE unit = :unit AND lease_epoch = :epoch "
                    "AND worker = :worker AND charged AND NOT EXISTS (SELECT 1 FROM attempt o WHERE o.unit = :unit "
                    "AND o.worker <> :worker AND o.cause IN ('exception', 'crash', 'hang', 'killed'))"
                ),
                {"unit": lease.unit, "epoch": lease.epoch, "worker": worker},
            ).rowcount
            if taken_back:
                connection.execute(
                    text("UPDATE unit SET charges = charges - 1 WHERE id = :unit AND state IN ('waiting', 'leased')"),
                    {"unit": lease.unit},
                )


def _has_last_epoch(connection: Connection, lease: Lease) -> bool:
    return bool(queries.scalar(connection, "SELECT state_at_rest(:unit) = 'done'", unit=lease.unit))


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
    reason, evidence = storable(ended.reason), storable(ended.evidence[-20_000:])
    cause = lifecycle.cause_of(ended.outcome, ended.cause)
    leases.end_attempt(connection, lease, cause, reason, evidence, charged=charge)
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
            "reason": reason,
            "evidence": evidence,
        },
    )


def storable(text: str) -> str:
    """Text without U+0000, which Postgres refuses: a trainer's last words may be anything."""
    return text.replace("\x00", "\N{REPLACEMENT CHARACTER}")


def _unit_state(outcome: Outcome, charges: int) -> str:
    if outcome == Outcome.FAILED:
        return "failed" if charges >= lifecycle.MAX_CHARGES else "waiting"
    return "cancelled" if outcome == Outcome.OVER_BUDGET else outcome.value
