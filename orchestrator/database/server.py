"""The embedded Postgres: started by whoever comes first, left running, stopped on request.

One server per home. Two locks make it one: a short one around starting and stopping, and the lifeline, which
every process of the server inherits and holds until it dies. A free lifeline therefore means that no server
lives, whatever a pid file says.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2

from orchestrator.database import cluster, liveness
from orchestrator.database.home import PATIENCE, Home, exclusive, in_words, locate, open_lock, try_lock
from orchestrator.errors import UNAVAILABLE, FoldtuneError

_GRACE = 2.0  # seconds in which the backends of a dead server end by themselves
_ATTEMPTS = 3
_WRONG_PASSWORD = "password authentication failed"  # the words of a server with lc_messages C, as ours has


@dataclass(frozen=True, kw_only=True)
class ServerStatus:
    """What is known of one embedded server."""

    running: bool
    port: int | None
    """Its port on 127.0.0.1, or the port of the last start; None before the first."""
    data_directory: Path
    version: str | None
    """Such as 18.4 while it runs, else the data's major version; None before the first start."""
    pid: int | None
    home: Path
    """FOLDTUNE_HOME: the password and the port."""


def ensure_running(home: Path | None = None) -> str:
    """The URL of the home's server, which is started, and made, if need be. Many processes may call at once.

    Raises FoldtuneError (code 69) where no server can be had.
    """
    place = locate(home)
    reason = ""
    with in_words(place):
        for _ in range(_ATTEMPTS):  # more than one: it may be killed while it starts
            found = _reach(place)
            if found is None:
                found, reason = _start(place)
            if found is not None:
                return found
    raise FoldtuneError(f"Postgres did not start: {reason}", help=f"the whole log is {place.log}", code=UNAVAILABLE)


def stop(home: Path | None = None) -> bool:
    """Stop the home's server; whether there was one to stop.

    Raises FoldtuneError (code 69) if it does not end.
    """
    place = locate(home)
    if not place.lifeline.exists():
        return False
    with in_words(place):
        place.create()  # for the lock: as root the client's folder may be gone while the server runs
    with in_words(place), exclusive(place.client / "start.lock"), open_lock(place.lifeline) as lifeline:
        if try_lock(lifeline):
            return False
        _stop_and_wait(place, lifeline)
        return True


def status(home: Path | None = None) -> ServerStatus:
    """What is known of the home's server; starts and creates nothing."""
    place = locate(home)
    with in_words(place):
        server = _ask(place)
        return ServerStatus(
            running=server is not None,
            port=place.port(),
            data_directory=place.data,
            version=server or cluster.data_version(place),
            pid=liveness.postmaster(place) if server else None,
            home=place.client,
        )


def url(home: Path | None = None, *, start: bool = False) -> str:
    """The SQLAlchemy URL of the home's server.

    Raises FoldtuneError (code 69) if it does not run and `start` is false.
    """
    if start:
        return ensure_running(home)
    place = locate(home)
    with in_words(place):
        found = _reach(place)
    if found is None:
        raise FoldtuneError(
            f"the embedded Postgres of {place.client} is not running",
            help="start it with foldtune db start",
            code=UNAVAILABLE,
        )
    return found


def _start(home: Home) -> tuple[str | None, str]:
    """The URL of the server, started here or by another process meanwhile; or None and why it did not start."""
    home.create()
    with exclusive(home.client / "start.lock"), open_lock(home.lifeline) as lifeline:
        found = _wait_until_down(home, lifeline)
        if found is not None:
            return found, ""
        liveness.remove_stale_pid(home)
        postgres = cluster.open_cluster(home)
        if home.data.exists():
            cluster.check_version(home)
            if home.password() is None:
                _reset_password(home, postgres, lifeline)
        else:
            _create(home, postgres, lifeline)
        reason = cluster.start(postgres, lifeline)
        if reason:
            return None, reason
        return _wait_until_up(home), "it ended before it answered"


def _create(home: Home, postgres: cluster.Cluster, lifeline: int) -> None:
    password = home.password() or secrets.token_urlsafe(24)
    home.save_password(password)  # first: killed in between, the next call uses it
    cluster.create(postgres, password, lifeline)


def _reset_password(home: Home, postgres: cluster.Cluster, lifeline: int) -> None:
    password = secrets.token_urlsafe(24)
    cluster.set_password(postgres, password, lifeline)
    home.save_password(password)  # last: killed in between, the next call sets another


def _wait_until_down(home: Home, lifeline: int) -> str | None:
    """Take the lifeline, or return the URL if the server turns out to be up.

    In between lie a server that another process was starting when it was killed, one that recovers from a crash,
    and the last backends of a dead one. Raises FoldtuneError if nothing changes.
    """
    began = time.monotonic()
    while True:
        if try_lock(lifeline):
            return None
        found = _reach(home)
        if found is not None:
            return found
        waited = time.monotonic() - began
        if home.password() is None:
            _stop_and_wait(home, lifeline)  # it runs, but nobody can log in any more
            return None
        if waited > _GRACE:
            if _WRONG_PASSWORD in _knock(home)[1]:
                raise _locked_out(home)
            liveness.end_orphans(home)
        if waited > PATIENCE:
            raise _silent(home)
        time.sleep(0.05)


def _wait_until_up(home: Home) -> str | None:
    """The URL of a server that was just started, or None if it died; on a busy machine an answer may take a while."""
    deadline = time.monotonic() + PATIENCE
    while True:
        version, said = _knock(home)
        if version is not None:
            return _url(home)
        if _WRONG_PASSWORD in said:
            raise _locked_out(home)
        if liveness.postmaster(home) is None:
            return None
        if time.monotonic() > deadline:
            raise _silent(home)
        time.sleep(0.05)


def _stop_and_wait(home: Home, lifeline: int) -> None:
    cluster.stop(cluster.open_cluster(home))
    deadline = time.monotonic() + _GRACE
    while not try_lock(lifeline):
        if time.monotonic() > deadline:
            raise _silent(home)
        time.sleep(0.02)


def _locked_out(home: Home) -> FoldtuneError:
    return FoldtuneError(
        f"the server runs, but refuses the password in {home.password_file}",
        help=f"delete {home.password_file}: the next start sets a new one",
        code=UNAVAILABLE,
    )


def _silent(home: Home) -> FoldtuneError:
    host = home.host()
    if host not in (None, socket.gethostname()):
        return FoldtuneError(
            f"the database in {home.data} is in use by {host}, where it was started last",
            help="stop it there with foldtune db stop, or set FOLDTUNE_HOME to another folder",
            code=UNAVAILABLE,
        )
    return FoldtuneError(
        f"a process holds the database in {home.data}, but no server answers on port {home.port()}",
        help=f"see {home.log}; end the processes that have {home.lifeline} open",
        code=UNAVAILABLE,
    )


def _reach(home: Home) -> str | None:
    """The URL of the home's server if it answers with our password now."""
    return _url(home) if _ask(home) else None


def _url(home: Home) -> str:
    # sslmode: loopback needs none, and PGSSLMODE in the caller's environment would refuse the server.
    return (
        f"postgresql+psycopg2://{cluster.ROLE}:{home.password()}@127.0.0.1:{home.port()}/{cluster.DATABASE}"
        "?sslmode=disable"
    )


def _ask(home: Home) -> str | None:
    """The version of the home's server, or None if it does not answer."""
    return _knock(home)[0]


def _knock(home: Home) -> tuple[str | None, str]:
    """The version of the home's server, or None and what was said instead."""
    try:
        with _connected(home) as connection:
            if connection is None:
                return None, ""
            with connection.cursor() as cursor:
                # A copied home has the same port and password: without this we would write to the original.
                cursor.execute("SHOW data_directory")
                (data,) = cursor.fetchone() or ("",)
            version = connection.get_parameter_status("server_version")
            return (version, "") if data == str(home.data) else (None, f"this is the server of {data}")
    except psycopg2.Error as error:
        # Full is running; the caller's own connection will say so.
        full = "too many clients" in str(error) or "connection slots" in str(error)
        return (cluster.data_version(home) if full else None), str(error)


@contextlib.contextmanager
def _connected(home: Home) -> Iterator[psycopg2.extensions.connection | None]:
    password, port = home.password(), home.port()
    if password is None or port is None:
        yield None
        return
    options: dict[str, Any] = {"sslmode": "disable", "connect_timeout": 3}
    if psycopg2.extensions.libpq_version() >= 160000:
        # Whoever took the port of a dead server must not get the password by asking for it in plain text.
        options["require_auth"] = "scram-sha-256"
    connection = psycopg2.connect(
        host="127.0.0.1", port=port, user=cluster.ROLE, password=password, dbname=cluster.DATABASE, **options
    )
    try:
        yield connection
    finally:
        connection.close()
