"""One private Postgres for a test session, and a database of its own for each test.

In conftest.py:

    @pytest.fixture(scope="session")
    def postgres(tmp_path_factory):
        root = shared_root(tmp_path_factory.getbasetemp())
        yield session_server(root)
        end_session_server(root)

    @pytest.fixture
    def database(postgres):
        with fresh_database(postgres, template=ensure_template(postgres, "migrated", migrate)) as url:
            yield url

Under pytest-xdist all workers share the server: the first starts it, the last one out stops it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg2
from psycopg2 import sql
from sqlalchemy.engine import make_url

from orchestrator.database import server

_guests: dict[Path, int] = {}  # session root -> descriptor that says "a test process still uses the server"


def shared_root(basetemp: Path) -> Path:
    """The folder that all processes of one test session share, from pytest's base folder of this process."""
    return basetemp.parent if "PYTEST_XDIST_WORKER" in os.environ else basetemp


def session_server(tmp_root: Path) -> str:
    """The URL of the session's server, started by the first process that asks. It does not wait for the disk."""
    _enter(tmp_root)
    use_private_system_home(tmp_root)
    url = server.ensure_running(tmp_root / "postgres")
    with _administrator(url) as cursor:
        cursor.execute("ALTER SYSTEM SET fsync = off")
        cursor.execute("SELECT pg_reload_conf()")
    return url


def end_session_server(tmp_root: Path) -> None:
    """Stop the session's server if no other process of the session uses it."""
    with _leaving(tmp_root) as last:
        if last:
            server.stop(tmp_root / "postgres")
            remove_private_system_home(tmp_root)


@contextlib.contextmanager
def fresh_database(url: str, template: str | None = None) -> Iterator[str]:
    """The URL of a new database, a copy of `template` if one is named; dropped afterwards in any case."""
    name = f"test_{uuid.uuid4().hex}"
    _create(url, name, template)
    try:
        yield _in_database(url, name)
    finally:
        _drop(url, name)


def ensure_template(url: str, name: str, build: Callable[[str], object]) -> str:
    """The name of a database that `build(url)` filled, once per server. It must leave no connection open.

    A build that fails leaves nothing behind.
    """
    with _administrator(url) as cursor:
        cursor.execute("SELECT pg_advisory_lock(hashtext(%s))", (name,))  # until this connection closes
        cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,))
        if cursor.fetchone():
            return name
        unfinished = f"{name}_{uuid.uuid4().hex[:8]}"
        _create(url, unfinished, None)
        try:
            build(_in_database(url, unfinished))
            cursor.execute(
                sql.SQL("ALTER DATABASE {} RENAME TO {}").format(sql.Identifier(unfinished), sql.Identifier(name))
            )
        except BaseException:
            _drop(url, unfinished)
            raise
    return name


def use_private_system_home(tmp_root: Path) -> None:
    """As root, keep servers of tests out of /var/lib: in a folder that the server's account can enter, in /tmp.

    pytest's own folder is closed to that account. Does nothing for other users, or where the variable is set.
    """
    if os.geteuid() != 0 or "FOLDTUNE_SYSTEM_HOME" in os.environ:
        return
    folder = _private_system_home(tmp_root)
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)
    os.environ["FOLDTUNE_SYSTEM_HOME"] = str(folder)


def remove_private_system_home(tmp_root: Path) -> None:
    folder = _private_system_home(tmp_root)
    if os.environ.get("FOLDTUNE_SYSTEM_HOME") == str(folder):
        del os.environ["FOLDTUNE_SYSTEM_HOME"]
        shutil.rmtree(folder, ignore_errors=True)


def _private_system_home(tmp_root: Path) -> Path:
    return Path("/tmp", f"foldtune-{hashlib.sha256(os.fsencode(tmp_root.resolve())).hexdigest()[:12]}")


def _enter(tmp_root: Path) -> None:
    if tmp_root not in _guests:
        tmp_root.mkdir(parents=True, exist_ok=True)
        guest = os.open(tmp_root / "guests.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(guest, fcntl.LOCK_SH)
        _guests[tmp_root] = guest


@contextlib.contextmanager
def _leaving(tmp_root: Path) -> Iterator[bool]:
    """Whether this is the last process; one that enters meanwhile waits until the block is done."""
    guest = _guests.pop(tmp_root, None)
    if guest is None:
        yield False
        return
    try:
        try:
            fcntl.flock(guest, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(guest)


def _create(url: str, name: str, template: str | None) -> None:
    statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
    with _administrator(url) as cursor:
        cursor.execute(statement.format(sql.Identifier(name), sql.Identifier(template or "template1")))


def _drop(url: str, name: str) -> None:
    with _administrator(url) as cursor:
        cursor.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


@contextlib.contextmanager
def _administrator(url: str) -> Iterator[psycopg2.extensions.cursor]:
    connection = psycopg2.connect(url.replace("postgresql+psycopg2:", "postgresql:", 1))
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            yield cursor
    finally:
        connection.close()


def _in_database(url: str, name: str) -> str:
    return make_url(url).set(database=name).render_as_string(hide_password=False)
