"""A schema of another version: upgraded with its data, refused if newer, and healed after a death at any place."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine
from sqlalchemy.engine import make_url

from orchestrator import crash_points, trials
from orchestrator.database import migrate
from orchestrator.database.engine import connect
from orchestrator.errors import USAGE, FoldtuneError
from tests import postgres as servers
from tests.acceptance.commands import foldtune
from tests.database import studies
from tests.database.studies import rows

# What versions 0007 to 0002 added. Without it a database is what a program of version 0001 left behind.
UNDO = """
DROP INDEX foldtune.trial_states, foldtune.trial_best, foldtune.trial_unshown, foldtune.trial_untold,
  foldtune.trial_duplicate, foldtune.trial_default, foldtune.trial_baseline, foldtune.unit_charged;
DROP FUNCTION foldtune.state_at_rest;
DROP TABLE foldtune.attempt, foldtune.artifact, foldtune.leftover, foldtune.identity;
ALTER TABLE foldtune.unit DROP COLUMN token, DROP COLUMN epoch;
ALTER TABLE foldtune.trial DROP COLUMN run, DROP COLUMN epoch, DROP CONSTRAINT trial_origin_check,
  ADD CONSTRAINT trial_origin_check CHECK (origin IN ('default', 'grid', 'random', 'model'));
ALTER TABLE foldtune.study DROP COLUMN artifacts, DROP COLUMN writers, DROP COLUMN pool;
UPDATE foldtune.alembic_version SET version_num = '0001';
"""
COLUMNS = (
    "SELECT table_name, column_name, data_type, column_default FROM information_schema.columns "
    "WHERE table_schema = 'foldtune' ORDER BY 1, 2"
)


@pytest.fixture
def empty(postgres: str) -> Iterator[str]:
    """The URL of a database without any table."""
    with servers.fresh_database(postgres) as url:
        yield url
        connect(make_url(url)).dispose()


def version(engine: Engine) -> list[tuple[object, ...]]:
    return rows(engine, "SELECT version_num FROM foldtune.alembic_version")


def first_schema(engine: Engine) -> None:
    """Take a database back to version 0001, data and all."""
    with engine.begin() as connection:
        connection.exec_driver_sql(UNDO)


def again(url: str) -> Engine:
    """The program's engine as a new process has it."""
    connect(make_url(url)).dispose()
    connect.cache_clear()
    return connect(make_url(url))


def test_the_program_wants_the_newest_version_there_is() -> None:
    versions = Path(migrate.__file__).parent / "migrations" / "versions"
    assert max(path.name[:4] for path in versions.glob("*.sql")) == migrate.HEAD


def test_a_newer_schema_is_refused_before_anything_is_written(engine: Engine, storage: str) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE foldtune.alembic_version SET version_num = '9999'")
    before = rows(engine, "SELECT count(*) FROM worker")
    for command in (("list",), ("worker", "s"), ("launch", "studies/glosses.yaml")):
        done = foldtune(*command, OPTUNA_STORAGE=storage)
        assert done.returncode == USAGE, done.stderr  # at once: no worker tries it again
        assert "database schema 9999 is newer than this program's" in done.stderr
        assert "upgrade foldtune on this machine" in done.stderr
        assert "Traceback" not in done.stderr
    assert version(engine) == [("9999",)]
    assert rows(engine, "SELECT count(*) FROM worker") == before
    assert rows(engine, "SELECT count(*) FROM study") == [(0,)]


def test_undoing_the_later_versions_gives_the_first(
    engine: Engine, empty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the tests here call a database of the first version is one."""
    monkeypatch.setattr(migrate, "HEAD", "0001")
    first = connect(make_url(empty))
    first_schema(engine)
    assert rows(engine, COLUMNS) == rows(first, COLUMNS)


def test_an_older_schema_is_upgraded_and_its_study_goes_on_to_the_same_table(
    engine: Engine, storage: str, tmp_path: Path
) -> None:
    table = "SELECT configuration, value FROM trial t JOIN study s ON s.id = t.study WHERE s.name = '{}' ORDER BY 1"
    for name in ("old", "unbroken"):
        studies.launched(engine, tmp_path, name=name)
    who = studies.worker(engine)
    studies.train_all(engine, who, "unbroken")
    for _ in range(3):
        record, lease = trials.take(engine, who, ["old"]) or pytest.fail("nothing to train")
        studies.train(engine, record, lease)
    trials.take(engine, who, ["old"])  # its worker does not live to see the new version
    results = rows(engine, "SELECT unit, epoch, nats, reported_at FROM result ORDER BY 1, 2")
    first_schema(engine)
    upgraded = again(storage)
    assert version(upgraded) == [(migrate.HEAD,)]
    assert rows(upgraded, "SELECT unit, epoch, nats, reported_at FROM result ORDER BY 1, 2") == results
    studies.expire_all(upgraded)
    studies.train_all(upgraded, who, "old")
    found = rows(upgraded, table.format("old"))
    assert found == rows(upgraded, table.format("unbroken"))
    assert len(found) == 5


def dies(url: str, at: str | None, log: Path | None = None) -> bool:
    """Upgrade in a process that dies at this place; whether it did."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            connect.cache_clear()  # not its connections: they are the parent's
            crash_points.arm(at, log)
            connect(make_url(url))
            status = 0
        except FoldtuneError:
            status = 2
        finally:
            os._exit(status)
    _, ended = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(ended) and os.WTERMSIG(ended) == signal.SIGKILL
    assert killed or ended == 0, f"status {ended}"
    return killed


@pytest.mark.parametrize("start", ["nothing", "0001"])
def test_an_upgrade_killed_at_any_statement_or_commit_has_done_nothing_and_succeeds_when_run_again(
    empty: str, tmp_path: Path, start: str
) -> None:
    engine = connect(make_url(empty))
    final = rows(engine, COLUMNS)

    def reset() -> None:
        with engine.begin() as connection:
            connection.exec_driver_sql("DROP SCHEMA foldtune CASCADE" if start == "nothing" else UNDO)

    reset()
    before = rows(engine, COLUMNS)
    assert not dies(empty, None, tmp_path / "places")
    places = (tmp_path / "places").read_text(encoding="utf-8").splitlines()
    assert len(places) > 10
    assert any(place.startswith("before commit") for place in places)
    reset()
    for place in places:
        assert dies(empty, place), place
        assert rows(engine, COLUMNS) == before, place
    assert not dies(empty, None)
    assert rows(engine, COLUMNS) == final
    assert version(engine) == [(migrate.HEAD,)]
