"""One server, a study for each kind and length of history, and at each so many workers."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
from sqlalchemy.engine import URL

from benchmarks import machine
from benchmarks.chaos.postgres import Postgres
from benchmarks.chaos.report import versions
from benchmarks.overhead import closeup, figures, fleet, history, server
from benchmarks.overhead.fleet import Shift
from benchmarks.overhead.study import Kind, begin
from orchestrator import queries
from orchestrator.database.engine import connect, transaction

ROOM = 20_000  # trials that the budget has left


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured."""

    workers: Sequence[int]
    trials: Sequence[int]
    kinds: Sequence[Kind]
    paced_seconds: float
    flat_seconds: float
    flat_trials: int


def talk(words: str) -> None:
    """Progress, for people."""
    print(words, file=sys.stderr, flush=True)


def run(options: Options) -> dict[str, Any]:
    """Everything, as the JSON object."""
    around = machine.describe()
    folder = Path(tempfile.mkdtemp(prefix="foldtune-overhead-", dir="/tmp"))
    folder.chmod(0o755)  # the server's account passes through
    os.environ.setdefault("FOLDTUNE_HOME", str(folder / "home"))
    try:
        postgres = Postgres(folder)
        try:
            points = [
                point
                for kind in options.kinds
                for trials in options.trials
                for point in _with_history(postgres, folder, kind, trials, options)
            ]
        finally:
            postgres.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "benchmark": "overhead",
        "holds": figures.holds(points),
        "points": points,
        "growth": _growth(points),
        "machine": around,
        "versions": versions(),
    }


def _with_history(postgres: Postgres, folder: Path, kind: Kind, trials: int, options: Options) -> list[dict[str, Any]]:
    """The points of one study, in a database of its own."""
    url = _database(postgres.url, f"{kind.name}_{trials}")
    postmaster = server.postmaster_of(postgres.home.data)
    closeup.ready(url)
    talk(f"{kind.name}, {trials} trials: writing the history")
    _prepare(url, folder, kind, trials)
    points = []
    for count in sorted(options.workers):
        if count == min(options.workers):
            lens = closeup.look(url, kind.name, kind.unit_seconds, seconds=options.flat_seconds, trials=5)
        closeup.forget(url)
        shift = Shift(
            url=url,
            postmaster=postmaster,
            name=kind.name,
            workers=count,
            unit_seconds=kind.unit_seconds,
            paced_seconds=options.paced_seconds if count > 1 else 0.0,
            flat_seconds=options.flat_seconds,
            flat_trials=options.flat_trials,
        )
        found = {"kind": kind.name, "trials_before": trials, **fleet.measure(shift)}
        talk(
            f"{kind.name}, {trials} trials, {count} workers: {found['paced']['waiting_per_trial']} s of waiting a "
            f"trial, {found['flat']['trials_per_minute']} trials a minute at most"
        )
        points.append(found)
    points[0]["closeup"] = lens
    return points


def _prepare(url: URL, folder: Path, kind: Kind, trials: int) -> None:
    engine = connect(url)
    begin(engine, folder, kind, trials + ROOM)
    with transaction(engine) as connection:
        record = queries.study(connection, kind.name)
    history.fill(engine, record, trials, planned=ROOM // 4 if kind.sampler == "grid" else 0)


def _database(url: URL, name: str) -> URL:
    connection = psycopg2.connect(url.set(drivername="postgresql").render_as_string(hide_password=False))
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(f'CREATE DATABASE "{name}"')
    finally:
        connection.close()
    return url.set(database=name)


def _growth(points: Sequence[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Of each kind: how the seconds of each function for a trial grow with the trials there are (1: in proportion)."""
    found: dict[str, dict[str, float | None]] = {}
    for kind in dict.fromkeys(point["kind"] for point in points):
        looks = [
            (p["trials_before"], p["closeup"]["functions"]) for p in points if p["kind"] == kind and "closeup" in p
        ]
        if len(looks) > 1:
            (few, small), (many, large) = looks[0], looks[-1]
            found[kind] = {
                name: figures.growth((few, small[name]["s_per_trial"]), (many, large[name]["s_per_trial"]))
                for name in large
                if name in small
            }
    return found
