"""What the sampler may know of a study's trials: read once by each process, since the past does not change.

Of a very long study it knows a part, or each suggestion would cost what the study has of trials. All
open trials, the best complete ones, which are all that TPE calls good, and of the others one in two, four, ...:
in their order, since TPE weighs the late ones more.
"""

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
KNOWN = 2000  # trials that the sampler knows one and all
BEST = 25  # Optuna's TPE calls at most so many good

_Known = dict[int, tuple[Any, Past]]  # trial -> (what tells this end of it from any other, what was read)
_known: OrderedDict[tuple[str, int], _Known] = OrderedDict()  # (database, study) ->
_lock = threading.Lock()


def stride(trials: int, complete: int) -> int:
    """One in how many trials the sampler knows, beside open and best ones; trials: how many were opened.

    All of them while fewer are complete than TPE calls good: it then ranks stopped ones too.
    """
    step = 1
    while complete >= BEST and trials > KNOWN * step:
        step *= 2
    return step


def past_of(connection: Connection, record: StudyRecord) -> list[Past]:
    """What the sampler may know, in the order of trials: opened ones whose values lie in the space."""
    counts = queries.counts(connection, record.id)
    opened = sum(count for (state, _), count in counts.items() if state != "waiting")
    complete = sum(count for (state, _), count in counts.items() if state == "complete")
    step = stride(opened, complete)
    best = queries.best_ids(connection, record.id, BEST, maximize=record.spec.maximize) if step > 1 else []
    rows = connection.execute(
        text(
            # times as numbers: to make dates of ten thousand takes longer than the query
            "SELECT id, generation, CAST(state AS text), CAST(extract(epoch FROM opened_at) AS float8), "
            "CAST(extract(epoch FROM closed_at) AS float8) FROM trial "
            "WHERE study = :study AND state <> 'waiting' AND in_space "
            # by a hash of the id: studies that take turns have every second one each
            "AND ((hashint8(id) & 2147483647) % :step = 0 OR state = 'running' OR id = ANY(:best)) ORDER BY id"
        ),
        {"study": record.id, "step": step, "best": best},
    ).all()
    place = (queries.identity(connection), record.id)
    with _lock:
        before = _known.get(place, {})
    # Its times too: after a failover that lost the last commits another trial may have the same id.
    signs = {row[0]: tuple(row) for row in rows}
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
        text("SELECT id, params, CAST(state AS text) AS state, value FROM trial WHERE id = ANY(:trials) ORDER BY id"),
        {"trials": list(trials)},
    ).all()
    closed = [row.id for row in rows if row.state in REPORTED]
    results = by_trial(queries.fold_results(connection, record.id, closed)) if closed else {}
    return {row.id: past(record, row.params, row.state, row.value, results.get(row.id, [])) for row in rows}


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
