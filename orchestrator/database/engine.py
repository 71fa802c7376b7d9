"""Connections to the study database. psycopg2 and Postgres only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError

from orchestrator import crash_points, lifecycle
from orchestrator.contract import digest
from orchestrator.database import deadline
from orchestrator.database.migrate import migrate
from orchestrator.errors import NO_PERMISSION, UNAVAILABLE, USAGE, FoldtuneError

deadline.install()

# What the server does by itself. A client that went silent inside a transaction would keep its locks for ever: the
# server learns of a dead machine only by keepalives, and of a frozen process not at all.
TIMEOUTS = (
    f"-c lock_timeout={lifecycle.LOCK_SECONDS:.0f}s -c statement_timeout={deadline.SECONDS:.0f}s "
    "-c idle_in_transaction_session_timeout=15s "
    "-c tcp_keepalives_idle=5 -c tcp_keepalives_interval=2 -c tcp_keepalives_count=3 -c tcp_user_timeout=15s"
)

# The kernel retries a dead peer for many minutes by default; with these a lost link is an error after about 5 s.
CONNECT_ARGS = {
    "keepalives_idle": 2,
    "keepalives_interval": 1,
    "keepalives_count": 3,
    "tcp_user_timeout": 5000,
    "application_name": "foldtune",
    "options": f"-c search_path=foldtune,public -c timezone=UTC {TIMEOUTS}",
}


def storage_url(storage: str | None) -> URL:
    """Where the studies are: `--storage`, else OPTUNA_STORAGE, else the embedded Postgres, which is started.

    A URL without a password takes it from the file that FOLDTUNE_DB_PASSWORD_FILE names, if that is set.

    Raises:
        FoldtuneError: not a Postgres URL, or the embedded server cannot be started.
    """
    given = storage or os.environ.get("OPTUNA_STORAGE")
    if not given:
        from orchestrator.database.server import ensure_running

        return make_url(ensure_running())
    return _with_password_file(parse_url(given))


def parse_url(given: str) -> URL:
    """A URL for psycopg2: `postgres://` and `postgresql://` mean it, other databases are refused.

    Raises:
        FoldtuneError: exit code 2.
    """
    try:
        url = make_url(given)
    except (ArgumentError, ValueError):  # a ValueError: a port that is no number
        raise FoldtuneError(
            "the storage must be a URL such as postgresql://user@host:5432/database", code=USAGE
        ) from None
    backend, _, driver = url.drivername.partition("+")
    if backend not in ("postgres", "postgresql") or driver not in ("", "psycopg2"):
        raise FoldtuneError(
            f"the storage must be Postgres through psycopg2 — got {url.drivername}://",
            help="leave --storage and OPTUNA_STORAGE out to use the embedded Postgres",
            code=USAGE,
        )
    return url.set(drivername="postgresql+psycopg2")


def _with_password_file(url: URL) -> URL:
    path = os.environ.get("FOLDTUNE_DB_PASSWORD_FILE")
    if url.password or not path:
        return url
    try:
        password = Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise FoldtuneError(f"FOLDTUNE_DB_PASSWORD_FILE cannot be read: {error.strerror}", code=NO_PERMISSION) from None
    if not password:
        raise FoldtuneError(f"FOLDTUNE_DB_PASSWORD_FILE {path} is empty", code=NO_PERMISSION)
    return url.set(password=password)


@cache
def connect(url: URL) -> Engine:
    """The engine of this process for a storage, its schema up to date.

    Raises:
        FoldtuneError: the database does not answer or refuses; says which of the two and what to do.
    """
    engine = create_engine(url, pool_pre_ping=True, pool_size=2, max_overflow=2, connect_args=dict(CONNECT_ARGS))
    name_crash_points(engine)
    with readable_errors(url):
        migrate(engine)
    return engine


def name_crash_points(engine: Engine, whose: str = "") -> None:
    """Make every statement and commit of this engine a crash point, if any are asked for.

    whose: put before the names, to tell another library's statements from ours.
    """
    if not crash_points.armed():
        return

    def before(_c: object, _cursor: object, statement: str, *_: object) -> None:
        crash_points.reach(f"{whose}before {_label(statement)}")

    def after(_c: object, _cursor: object, statement: str, *_: object) -> None:
        crash_points.reach(f"{whose}after {_label(statement)}")

    event.listen(engine, "before_cursor_execute", before)
    event.listen(engine, "after_cursor_execute", after)
    event.listen(engine, "commit", lambda _c: crash_points.reach(f"{whose}before commit"))


def _label(statement: str) -> str:
    """A statement's name: its first words, and a digest that tells it from others that begin alike."""
    words = " ".join(statement.split())
    return f"{words[:40]} #{digest(words)[:6]}"


@contextmanager
def readable_errors(url: URL | None = None) -> Iterator[None]:
    """Turn database failures into one line for the user."""
    try:
        yield
    except FoldtuneError:
        raise
    except Exception as error:
        cause = _database_failure(error)
        if cause is None:
            raise
        raise (cause if isinstance(cause, FoldtuneError) else _explain(cause, url)) from None


def _database_failure(error: BaseException | None) -> DBAPIError | FoldtuneError | None:
    """The failure of the database behind an exception, if that is what it comes from.

    Optuna's storage turns a lost connection into StorageInternalError, AssertionError or UnboundLocalError: the cause
    stands only in the chain, and a worker that took one of these for a bug would die of a restart.
    """
    while error is not None:
        if isinstance(error, OperationalError | FoldtuneError) or (
            isinstance(error, DBAPIError)
            and (
                error.connection_invalidated
                or any(words in str(error.orig) for words in ("permission denied", "dsn", "read-only transaction"))
            )
        ):
            return error
        error = error.__cause__ or error.__context__
    return None


def _explain(error: DBAPIError, url: URL | None) -> FoldtuneError:
    said = str(error.orig).strip()
    where = f"{url.host}:{url.port or 5432}/{url.database}" if url is not None else "the database"
    for needle, message, code in (
        ("password authentication failed", "refuses the user or password", NO_PERMISSION),
        ("no password supplied", "wants a password", NO_PERMISSION),
        ("permission denied", "lets this user connect but not create or change foldtune's tables", NO_PERMISSION),
        ("does not exist", "has no such database or role", UNAVAILABLE),
        ("could not translate host name", "has a host name that cannot be found", UNAVAILABLE),
        ("invalid dsn", "is named by a URL with an unknown option", USAGE),
        ("Connection refused", "refuses connections: no server there", UNAVAILABLE),
        ("timeout expired", "did not answer in time", UNAVAILABLE),
        ("did not answer for", f"did not answer for {deadline.SECONDS:.0f} s", UNAVAILABLE),
        ("No space left on device", "has no disk space left", UNAVAILABLE),
        ("is starting up", "is starting up", UNAVAILABLE),
        ("is shutting down", "is shutting down", UNAVAILABLE),
        ("terminating connection", "closed the connection", UNAVAILABLE),
        ("server closed the connection", "closed the connection", UNAVAILABLE),
        ("read-only transaction", "is a standby that takes no writes", UNAVAILABLE),
        ("statement timeout", f"worked on one statement for {deadline.SECONDS:.0f} s", UNAVAILABLE),
        *(
            (said_of_slots, "has no free connection left; raise max_connections or lower the workers", UNAVAILABLE)
            # to superusers, to everybody else, and where a database or role has a limit of its own
            for said_of_slots in ("too many clients", "remaining connection slots", "too many connections for")
        ),
        ("lock timeout", f"kept a row locked for {lifecycle.LOCK_SECONDS:.0f} s", UNAVAILABLE),
    ):
        if needle in said:
            return FoldtuneError(f"Postgres at {where} {message}", help="", code=code)
    return FoldtuneError(f"Postgres at {where}: {said.splitlines()[0] if said else error}", code=UNAVAILABLE)


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """One transaction; committed at the end, rolled back on any exception."""
    with readable_errors(engine.url), engine.begin() as connection:
        yield connection
    crash_points.reach("after commit")
