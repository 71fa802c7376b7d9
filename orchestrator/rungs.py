"""What the tables know of a race, given to its rules. Reads only; `reconcile.settle` writes what follows."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, text

from orchestrator import epochs, queries, racing
from orchestrator.racing import Fold, Incumbent, Rules
from orchestrator.records import StudyRecord, TrialRecord

PAIRED = "paired"


def verdicts(connection: Connection, record: StudyRecord, only: Sequence[int] | None = None) -> dict[int, str]:
    """Open trials that racing stops -> why, in words. Empty without racing, and while no trial is complete.

    only: these trials alone are judged, which is enough where nothing but their own results is new. None: all.
    """
    if not record.spec.racing.on or (only is not None and not only):
        return {}
    best = next(iter(queries.best_trials(connection, record.id, 1, maximize=record.spec.maximize)), None)
    if best is None:
        return {}
    raced = _raced(connection, record, only)
    if not raced:
        return {}
    last = {}
    if record.spec.share_epochs:
        last = best_epochs(connection, record, raced) | {best.trained: best.epoch or best.settings.epochs}
    reported = _reported(connection, record, best.trained, raced, last)
    rules, incumbent = rules_of(record), Incumbent(name=_name(best), folds=reported.pop(best.trained, {}))
    reasons = {trial: racing.reason_to_stop(rules, folds, incumbent) for trial, folds in sorted(reported.items())}
    return {trial: reason for trial, reason in reasons.items() if reason is not None}


def _raced(connection: Connection, record: StudyRecord, only: Sequence[int] | None) -> list[int]:
    """Ids of the open trials that may be stopped; in SQL, since there may be thousands.

    Never: the default configuration, the run that answers for it, a baseline, or what trains nothing of its own.
    """
    query = (
        "SELECT id FROM trial WHERE study = :study AND state = 'running' AND searched AND NOT is_default "
        "AND run IS NULL AND (:every OR id = ANY(:only)) "
        "AND id NOT IN (SELECT run FROM trial WHERE study = :study AND is_default AND run IS NOT NULL) ORDER BY id"
    )
    rows = connection.execute(text(query), {"study": record.id, "every": only is None, "only": list(only or ())})
    return [int(trial) for trial in rows.scalars()]


def rules_of(record: StudyRecord) -> Rules:
    """The study's rules."""
    wanted = record.spec.racing
    return Rules(
        rule=wanted.rule,
        objective=record.spec.objective,
        folds=record.plan.folds,
        first_folds=wanted.first_folds,
        confidence=wanted.confidence,
        # What is past its best epoch gets worse and worse, and is no worse for it where the best one counts.
        hopeless=wanted.hopeless and not record.spec.share_epochs,
    )


def best_epochs(connection: Connection, record: StudyRecord, trials: Sequence[int]) -> dict[int, int]:
    """Of trials that share epochs, and have finished folds: the best epoch over these. trials: such as trained."""
    allowed = record.spec.space["epochs"].points()
    found = {
        trial: epochs.best_epoch(record.spec.objective, folds, allowed)
        for trial, folds in queries.finished_epochs(connection, trials).items()
    }
    return {trial: epoch for trial, epoch in found.items() if epoch is not None}


def _name(best: TrialRecord) -> str:
    if best.is_default:
        return "the default configuration"
    return "the best trial" if best.number is None else f"trial {best.number}"  # Optuna may not have heard of it yet


def _reported(
    connection: Connection, record: StudyRecord, best: int, raced: Sequence[int], last: Mapping[int, int]
) -> dict[int, dict[tuple[int, int], Fold]]:
    """trial -> (repeat, fold) -> what it reported; predictions of finished folds only, where the rule reads them.

    All epochs of the incumbent and of what is not finished, those with patience aside: past its best epoch a fold gets
    worse, and is no worse for it. Of other folds the last. What counts of a finished fold is its last.
    last: trial -> the epoch that is taken for the last of its finished folds, where it is another.
    """
    rows = connection.execute(
        text(
            "SELECT u.trial, u.repeat, u.fold, u.state = 'done' AS done, r.epoch, r.tallies, "
            "CASE WHEN :items AND r.epoch = x.last AND u.state = 'done' THEN r.nats END AS nats, "
            "CASE WHEN :items AND r.epoch = x.last AND u.state = 'done' THEN r.counts END AS counts "
            "FROM unit u JOIN trial t ON t.id = u.trial JOIN result r ON r.unit = u.id "
            "LEFT JOIN unnest(CAST(:cut AS bigint[]), CAST(:at AS integer[])) AS given(trial, epoch) "
            "ON given.trial = u.trial "
            "CROSS JOIN LATERAL (SELECT "
            "coalesce(given.epoch, u.epoch, CAST(t.settings->>'epochs' AS integer)) AS last) x "
            "WHERE u.trial = ANY(:trials) AND u.state IN ('waiting', 'leased', 'done') AND r.epoch <= x.last "
            "AND (u.state = 'done' AND r.epoch = x.last OR :hopeless AND (u.trial = :best OR u.state <> 'done' "
            "AND coalesce(CAST(t.settings->>'patience' AS integer), 0) = 0)) "
            "ORDER BY u.trial, u.repeat, u.fold, r.epoch"
        ),
        {
            "trials": [best, *raced],
            "best": best,
            "items": record.spec.racing.rule == PAIRED,
            "hopeless": rules_of(record).hopeless,
            "cut": list(last),
            "at": list(last.values()),
        },
    )
    told: dict[tuple[int, int, int], list[Any]] = defaultdict(list)
    for row in rows.mappings():
        told[row["trial"], row["repeat"], row["fold"]].append(row)
    found: dict[int, dict[tuple[int, int], Fold]] = defaultdict(dict)
    for (trial, repeat, fold), each in told.items():
        newest = each[-1]
        found[trial][repeat, fold] = Fold(
            done=newest["done"],
            epochs={row["epoch"]: row["tallies"] for row in each},
            rows=record.plan.split(repeat, fold)[1] if newest["nats"] is not None else (),
            nats=_floats(newest["nats"]),
            counts=_floats(newest["counts"]),
        )
    return found


def _floats(packed: bytes | None) -> Sequence[float]:
    """float32, little-endian, see `contract.Predictions`."""
    return array("f", bytes(packed or b""))
