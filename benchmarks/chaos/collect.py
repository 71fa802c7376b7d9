"""Read the evidence of a run: from the database, the workers' histories and the files they left."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from sqlalchemy import Connection, Engine, text

from benchmarks.chaos.evidence import (
    Artifact,
    Attempt,
    Evidence,
    Noted,
    Result,
    Shown,
    Trial,
    Unit,
    Witnessed,
    WorkerRow,
    read_history,
)
from orchestrator import durable, study

BOUND = 40.0  # seconds that a lease may be over while workers live
WITNESS = Path(__file__).with_name("witness.sql")

# A trial that runs always has a unit that is leased or waits; nobody's lease may be over for longer than the bound.
# Where the server itself was away, nobody could renew or look: its start counts as the end of every lease.
STUCK = """
SELECT 'unit ' || u.id || ' is leased, its lease ran out at ' || u.expires_at FROM foldtune.unit u
WHERE u.state = 'leased' AND greatest(u.expires_at, pg_postmaster_start_time()) + interval '{bound} s' < now()
UNION ALL
SELECT 'trial ' || t.id || ' runs, and none of its units does or waits' FROM foldtune.trial t
WHERE t.state = 'running' AND t.duplicate_of IS NULL AND NOT EXISTS (
  SELECT 1 FROM foldtune.unit u WHERE u.trial = t.id AND u.state IN ('leased', 'waiting'))
"""


def install_witness(connection: Connection) -> None:
    """Have Postgres itself write down what is accepted, leased and ended, once the study is launched."""
    connection.exec_driver_sql(WITNESS.read_text(encoding="utf-8"))


def collect(
    engine: Engine,
    name: str,
    expected: Mapping[str, float],
    *,
    history: Path | None = None,
    steps: Path | None = None,
    store: Path | None = None,
    stray_seconds: float = 3600.0,
    **findings: Any,
) -> Evidence:
    """The evidence of the study `name`. findings: what was seen while it ran, fields of `Evidence`.

    history: folder of the workers' histories. steps: folder of what the light engine wrote down. store: folder of
    artifacts; files older than `stray_seconds` must have a row.
    """
    with engine.connect() as connection:
        read = _Reader(connection, name)
        artifacts, places = read.artifacts(store)
        return Evidence(
            expected=expected,
            trials=read.trials(),
            shown=read.shown(),
            units=read.units(),
            results=read.results(),
            attempts=read.attempts(),
            workers=read.workers(),
            artifacts=artifacts,
            strays=() if store is None else strays(store, places, stray_seconds),
            witnessed=read.witnessed(),
            history=() if history is None else histories(history),
            seconds_trained=0.0 if steps is None else trained(steps),
            **findings,
        )


class _Reader:
    """One study's rows as frozen values."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection = connection
        self._name = name
        [self._study] = self._rows("SELECT id FROM foldtune.study WHERE name = :name", name=name)[0]

    def _rows(self, query: str, **values: Any) -> Sequence[Any]:
        return self._connection.execute(text(query), values).all()

    def trials(self) -> list[Trial]:
        query = (
            "SELECT id, number, in_space, configuration, CAST(state AS text), value, duplicate_of, generation, told, "
            "params FROM foldtune.trial WHERE study = :study ORDER BY id"
        )
        return [Trial(*row) for row in self._rows(query, study=self._study)]

    def units(self) -> list[Unit]:
        query = "SELECT id, trial, CAST(state AS text), lease_epoch, charges FROM foldtune.unit WHERE study = :study"
        return [Unit(*row) for row in self._rows(f"{query} ORDER BY id", study=self._study)]

    def results(self) -> list[Result]:
        query = (
            "SELECT r.unit, r.epoch, r.lease_epoch, r.seconds, r.reported_at FROM foldtune.result r "
            "JOIN foldtune.unit u ON u.id = r.unit WHERE u.study = :study ORDER BY 1, 2"
        )
        return [Result(*row) for row in self._rows(query, study=self._study)]

    def attempts(self) -> list[Attempt]:
        query = (
            "SELECT a.unit, a.lease_epoch, a.worker, a.granted_at, a.ended_at, a.cause FROM foldtune.attempt a "
            "JOIN foldtune.unit u ON u.id = a.unit WHERE u.study = :study ORDER BY 1, 2"
        )
        return [Attempt(*row) for row in self._rows(query, study=self._study)]

    def workers(self) -> list[WorkerRow]:
        return [WorkerRow(*row) for row in self._rows("SELECT id, pid, started_at FROM foldtune.worker ORDER BY id")]

    def artifacts(self, store: Path | None) -> tuple[list[Artifact], set[Path]]:
        """Their rows with what is really stored, and the files that rows name."""
        query = (
            "SELECT a.id, a.unit, a.kind, a.epoch, a.step, a.sha256, a.doomed, a.content, a.place "
            "FROM foldtune.artifact a JOIN foldtune.unit u ON u.id = a.unit WHERE u.study = :study ORDER BY a.id"
        )
        found, places = [], set()
        for row in self._rows(query, study=self._study):
            content = None if row.content is None else bytes(row.content)
            if row.place is not None:
                path = (store or Path("/")) / row.place  # an absolute place stays what it is
                places.add(path.resolve())
                content = path.read_bytes() if path.is_file() else None
            real = None if content is None else durable.sha256(content)
            found.append(Artifact(*row[:6], found=real, doomed=row.doomed))
        return found, places

    def shown(self) -> list[Shown]:
        """Optuna's trials, by Optuna."""
        shown = optuna.load_study(study_name=self._name, storage=study.storage(self._connection.engine.url))
        return [
            Shown(trial.number, trial.state.name, _value(trial), trial.user_attrs.get(study.KEY), dict(trial.params))
            for trial in shown.get_trials(deepcopy=False)
        ]

    def witnessed(self) -> list[Witnessed] | None:
        if self._rows("SELECT to_regclass('witness.event')")[0][0] is None:
            return None
        query = "SELECT seq, at, what, trial, unit, epoch, lease_epoch, live_epoch, state FROM witness.event ORDER BY 1"
        return [Witnessed(*row) for row in self._rows(query)]


def _value(trial: Any) -> float | None:
    return trial.value if trial.state.name == "COMPLETE" else None


def histories(folder: Path) -> list[Noted]:
    """Every line that a worker wrote, in the order of time."""
    notes = [
        note
        for path in folder.glob("*.jsonl")
        for note in read_history(int(path.stem), path.read_text(encoding="utf-8"))
    ]
    return sorted(notes, key=lambda note: note.time)


def trained(folder: Path) -> float:
    """Device seconds of every step that the light engine wrote down."""
    lines = (line for path in folder.glob("*.jsonl") for line in path.read_text(encoding="utf-8").split("\n")[:-1])
    return sum(float(json.loads(line)["seconds"]) for line in lines)


def strays(store: Path, named: set[Path], seconds: float) -> list[str]:
    """Files of the store older than this that no row names."""
    limit = time.time() - seconds
    files = (path for path in store.rglob("*") if path.is_file() and path.suffix != ".lock" and path.name != "lock")
    return [str(path) for path in files if path.stat().st_mtime < limit and path.resolve() not in named]


def stuck(connection: Connection, bound: float = BOUND) -> list[str]:
    """What breaks I5 now."""
    return [str(line) for line in connection.execute(text(STUCK.format(bound=bound))).scalars()]


def secrets_in_files(folders: Iterable[Path], canary: str) -> list[str]:
    """Files that name the canary, as it is or in base64."""
    forms = disguises(canary)
    return [
        f"{path} holds the password"
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and any(form in path.read_bytes() for form in forms)
    ]


def disguises(canary: str) -> tuple[bytes, ...]:
    """The canary, and base64 of it at each of the three places it may have in a group of bytes."""
    plain = canary.encode()
    shifted = (base64.b64encode(b"x" * shift + plain)[4:-4] for shift in range(3))
    return (plain, *shifted)


def secrets_in_tables(connection: Connection, canary: str) -> list[str]:
    """Columns of text in which the canary stands, in the schemas of foldtune and Optuna."""
    columns = connection.execute(
        text(
            "SELECT table_schema, table_name, column_name FROM information_schema.columns "
            "WHERE table_schema IN ('foldtune', 'public') "
            "AND data_type IN ('text', 'character varying', 'json', 'jsonb', 'USER-DEFINED', 'ARRAY')"
        )
    ).all()
    found = []
    for schema, table, column in columns:
        query = f'SELECT count(*) FROM "{schema}"."{table}" WHERE CAST("{column}" AS text) LIKE :needle'  # noqa: S608
        if connection.execute(text(query), {"needle": f"%{canary}%"}).scalar():
            found.append(f"{schema}.{table}.{column} holds the password")
    return found
