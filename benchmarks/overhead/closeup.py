"""One worker under the lens: which functions and which statements its seconds go to."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import URL

from benchmarks.overhead import figures, worker
from benchmarks.overhead.meters import Functions, Statements
from orchestrator import study, workers
from orchestrator.database.engine import connect

SHOWN = 6  # statements
PLAN_LINES = 14


def look(url: URL, name: str, unit_seconds: float, *, seconds: float, trials: int) -> dict[str, Any]:
    """Seconds in functions and statements for each trial, and the plans of the dearest statements."""
    engine, statements, functions = connect(url), Statements(deep=True), Functions()
    statements.watch(engine)
    statements.watch(study.storage(url).engine)
    who, _ = workers.register(engine, [worker.CPU])
    log, end = worker.Log(), time.monotonic() + seconds
    least, most = figures.MINUTE / unit_seconds, trials * figures.MINUTE / unit_seconds

    def over() -> bool:
        return log.units >= most or (time.monotonic() >= end and log.units >= least)

    functions.watch()
    try:
        pace = worker.Pace(unit_seconds=unit_seconds, sleep=None)
        worker.work(engine, who, name, pace, over, log)
    finally:
        functions.stop()
    workers.leave(engine, who, "done")
    done = log.trained / figures.MINUTE or 1.0
    dearest = sorted(statements.seconds, key=lambda statement: -statements.seconds[statement])[:SHOWN]
    return {
        "trials": figures.figure(done),
        "functions": {
            name: {
                "calls_per_trial": figures.figure(functions.calls[name] / done),
                "ms_per_call": figures.figure(1000 * functions.seconds[name] / functions.calls[name]),
                "s_per_trial": figures.figure(functions.seconds[name] / done),
            }
            for name in sorted(functions.seconds, key=lambda name: -functions.seconds[name])
        },
        "statements": [
            {
                "statement": " ".join(statement.split())[:160],
                "calls_per_trial": figures.figure(statements.calls[statement] / done),
                "ms_per_call": figures.figure(1000 * statements.seconds[statement] / statements.calls[statement]),
                "plan": _plan(url, statements.slowest[statement][1]),
            }
            for statement in dearest
        ],
    }


def _plan(url: URL, query: bytes) -> list[str]:
    """EXPLAIN ANALYZE of a statement with its values, rolled back; the error's first line where it cannot run again."""
    with connect(url).connect() as connection:
        try:
            cursor = connection.connection.cursor()
            cursor.execute(b"EXPLAIN (ANALYZE, BUFFERS OFF) " + query)
            return [line[:200] for (line,) in cursor.fetchall()][:PLAN_LINES]
        except Exception as error:  # a lock, or a row that is there by now: the timings do not depend on it
            return [str(error).splitlines()[0]]
        finally:
            connection.connection.rollback()


def forget(url: URL) -> None:
    """Close every connection of this process, so that it may fork."""
    engine, storage = connect(url), study.storage(url)
    storage.remove_session()
    storage.engine.dispose()
    engine.dispose()
    study._storage.cache_clear()
    connect.cache_clear()


def ready(url: URL) -> None:
    """Create all tables, Optuna's too."""
    with connect(url).connect() as connection:
        connection.execute(text("SELECT 1"))
    study.exists(url, "nothing")
