"""`foldtune compare`: two trials of a study on the same rows, from its database alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from sqlalchemy import Engine

from orchestrator import out_of_fold, queries, selection, snapshots, statistics, words
from orchestrator.database.engine import transaction
from orchestrator.errors import USAGE, FoldtuneError
from orchestrator.hyperparameters import did_you_mean
from orchestrator.out_of_fold import Validated
from orchestrator.records import StudyRecord, TrialRecord
from orchestrator.statistics import Estimate

BEST = "best"


def find(engine: Engine, name: str, one: str | None, other: str | None) -> dict[str, Any] | None:
    """`compare --json`; None while no trial is complete.

    one, other: "best", "default", a trial's number or a baseline's name; None: the best against the default
    configuration, or against the second best where that is the best.

    Raises:
        FoldtuneError: no such study or trial (exit code 2); trials without a fold in common (75); the rows are nowhere.
    """
    with transaction(engine) as connection:
        record = queries.study(connection, name)
        every = queries.trials(connection, record.id)
        ranked = queries.best_trials(connection, record.id, 2, maximize=record.spec.maximize)
        if not ranked:
            return None
        pair = _pair(every, ranked, one, other)
        candidates = _candidates(every) if ranked[0].id in [trial.id for trial in pair] else []
        asked = {trial.duplicate_of or trial.id for trial in pair} | {trial.id for trial in candidates}
        seen = out_of_fold.read(connection, record, sorted(asked))
    folds = [_folds(seen, trial.duplicate_of or trial.id) for trial in pair]
    common = sorted(folds[0].keys() & folds[1].keys())
    if not common:
        both = " and ".join(_label(trial) for trial in pair)
        raise FoldtuneError(f"{both} have no finished fold in common yet", code=75)
    rows = [json.loads(line) for line in snapshots.content(engine, record, record.snapshot).split(b"\n") if line]
    clusters = statistics.clusters(rows)
    found = _compared(record, pair, [[own[at] for at in common] for own in folds], clusters)
    said = verdict(_label(pair[0]), _label(pair[1]), found["difference"])
    return {**found, "best": _best(record, candidates, seen, clusters), "verdict": said}


def _pair(
    every: Sequence[TrialRecord], ranked: Sequence[TrialRecord], one: str | None, other: str | None
) -> tuple[TrialRecord, TrialRecord]:
    known = {trial.name: trial for trial in every} | {BEST: ranked[0]}
    mine = _named(known, one or BEST)
    if other is not None or "default" not in known or mine.is_default:
        theirs = _named(known, other) if other else next((each for each in ranked if each.id != mine.id), mine)
    else:
        theirs = known["default"]
    if mine.id == theirs.id:
        raise FoldtuneError(f"{_label(mine)} cannot be compared with itself: name two trials", code=USAGE)
    return mine, theirs


def _named(known: Mapping[str, TrialRecord], name: str) -> TrialRecord:
    if name in known:
        return known[name]
    help = did_you_mean(name, known).replace("known keys", "trials")
    raise FoldtuneError(f"the study has no trial {name!r}", help=help, code=USAGE)


def _label(trial: TrialRecord) -> str:
    if trial.is_baseline:
        return f"baseline {trial.name}"
    return "the default configuration" if trial.is_default else f"trial {trial.name}"


def _folds(seen: Sequence[Validated], trial: int) -> dict[tuple[int, int], Validated]:
    return {(each.repeat, each.fold): each for each in seen if each.trial == trial}


def _candidates(every: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Among which the best was looked for."""
    judged = [trial for trial in every if trial.state in ("complete", "stopped") and not trial.is_baseline]
    return [trial for trial in judged if trial.duplicate_of is None]


def _best(
    record: StudyRecord, candidates: Sequence[TrialRecord], seen: Sequence[Validated], clusters: np.ndarray
) -> dict[str, Any] | None:
    """The best one's loss as other rows would show it; null where it was not chosen by that, or is none of the two."""
    if len(candidates) < 2:
        return None
    told = {"of": len(candidates), "loss": None, "contenders": None}
    if record.spec.objective != "validation_loss" or record.spec.share_epochs:
        return told
    sums = np.stack([out_of_fold.by_row(_folds(seen, trial.id).values(), len(clusters)) for trial in candidates])
    judged = (sums[:, :, 1] > 0).any(0)
    found = selection.winner(
        sums[:, judged], clusters[judged], np.array([trial.state == "complete" for trial in candidates])
    )
    return {**told, "loss": _plain(found.loss), "contenders": found.contenders}


def _compared(
    record: StudyRecord,
    pair: Sequence[TrialRecord],
    folds: Sequence[Sequence[Validated]],
    clusters: np.ndarray,
) -> dict[str, Any]:
    """folds: of each of the two the same ones, in one order."""
    rows = len(clusters)
    sums = np.stack([out_of_fold.by_row(own, rows) for own in folds])
    judged = (sums[:, :, 1] > 0).any(0)
    mine, theirs = sums[:, judged]
    apart = clusters[judged]
    found = statistics.difference(mine, theirs, apart)
    losses = [statistics.mean(side[:, 0], side[:, 1], apart) for side in (mine, theirs)]
    by_fold = [_loss(a) - _loss(b) for a, b in zip(folds[0], folds[1], strict=True)]
    validated = float(np.mean([len(one.rows) / (rows - len(one.rows)) for one in folds[0]]))
    test = statistics.corrected_t(np.array(by_fold), validated)
    return {
        "study": record.name,
        "rows": int(judged.sum()),
        "clusters": len(np.unique(apart)),
        "trials": [
            {"name": trial.name, "state": trial.state, "params": dict(trial.shown), "loss": _plain(estimate)}
            for trial, estimate in zip(pair, losses, strict=True)
        ],
        "difference": _plain(found),
        "folds": [
            {"repeat": one.repeat, "fold": one.fold, "difference": value}
            for one, value in zip(folds[0], by_fold, strict=True)
        ],
        "corrected_t": test and asdict(test),
    }


def _loss(fold: Validated) -> float:
    return float(fold.nats.sum() / fold.counts.sum())


def _plain(estimate: Estimate) -> dict[str, float | None]:
    """For JSON, which knows no NaN."""
    return {name: None if math.isnan(value) else value for name, value in asdict(estimate).items()}


def verdict(one: str, other: str, found: Mapping[str, Any]) -> str:
    """What a difference in loss and its interval say, in words."""
    low, high = found["low"], found["high"]
    if low is None:
        return f"Too few rows to compare {one} with {other}."
    if low <= 0 <= high:
        return f"These rows cannot tell {one} from {other}."
    size = f"{words.number(abs(found['value']))} nats per item"
    return f"On these rows {one} is {'better' if high < 0 else 'worse'} than {other}, by {size}."
