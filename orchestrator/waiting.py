"""Which waiting unit a worker gets next. Under the study's row lock.

Units of trials that had a failure wait until nothing else does, and train alone: `next_unit` without `blameless`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from orchestrator import objective, queries
from orchestrator.records import StudyRecord


@dataclass(frozen=True)
class Opened:
    """The model that a worker has loaded, of a study that has several. Another one costs a load.

    only: a unit of another model could not train soon, since units of this one still do.
    """

    model: str
    only: bool = False


def next_unit(
    connection: Connection, record: StudyRecord, opened: Opened | None = None, *, blameless: bool = True
) -> int | None:
    """Further folds of open trials first, then planned trials, all of the opened model before others; None: none."""
    passes = (False,) if opened is None else (True,) if opened.only else (True, False)  # of the opened model alone?
    # states apart, so that an index has each in its order: a grid may be of thousands
    for alone, state in itertools.product(passes, ("running", "waiting")):
        found = queries.scalar(
            connection,
            "SELECT u.id FROM trial t JOIN unit u ON u.trial = t.id "
            "WHERE t.study = :study AND t.state = CAST(:state AS trial_state) AND u.state = 'waiting' "
            "AND (NOT :alone OR coalesce(t.params->>'model', :first_model) = :model) "
            "AND NOT (:blameless AND EXISTS (SELECT 1 FROM unit o WHERE o.trial = t.id AND o.charges > 0)) "
            # a unit with a charge is judged before others of its trial are: three crashes end it, and the trial with it
            "ORDER BY t.id, u.charges DESC, u.repeat, u.fold LIMIT 1",
            study=record.id,
            state=state,
            blameless=blameless,
            **{**_models(record, opened), "alone": alone},
        )
        if found is not None:
            return int(found)
    return None


def _models(record: StudyRecord, opened: Opened | None) -> dict[str, Any]:
    """Parameters of the queries. The default configuration's model, and the baselines', is the first."""
    return {
        "chosen": opened is not None,
        "alone": opened is not None and opened.only,
        "model": "" if opened is None else opened.model,
        "first_model": record.model.path,
    }


def first_rung_unit(connection: Connection, record: StudyRecord, opened: Opened | None = None) -> int | None:
    """Under racing: what comes before any further fold of a raced trial; None: nothing of it waits.

    Trials that are never raced come first, with all their folds, and while nothing is complete the oldest open trial:
    without an incumbent nobody is judged. Then the first folds of open trials, then those of planned ones. In all of
    this the opened model goes before others.
    """
    pace = queries.scalar(
        connection,
        "SELECT min(t.id) FROM trial t WHERE t.study = :study AND t.state = 'running' AND t.run IS NULL "
        "AND t.origin <> 'baseline' "
        "AND NOT EXISTS (SELECT 1 FROM unit o WHERE o.trial = t.id AND o.charges > 0) "
        "AND NOT EXISTS (SELECT 1 FROM trial WHERE study = :study AND state = 'complete' AND origin <> 'baseline')",
        study=record.id,
    )
    query = "SELECT coalesce(run, id) FROM trial WHERE study = :study AND is_default"
    default = queries.scalar(connection, query, study=record.id)
    found = queries.scalar(
        connection,
        "SELECT u.id FROM unit u JOIN trial t ON t.id = u.trial "
        "WHERE u.study = :study AND u.state = 'waiting' AND t.state IN ('running', 'waiting') "
        "AND NOT EXISTS (SELECT 1 FROM unit o WHERE o.trial = t.id AND o.charges > 0) "
        "AND (t.id = :default OR NOT t.searched OR t.id = :pace OR u.repeat * :folds + u.fold < :first) "
        "AND (NOT :alone OR coalesce(t.params->>'model', :first_model) = :model) "
        "ORDER BY :chosen AND coalesce(t.params->>'model', :first_model) <> :model, "
        "t.searched AND t.id <> :default, t.id <> :pace, t.state <> 'running', t.id, u.repeat, u.fold LIMIT 1",
        study=record.id,
        pace=-1 if pace is None else pace,
        default=-1 if default is None else default,
        folds=record.plan.folds,
        first=record.spec.racing.first_folds,
        **_models(record, opened),
    )
    return None if found is None else int(found)


def further_unit(connection: Connection, record: StudyRecord, opened: Opened | None = None) -> int | None:
    """Under racing: a further fold of an open trial, of the best one by its finished folds; None: none waits.

    The best first, because the sooner a good trial is complete, the more folds of others it saves. Trials without a
    finished fold come last: better than a device without work, although their first fold may stop them. The best one of
    the opened model, while there is any.
    """
    rows = connection.execute(
        text(
            "SELECT DISTINCT ON (t.id) t.id, u.id, "
            ":chosen AND coalesce(t.params->>'model', :first_model) <> :model AS other "
            "FROM unit u JOIN trial t ON t.id = u.trial "
            "WHERE u.study = :study AND u.state = 'waiting' AND t.state = 'running' "
            "AND NOT EXISTS (SELECT 1 FROM unit o WHERE o.trial = t.id AND o.charges > 0) "
            "ORDER BY t.id, u.repeat, u.fold"
        ),
        {"study": record.id, **_models(record, opened)},
    ).all()
    mine = [row for row in rows if not row.other]
    units = {int(trial): int(unit) for trial, unit, _ in (mine if mine or (opened and opened.only) else rows)}
    if len(units) < 2:
        return next(iter(units.values()), None)
    sign = -1.0 if record.spec.maximize else 1.0
    standing = {}
    results = queries.fold_results(connection, record.id, list(units))
    for trial, folds in itertools.groupby(results, key=lambda result: result.trial):
        value = objective.value(record.spec.objective, (fold.tallies for fold in folds))
        if value is not None:
            standing[trial] = sign * value
    best = min(units, key=lambda trial: (trial not in standing, standing.get(trial, 0.0), trial))
    return units[best]
