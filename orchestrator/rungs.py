"""What the tables know of a race, given to its rules. Reads only; `reconcile.settle` writes what follows."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, text

from orchestrator import queries, racing
from orchestrator.racing import Fold, Incumbent, Rules
from orchestrator.records import StudyRecord, TrialRecord

PAIRED = "paired"


def verdicts(connection: Connection, record: StudyRecord, *, only: int | None = None) -> dict[int, str]:
    """Open trials that racing stops -> why, in words. Empty without racing, and while no trial is complete.

    only: this trial alone is judged. Enough where nothing but its own results is new.
    """
    if not record.spec.racing.on:
        return {}
    best = next(iter(queries.best_trials(connection, record.id, 1, maximize=record.spec.maximize)), None)
    if best is None:
        return {}
    raced = _raced(connection, record, only)
    if not raced:
        return {}
    reported = _reported(connection, record, best.id, raced)
    rules, incumbent = rules_of(record), Incumbent(name=_name(best), folds=reported.pop(best.id, {}))
    reasons = {trial: racing.reason_to_stop(rules, folds, incumbent) for trial, folds in sorted(reported.items())}
    return {trial: reason for trial, reason in reasons.items() if reason is not None}


def _raced(connection: Connection, record: StudyRecord, only: int | None) -> list[int]:
    """Ids of the open trials that `is_raced` says may be stopped; in SQL, since there may be thousands."""
    query = (
        "SELECT id FROM trial WHERE study = :study AND state = 'running' AND searched AND NOT is_default "
        "AND duplicate_of IS NULL AND id = coalesce(CAST(:only AS bigint), id) ORDER BY id"
    )
    rows = connection.execute(text(query), {"study": record.id, "only": only})
    return [int(trial) for trial in rows.scalars()]


def is_raced(trial: TrialRecord) -> bool:
    """Whether racing may stop it: not the default configuration or a baseline, nor what trains nothing of its own."""
    return trial.searched and not trial.is_default and trial.duplicate_of is None


def rules_of(record: StudyRecord) -> Rules:
    """The study's rules."""
    wanted = record.spec.racing
    return Rules(
        rule=wanted.rule,
        objective=record.spec.objective,
        folds=record.plan.folds,
        first_folds=wanted.first_folds,
        confidence=wanted.confidence,
        hopeless=wanted.hopeless,
    )


def _name(best: TrialRecord) -> str:
    if best.is_default:
        return "the default configuration"
    return "the best trial" if best.number is None else f"trial {best.number}"  # Optuna may not have heard of it yet


def _reported(
    connection: Connection, record: StudyRecord, best: int, raced: Sequence[int]
) -> dict[int, dict[tuple[int, int], Fold]]:
    """trial -> (repeat, fold) -> what it reported; predictions of finished folds only, where the rule reads them.

    All epochs of the incumbent and of what is not finished; of other folds the last.
    """
    rows = connection.execute(
        text(
            "SELECT u.trial, u.repeat, u.fold, u.state = 'done' AS done, r.epoch, r.tallies, "
            "CASE WHEN :items AND x.last AND u.state = 'done' THEN r.nats END AS nats, "
            "CASE WHEN :items AND x.last AND u.state = 'done' THEN r.counts END AS counts "
            "FROM unit u JOIN trial t ON t.id = u.trial JOIN result r ON r.unit = u.id "
            "CROSS JOIN LATERAL (SELECT r.epoch = CAST(t.settings->>'epochs' AS integer) AS last) x "
            "WHERE u.trial = ANY(:trials) AND u.state IN ('waiting', 'leased', 'done') "
            "AND (u.state = 'done' AND x.last OR :hopeless AND (u.trial = :best OR u.state <> 'done')) "
            "ORDER BY u.trial, u.repeat, u.fold, r.epoch"
        ),
        {
            "trials": [best, *raced],
            "best": best,
            "items": record.spec.racing.rule == PAIRED,
            "hopeless": record.spec.racing.hopeless,
        },
    )
    epochs: dict[tuple[int, int, int], list[Any]] = defaultdict(list)
    for row in rows.mappings():
        epochs[row["trial"], row["repeat"], row["fold"]].append(row)
    found: dict[int, dict[tuple[int, int], Fold]] = defaultdict(dict)
    for (trial, repeat, fold), each in epochs.items():
        last = each[-1]
        found[trial][repeat, fold] = Fold(
            done=last["done"],
            epochs={row["epoch"]: row["tallies"] for row in each},
            rows=record.plan.split(repeat, fold)[1] if last["nats"] is not None else (),
            nats=_floats(last["nats"]),
            counts=_floats(last["counts"]),
        )
    return found


def _floats(packed: bytes | None) -> Sequence[float]:
    """float32, little-endian, see `contract.Predictions`."""
    return array("f", bytes(packed or b""))
