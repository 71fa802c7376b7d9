"""One Postgres data directory: make it, start it, stop it. Callers hold the home's lock."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.database import binaries, liveness, ports
from orchestrator.database.account import Account, hand_over, server_account
from orchestrator.database.home import Home
from orchestrator.errors import UNAVAILABLE, FoldtuneError

# Not "foldtune": in the default search path "$user" comes first, so any program that connects to this URL (Optuna's
# dashboard, a notebook) would look for Optuna's tables in the schema foldtune.
ROLE = "postgres"
DATABASE = "foldtune"
_MAX_LOG = 10 * 2**20  # bytes; a longer log is set aside at the next start

_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",  # no path that another user could enter, none that could be too long
    "max_connections": "400",  # of 64 workers, each with up to five
    "max_wal_size": "512MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    # A statement in the log would carry data of the study, and the password when it is set.
    "log_min_error_statement": "panic",
    "log_line_prefix": "%m [%p] ",
}
_INITDB_OPTIONS = (
    "--encoding=UTF8",
    # Postgres' own sort order: one of the C library's would change with the operating system and corrupt indexes.
    "--locale=C",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
    "--auth=scram-sha-256",
    f"--username={ROLE}",
    *(f"--set={name}={value}" for name, value in _SETTINGS.items()),
)
# Nothing of the caller's: PGDATA, PGPORT, PGOPTIONS or LD_LIBRARY_PATH would reach into the server.
_ENVIRONMENT = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LC_ALL": "C"}


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The programs for one home's data directory, and who runs them."""

    home: Home
    programs: Path
    account: Account | None

    def run(
        self, program: str, *arguments: str, stdin: str = "", lifeline: int | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run one program in the server's folder, as the server's account, out of reach of the terminal's Ctrl-C.

        lifeline: descriptor that the program and its children keep open; while one of them lives, its lock holds.
        """
        return subprocess.run(
            [self.programs / program, *arguments],
            input=stdin,
            text=True,
            # Relative names below: pg_ctl puts them into a shell command unescaped.
            cwd=self.home.server,
            env=_ENVIRONMENT,
            # pg_ctl gives its server the log instead: with these pipes open we would wait for the server's end.
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            umask=0o077,
            pass_fds=() if lifeline is None else (lifeline,),
            check=False,
            **(self.account.identity() if self.account else {}),
        )


def open_cluster(home: Home) -> Cluster:
    """The cluster of a home, with its account and programs in place; the data directory may not exist yet.

    Raises FoldtuneError where the machine does not allow it.
    """
    account = server_account(home.server)
    hand_over(home.server, account)
    programs = binaries.shipped() if account is None else binaries.copied(home.server.parent)
    return Cluster(home=home, programs=programs, account=account)


def create(cluster: Cluster, password: str, lifeline: int) -> None:
    """Make the data directory with its role and database: whole or not at all.

    Raises FoldtuneError with initdb's own words.
    """
    home = cluster.home
    unfinished = home.server / "data.unfinished"
    if unfinished.exists():
        shutil.rmtree(unfinished)
    with _password_for(cluster, password) as pwfile:
        _expect_success(
            cluster.run(
                "initdb", "-D", unfinished.name, *_INITDB_OPTIONS, f"--pwfile={pwfile.name}", lifeline=lifeline
            ),
            "initdb",
        )
    _single_user(cluster, unfinished, f"CREATE DATABASE {DATABASE}", lifeline)
    unfinished.rename(home.data)
    _sync(home.server)


def set_password(cluster: Cluster, password: str, lifeline: int) -> None:
    """Give the role a new password while the server is down."""
    if not password.replace("-", "").replace("_", "").isalnum():
        raise ValueError("the password must be of letters, digits, - and _")
    _single_user(cluster, cluster.home.data, f"ALTER ROLE {ROLE} PASSWORD '{password}'", lifeline)


def check_version(home: Home) -> None:
    """Raise FoldtuneError if the data directory was made by another major version."""
    found = data_version(home)
    if found != str(binaries.MAJOR):
        raise FoldtuneError(
            f"{home.data} must be of Postgres {binaries.MAJOR}, got Postgres {found or 'of unknown version'}",
            help=f"move {home.data} away to start anew, or use the foldtune that made it",
            code=UNAVAILABLE,
        )


def data_version(home: Home) -> str | None:
    try:
        return (home.data / "PG_VERSION").read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None


def start(cluster: Cluster, lifeline: int) -> str:
    """Start the server, on its old port where that is free. The caller holds the lifeline's lock.

    Returns "" if it started, else the end of its log.
    """
    home = cluster.home
    if home.log.exists() and home.log.stat().st_size > _MAX_LOG:
        home.log.replace(home.log.with_suffix(".old.log"))
    before = home.log.stat().st_size if home.log.exists() else 0
    said = "no port is free"
    for port in ports.candidates(home.port()):
        home.remember_port(port)  # before the start: killed after it, we would not find the server again
        options = ("-D", home.data.name, "-l", home.log.name, "-w", "-t", "120", "-o", f"-p {port}")
        done = cluster.run("pg_ctl", *options, "start", lifeline=lifeline)
        if done.returncode == 0:
            return ""
        said = _last_lines(_written_since(home.log, before) or done.stdout)
        if ports.is_free(port):
            break  # the port was not the reason
    return said


def stop(cluster: Cluster) -> None:
    """Stop the server: open transactions are rolled back, committed ones are safe either way."""
    for mode in ("fast", "immediate"):
        # Asked each time: pg_ctl signals the number in the pid file, whosever it is by now.
        if liveness.postmaster(cluster.home) is None:
            break
        options = ("-D", cluster.home.data.name, "-m", mode, "-w", "-t", "60")
        if cluster.run("pg_ctl", *options, "stop").returncode == 0:
            return
    liveness.end_orphans(cluster.home)


@contextlib.contextmanager
def _password_for(cluster: Cluster, password: str) -> Iterator[Path]:
    """A file with the password that the server's account can read, gone afterwards."""
    path = cluster.home.server / "pwfile"
    path.unlink(missing_ok=True)  # of an attempt that was killed
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        if cluster.account:
            os.fchown(descriptor, cluster.account.uid, cluster.account.gid)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(password + "\n")
        yield path
    finally:
        path.unlink(missing_ok=True)


def _single_user(cluster: Cluster, data: Path, statement: str, lifeline: int) -> None:
    """Run one statement without a server; on standard input, where no other process can read it."""
    done = cluster.run(
        "postgres", "--single", "-D", data.name, "-j", "template1", stdin=f"{statement};\n\n", lifeline=lifeline
    )
    _expect_success(done, "postgres --single")
    if "ERROR:" in done.stdout:  # an error of SQL leaves the exit status at 0
        raise FoldtuneError(f"postgres --single failed: {done.stdout.strip()}", code=UNAVAILABLE)


def _expect_success(done: subprocess.CompletedProcess[str], program: str) -> None:
    if done.returncode != 0:
        raise FoldtuneError(
            f"{program} failed with exit status {done.returncode}: {_last_lines(done.stdout)}",
            help="name another Postgres with --storage, or set FOLDTUNE_HOME to a folder on another disk",
            code=UNAVAILABLE,
        )


def _written_since(log: Path, position: int) -> str:
    try:
        with log.open("rb") as file:
            file.seek(position)
            return file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""


def _last_lines(text: str) -> str:
    return " ".join(text.strip().splitlines()[-5:]) or "it said nothing"


def _sync(folder: Path) -> None:
    """Make a rename inside a folder survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
