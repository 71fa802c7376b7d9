"""What the sampler may know of a study's trials: read once by each process, since the past does not change."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, text

from orchestrator import lifecycle, objective, queries
from orchestrator.records import FoldResult, StudyRecord
from orchestrator.study import Past

REPORTED = ("stopped", "infeasible")  # of a complete trial the samplers read the value alone
STUDIES = 4  # kept at once; a worker of more reads them anew

_Known = dict[int, tuple[Any, Past]]  # trial -> (what tells this end of it from any other, what was read)
_known: OrderedDict[tuple[str, int], _Known] = OrderedDict()  # (database, study) ->
_lock = threading.Lock()


def past_of(connection: Connection, record: StudyRecord) -> list[Past]:
    """What the sampler may know: every opened trial whose values lie in the space."""
    rows = connection.execute(
        text(
            "SELECT id, generation, CAST(state AS text), opened_at, closed_at FROM trial "
            "WHERE study = :study AND in_space AND state <> 'waiting' ORDER BY id"
        ),
        {"study": record.id},
    ).all()
    place = (queries.identity(connection), record.id)
    with _lock:
        before = _known.get(place, {})
    # Its times too: after a failover that lost the last commits another trial may have the same id.
    signs = {row.id: tuple(row) for row in rows}
    news = [trial for trial, sign in signs.items() if trial not in before or before[trial][0] != sign]
    read = _read(connection, record, news)
    known: _Known = {trial: (sign, read[trial]) if trial in read else before[trial] for trial, sign in signs.items()}
    with _lock:
        _known[place] = known
        _known.move_to_end(place)
        while len(_known) > STUDIES:
            _known.popitem(last=False)
    return [past for _, past in known.values()]


def _read(connection: Connection, record: StudyRecord, trials: Sequence[int]) -> dict[int, Past]:
    """The Past of each of these trials."""
    if not trials:
        return {}
    rows = connection.execute(
        text(
            "SELECT id, params, CAST(state AS text) AS state, value, coalesce(duplicate_of, id) AS trained "
            "FROM trial WHERE id = ANY(:trials) ORDER BY id"
        ),
        {"trials": list(trials)},
    ).all()
    closed = sorted({row.trained for row in rows if row.state in REPORTED})
    results = by_trial(queries.fold_results(connection, record.id, closed)) if closed else {}
    return {row.id: past(record, row.params, row.state, row.value, results.get(row.trained, [])) for row in rows}


def past(
    record: StudyRecord, params: Mapping[str, Any], state: str, value: float | None, folds: Sequence[FoldResult]
) -> Past:
    """What the sampler, and Optuna, hear of one trial. folds: the finished ones."""
    reports = running_values(record, folds) if state in lifecycle.TERMINAL else []
    return Past(params=params, state=state, value=value, reports=reports)


def running_values(record: StudyRecord, results: Sequence[FoldResult]) -> list[float]:
    """The objective pooled over the first 1, 2, ... finished folds."""
    sums = itertools.accumulate((result.tallies for result in results), lambda a, b: objective.add([a, b]))
    values = [objective.metrics(tallies)[record.spec.objective] for tallies in sums]
    return [float(value) for value in values]


def by_trial(results: Sequence[FoldResult]) -> dict[int, list[FoldResult]]:
    """Results in the order of trials, by trial."""
    return {trial: list(group) for trial, group in itertools.groupby(results, key=lambda result: result.trial)}
