"""A study's past, written by SQL: what thousands of trials would have left in foldtune's tables and in Optuna's.

Configurations, settings and digests come from the product's own functions. Units, results and attempts are made by the
server. `tests/database/test_overhead_history.py` compares such rows with those of trials that the use cases ran.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from psycopg2.extras import execute_values
from sqlalchemy import Engine, text

from benchmarks.overhead.study import EPOCHS
from orchestrator import queries, space
from orchestrator.records import StudyRecord

OPEN_SHARE = 10  # under racing one trial in so many is open, its first fold finished
COMPLETE_SHARE = 5  # and one in so many complete; the others were stopped after their first fold

TRIAL = (
    "INSERT INTO trial (study, number, searched, origin, params, settings, configuration, state, value, reason, told, "
    "opened_at, closed_at) VALUES %s"
)
ROW = "(%s, %s, true, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
UNITS = """
INSERT INTO unit (study, trial, repeat, fold, state, attempts, lease_epoch, token, seconds, started_at, ended_at,
  reason)
SELECT t.study, t.id, 0, f.fold,
  CAST(CASE WHEN NOT has THEN CASE WHEN t.state = 'stopped' THEN 'cancelled' ELSE 'waiting' END ELSE 'done' END
    AS unit_state),
  CAST(has AS integer), CAST(has AS integer), CASE WHEN has THEN gen_random_uuid() END,
  CASE WHEN has THEN 12 ELSE 0 END,
  CASE WHEN has THEN now() END, CASE WHEN has OR t.state = 'stopped' THEN now() END,
  CASE WHEN NOT has AND t.state = 'stopped' THEN 'its trial was stopped by racing' ELSE '' END
FROM trial t CROSS JOIN generate_series(0, :folds - 1) f(fold)
CROSS JOIN LATERAL (SELECT t.state = 'complete' OR (t.state <> 'waiting' AND f.fold = 0) AS has) x
WHERE t.study = :study AND t.id > :after ORDER BY t.id, f.fold
"""
RESULTS = """
INSERT INTO result (unit, epoch, lease_epoch, train_loss, seconds, tallies, nats, counts, logits)
SELECT u.id, e.epoch, u.lease_epoch, 0.5, 6.0,
  json_build_object('nats', q.loss * 48, 'items', 48, 'correct', 40, 'tp', json_build_array(20, 20),
    'fp', json_build_array(4, 4), 'fn', json_build_array(4, 4), 'bins', CAST(:bins AS json)),
  decode(repeat('cdcccc3e', 48), 'hex'), decode(repeat('0000803f', 48), 'hex'), decode(repeat('003c00bc', 48), 'hex')
FROM unit u JOIN trial t ON t.id = u.trial CROSS JOIN generate_series(1, :epochs) e(epoch)
CROSS JOIN LATERAL (
  -- open ones are those that racing lets live: better than the best complete trial
  SELECT CASE t.state WHEN 'running' THEN 0.3 ELSE coalesce(t.value, 0.9) END
    * (1 + 0.02 * (u.fold - 2)) * (1 + 0.3 * (:epochs - e.epoch)) AS loss) q
WHERE u.study = :study AND u.trial > :after AND u.state = 'done' ORDER BY u.id, e.epoch
"""
ATTEMPTS = """
INSERT INTO attempt (unit, lease_epoch, number, worker, ended_at, cause, counted)
SELECT u.id, u.lease_epoch, 1, NULL, now(), 'done', :epochs FROM unit u
WHERE u.study = :study AND u.trial > :after AND u.state = 'done' ORDER BY u.id
"""
SHOWN = """
INSERT INTO public.trials (number, study_id, state, datetime_start, datetime_complete)
SELECT t.number, s.study_id, CAST(CASE t.state WHEN 'complete' THEN 'COMPLETE' WHEN 'stopped' THEN 'PRUNED'
  ELSE 'RUNNING' END AS public.trialstate), now(), t.closed_at
FROM trial t JOIN public.studies s ON s.study_name = :name
WHERE t.study = :study AND t.id > :after AND t.number IS NOT NULL ORDER BY t.number
"""
VALUES = """
INSERT INTO public.trial_values (trial_id, objective, value, value_type)
SELECT o.trial_id, 0, coalesce(t.value, 0.9), 'FINITE' {of} AND t.state IN ('complete', 'stopped')
"""
REPORTS = """
INSERT INTO public.trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type)
SELECT o.trial_id, f.step, coalesce(t.value, 0.9), 'FINITE' {of}
AND t.state IN ('complete', 'stopped') AND (f.step = 1 OR t.state = 'complete')
"""
ATTRIBUTES = """
INSERT INTO public.trial_user_attributes (trial_id, key, value_json)
SELECT o.trial_id, a.key, a.value {of} AND (t.state <> 'running' OR a.key IN ('foldtune', 'origin'))
"""
NOTES = """
INSERT INTO public.study_system_attributes (study_id, key, value_json)
SELECT o.study_id, 'dashboard:' || o.trial_id || '\\:note_ver', '1' {of} AND t.state <> 'running'
UNION ALL SELECT o.study_id, 'dashboard:' || o.trial_id || '\\:note_str\\:0',
  CAST(to_json(repeat('A fold, its loss. ', 30)) AS text)
{of} AND t.state <> 'running'
"""
OF = (
    "FROM public.trials o JOIN public.studies s USING (study_id) JOIN trial t ON t.number = o.number {more} "
    "WHERE s.study_name = :name AND t.study = :study AND t.id > :after"
)
KEYS = """
CROSS JOIN LATERAL (VALUES ('foldtune', CAST(to_json(t.id || '.' || t.generation) AS text)),
  ('origin', CAST(to_json(t.origin) AS text)), ('validation_loss', CAST(coalesce(t.value, 0.9) AS text)),
  ('accuracy', '0.833333'), ('f1', '0.833333'), ('calibration_error', '0.05'),
  ('fold losses', '{"repeat 0 fold 0": 0.5, "repeat 0 fold 1": 0.5, "repeat 0 fold 2": 0.5}')) a(key, value)
"""


def fill(engine: Engine, record: StudyRecord, trials: int, *, planned: int = 0, seed: int = 1) -> None:
    """Give the study so many trials of the past, and so many that nobody has opened. Once for each study."""
    parameters: dict[str, Any] = {"study": record.id, "name": record.name, "epochs": EPOCHS}
    parameters |= {"folds": record.plan.folds, "bins": json.dumps([[0, 0.0, 0]] * 14 + [[48, 43.2, 40]])}
    with engine.begin() as connection:
        after = queries.scalar(connection, "SELECT max(id) FROM trial WHERE study = :study", study=record.id)
        first = queries.scalar(
            connection, "SELECT coalesce(max(number) + 1, 0) FROM trial WHERE study = :study", study=record.id
        )
        parameters["after"] = after
        rows = list(_rows(record, trials, planned, first, random.Random(seed)))
        _insert(connection, TRIAL, [row for row, _ in rows], ROW)
        for statement in ("ANALYZE trial", UNITS, "ANALYZE unit", RESULTS, ATTEMPTS, SHOWN, "ANALYZE public.trials"):
            connection.execute(text(statement), parameters)
        shown = connection.execute(
            text(
                "SELECT o.number, o.trial_id FROM public.trials o JOIN public.studies s USING (study_id) "
                "WHERE s.study_name = :name"
            ),
            parameters,
        )
        placed = {number: trial for number, trial in shown}  # noqa: C416 - a Result is no sequence of pairs
        params = [
            (placed[row[1]], name, internal, kind)
            for row, values in rows
            if row[1] is not None
            for name, internal, kind in values
        ]
        _insert(
            connection,
            "INSERT INTO public.trial_params (trial_id, param_name, param_value, distribution_json) VALUES %s",
            params,
        )
        steps = f"CROSS JOIN generate_series(1, {record.plan.folds}) f(step)"
        for statement, more in ((VALUES, ""), (REPORTS, steps), (ATTRIBUTES, KEYS), (NOTES, "")):
            connection.execute(text(statement.replace("{of}", OF.replace("{more}", more))), parameters)
        connection.execute(
            text("UPDATE study SET suggestions = :suggestions WHERE id = :study"),
            {"study": record.id, "suggestions": trials + planned},
        )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE")  # as autovacuum would have done by then


def _rows(
    record: StudyRecord, trials: int, planned: int, first: int, draw: random.Random
) -> Iterator[tuple[tuple[Any, ...], list[tuple[str, float, str]]]]:
    """(row of `trial`, its parameters as Optuna keeps them)."""
    from optuna.distributions import distribution_to_json

    searched = record.spec.space
    distributions = space.distributions(searched)
    written = {name: distribution_to_json(each) for name, each in distributions.items()}
    grid = record.spec.search.sampler == "grid"
    for index in range(trials + planned):
        params = (
            {name: draw.choice(entry.points()) for name, entry in searched.items()}
            if grid
            else {
                "learning_rate": 10 ** draw.uniform(-5, -1),
                "batch_size": draw.choice([8, 16, 32]),
                "lora_rank": draw.choice([4, 8, 16]),
                "lora_dropout": draw.uniform(0.0, 0.5),
            }
        )
        settings = record.settings(params)
        state = "waiting" if index >= trials else state_of(index, racing=record.spec.racing.on)
        value = 0.4 + 0.5 * draw.random() if state == "complete" else None
        number = None if state == "waiting" else first + index
        closed = "now" if state in ("complete", "stopped") else None
        row = (
            record.id,
            number,
            "grid" if grid else "random" if record.spec.search.sampler == "random" else "model",
            json.dumps(params),
            json.dumps(asdict(settings)),
            f"{index} {space.configuration_digest(settings)}",  # a grid of 36 points plays one of thousands
            state,
            value,
            "0.9000 nats after 1 fold, worse than 0.4160, the worst fold of trial 3" if state == "stopped" else "",
            state in ("complete", "stopped"),
            None if state == "waiting" else "now",
            closed,
        )
        yield (
            row,
            []
            if grid
            else [(name, distributions[name].to_internal_repr(params[name]), written[name]) for name in params],
        )


def state_of(index: int, *, racing: bool) -> str:
    """The state of the index-th trial of the past."""
    if not racing or index % COMPLETE_SHARE == 0:
        return "complete"
    return "running" if index % OPEN_SHARE == 1 else "stopped"


def _insert(connection: Any, statement: str, rows: list[Any], template: str | None = None) -> None:
    with connection.connection.cursor() as cursor:
        execute_values(cursor, statement, rows, template=template, page_size=1000)
