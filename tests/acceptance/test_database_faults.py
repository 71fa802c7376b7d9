"""What the database does to workers: crashes, frozen backends, a failover, no room. The light engine."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest
from sqlalchemy import Engine, NullPool, create_engine, text
from sqlalchemy.engine import make_url

from benchmarks.chaos.postgres import Postgres
from benchmarks.chaos.proxy import Proxy
from orchestrator import trials
from orchestrator.contract import Outcome
from orchestrator.database import cluster
from orchestrator.database.engine import connect, transaction
from orchestrator.errors import UNAVAILABLE
from orchestrator.leases import Fenced
from tests import postgres as servers
from tests.acceptance import light
from tests.acceptance.commands import children, foldtune, start, wait_until
from tests.acceptance.light import ROOT_ONLY, charged, count, launched, table, through, worker
from tests.conftest import _forget, _prepare
from tests.database import studies
from tests.database.studies import rows

as_root = pytest.mark.skipif(os.geteuid() != 0, reason=ROOT_ONLY)
OURS = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


def test_connections_that_are_terminated_again_and_again_cost_nothing(
    engine: Engine, storage: str, tmp_path: Path
) -> None:
    expected = launched(engine, tmp_path, epochs=5)
    broken = 0
    with worker(storage) as running:
        wait_until(lambda: count(engine, "result") > 0)
        while running.process.poll() is None:
            broken += len(rows(engine, f"SELECT pg_terminate_backend(pid) {OURS}"))
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.process.wait(1)
        assert running.end() == 0
    assert broken > 5
    assert charged(engine) == 0
    assert rows(engine, "SELECT count(*), count(DISTINCT (unit, epoch)) FROM result") == [(50, 50)]
    assert table(engine) == expected


def test_a_frozen_backend_is_given_up_within_ten_seconds_and_another_serves(
    engine: Engine, storage: str, tmp_path: Path
) -> None:
    expected = launched(engine, tmp_path)
    idle = f"SELECT pid {OURS} AND state = 'idle'"
    with worker(storage, FOLDTUNE_LIGHT_EPOCH_SECONDS="0.3") as running:
        wait_until(lambda: count(engine, "result") > 2)
        frozen: list[int] = []
        while not frozen:  # at rest: one that holds locks would hold up its successor too
            found = [pid for (pid,) in rows(engine, idle)]
            for pid in found:
                os.kill(pid, signal.SIGSTOP)
            if rows(engine, f"SELECT count(*) {OURS} AND state <> 'idle'") == [(0,)]:
                frozen = found
            else:
                for pid in found:
                    os.kill(pid, signal.SIGCONT)
        try:
            seen, began = count(engine, "result"), time.monotonic()
            wait_until(lambda: count(engine, "result") > seen, seconds=20)
            assert time.monotonic() - began < 10 + 5
        finally:
            for pid in frozen:
                os.kill(pid, signal.SIGCONT)
        assert running.end() == 0
    assert rows(engine, "SELECT max(attempts) FROM unit") == [(1,)]
    assert table(engine) == expected


def test_postgres_may_crash_again_and_again_under_a_study(private: Postgres, away: str, tmp_path: Path) -> None:
    engine = connect(make_url(away))
    expected = launched(engine, tmp_path, epochs=8)
    with worker(away) as running:
        for seconds_down in (0, 0, 3, 0, 1):
            seen = count(engine, "result")
            wait_until(lambda seen=seen: count(engine, "result") > seen + 3)
            private.crash()
            time.sleep(seconds_down)
            private.start()
        assert running.end() == 0
    assert "training goes on, results wait on this machine" in running.talk
    assert "the database answers again after" in running.talk
    assert "was lost" not in running.talk
    assert charged(engine) == 0
    assert table(engine) == expected


def test_after_everything_died_at_once_one_command_finishes_the_study(
    private: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedded server, the command, its worker and the trainer; the same command starts all of it again."""
    path = light.write(tmp_path, name="reboot", epochs=6)
    expected = light.undisturbed(path)
    monkeypatch.setenv("FOLDTUNE_HOME", str(private.home.client))
    for name, value in light.LIGHT.items():
        monkeypatch.setenv(name, value)
    connect(private.url)  # for the tables to ask
    _forget(private.url.render_as_string(hide_password=False))
    run = start("run", str(path), "--workers", "1")
    wait_until(lambda: (private.ask("SELECT count(*) FROM result") or [(0,)])[0][0] > 8)
    [supervisor] = children(run.pid)
    for pid in (run.pid, supervisor, *children(supervisor)):
        os.kill(pid, signal.SIGKILL)
    private.need("UPDATE unit SET expires_at = now() WHERE state = 'leased'")  # as after 30 s
    private.crash()
    run.communicate()
    began = time.monotonic()
    done = foldtune("run", str(path), "--workers", "1", "--json")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 60
    assert dict(private.need("SELECT configuration, value FROM trial")) == expected


def test_no_free_connection_is_one_line_and_ends_when_one_is_free(private: Postgres, away: str, tmp_path: Path) -> None:
    engine = connect(make_url(away))
    expected = launched(engine, tmp_path, epochs=2)
    taken: list[psycopg2.extensions.connection] = []
    with worker(away, FOLDTUNE_LIGHT_EPOCH_SECONDS="0.5") as running:
        wait_until(lambda: count(engine, "result") > 2)
        _forget(away)
        private.forget()
        taken.append(psycopg2.connect(private.dsn()))
        taken[0].autocommit = True
        with taken[0].cursor() as cursor:
            deadline = time.monotonic() + 30
            while "no free connection left" not in running.talk and time.monotonic() < deadline:
                cursor.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname <> current_database()"
                )
                with contextlib.suppress(psycopg2.OperationalError):
                    while True:
                        taken.append(psycopg2.connect(private.dsn()))
        refused = foldtune("list", OPTUNA_STORAGE=away)
        assert refused.returncode == UNAVAILABLE
        assert "has no free connection left; raise max_connections or lower the workers" in refused.stderr
        assert "Traceback" not in refused.stderr
        for connection in taken:
            connection.close()
        assert running.end() == 0
    assert table(connect(make_url(away))) == expected


def test_an_epoch_that_a_failover_made_be_granted_twice_does_not_let_its_first_owner_write(
    engine: Engine, tmp_path: Path
) -> None:
    """The rows are put back by hand, past the triggers, as a standby that never heard of the lease has them."""
    launched(engine, tmp_path)
    _, old = trials.take(engine, studies.worker(engine), ["s"]) or pytest.fail("nothing to train")
    with transaction(engine) as connection:
        for statement in (
            "SET LOCAL session_replication_role = replica",
            "DELETE FROM attempt",
            "UPDATE unit SET state = 'waiting', worker = NULL, expires_at = NULL, token = NULL, lease_epoch = 0, "
            "attempts = 0 WHERE state = 'leased'",
        ):
            connection.execute(text(statement))
    record, new = trials.take(engine, studies.worker(engine), ["s"]) or pytest.fail("it is not free")
    assert (new.unit, new.epoch) == (old.unit, old.epoch)
    with pytest.raises(Fenced, match="was lost"):
        trials.report(engine, old, [studies.epoch_done(old, epoch=1)])
    with pytest.raises(Fenced, match="was lost"):
        trials.finish(engine, record.name, old, studies.end(old))
    trials.finish(engine, record.name, old, studies.end(old, Outcome.DROPPED, "left"))
    assert count(engine, "result") == 0
    assert trials.report(engine, new, [studies.epoch_done(new, epoch=1)]) == 1


def test_what_a_failover_to_a_standby_that_lags_has_lost_is_trained_again_to_the_same_numbers(
    private: Postgres, away: str, tmp_path: Path
) -> None:
    engine = connect(make_url(away))
    expected = launched(engine, tmp_path)
    switch = Proxy(private.url.port or 0)
    history = {"FOLDTUNE_HISTORY": str(tmp_path), "FOLDTUNE_LIGHT_EPOCH_SECONDS": "0.3"}
    with worker(through(away, switch.port), **history) as running:
        wait_until(lambda: count(engine, "result") > 2)
        back_up(private)
        kept = count(engine, "result")
        wait_until(lambda: count(engine, "result") > kept + 6)  # another unit at least
        private.crash()
        with promoted(private) as port:
            switch.target = port
            switch.cut()
            code = running.end()
            assert code == 0
            standby = connect(make_url(through(away, port)))
            assert count(standby, "result") == light.UNITS * 4
            assert rows(standby, "SELECT state::text, sum(charges) FROM unit GROUP BY 1") == [("done", 0)]
            assert rows(standby, "SELECT count(*) FROM public.trials WHERE state <> 'COMPLETE'") == [(0,)]
            assert table(standby) == expected
            _forget(through(away, port))
    switch.close()
    assert '"fenced"' in (tmp_path / f"{running.pid}.jsonl").read_text(encoding="utf-8")


def back_up(private: Postgres) -> None:
    """What a standby has received by now."""
    postgres = cluster.open_cluster(private.home)
    done = postgres.run("pg_basebackup", "-D", "standby", "-d", private.dsn(), "-c", "fast", "-X", "stream", "-R")
    assert done.returncode == 0, done.stdout


@contextlib.contextmanager
def promoted(private: Postgres) -> Iterator[int]:
    """The standby as the new primary; its port."""
    postgres = cluster.open_cluster(private.home)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ("-D", "standby", "-l", "standby.log", "-w")
    try:
        for action in (("-o", f"-p {port}", "start"), ("promote",)):
            done = postgres.run("pg_ctl", *options, *action)
            assert done.returncode == 0, done.stdout
        yield port
    finally:
        postgres.run("pg_ctl", *options, "-m", "immediate", "stop")
        shutil.rmtree(private.home.server / "standby", ignore_errors=True)


@pytest.fixture
def cramped(postgres: str) -> Iterator[tuple[str, Path]]:
    """(URL of a database on a small disk of its own, that disk)."""
    template = servers.ensure_template(postgres, "ready", _prepare)
    administrator = create_engine(postgres, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    space = f"disk{os.getpid()}"
    folder = Path(os.environ["FOLDTUNE_SYSTEM_HOME"]) / space
    with administrator.connect() as connection, light.disk(folder, "32m"):
        owner = Path(connection.exec_driver_sql("SHOW data_directory").scalar_one()).stat()
        os.chown(folder, owner.st_uid, owner.st_gid)
        connection.exec_driver_sql(f"CREATE TABLESPACE {space} LOCATION '{folder}'")
        try:
            with servers.fresh_database(postgres, template) as url:
                connection.exec_driver_sql(f"ALTER DATABASE {make_url(url).database} SET TABLESPACE {space}")
                yield url, folder
                _forget(url)
        finally:
            connection.exec_driver_sql(f"DROP TABLESPACE {space}")


@as_root
def test_a_full_disk_of_the_database_holds_up_results_until_there_is_room_and_loses_none(
    cramped: tuple[str, Path], tmp_path: Path, foldtune_home: Path
) -> None:
    url, folder = cramped
    engine = connect(make_url(url))
    expected = launched(engine, tmp_path, epochs=8)
    acknowledged = "SELECT unit, epoch, reported_at FROM result"
    with worker(url, FOLDTUNE_LIGHT_EPOCH_SECONDS="0.15") as running:
        wait_until(lambda: count(engine, "result") > 3)
        ballast = light.fill(folder)
        wait_until(lambda: "has no disk space left; training goes on" in running.talk)
        wait_until(lambda: bool(list(foldtune_home.glob("spool/*/*/*.json"))))
        before = rows(engine, acknowledged)
        ballast.unlink()
        room = time.monotonic()
        wait_until(lambda: count(engine, "result") > len(before), seconds=30)
        assert time.monotonic() - room < 10
        assert running.end() == 0
    assert set(before) <= set(rows(engine, acknowledged))
    assert rows(engine, "SELECT max(attempts) FROM unit") == [(1,)]
    assert table(engine) == expected
