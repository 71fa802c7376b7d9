"""Where the embedded server keeps its things, and the two locks that make it one server."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import pwd
import re
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import NO_PERMISSION, UNAVAILABLE, FoldtuneError

SYSTEM_HOME = Path("/var/lib/foldtune")
PATIENCE = 120.0  # seconds to wait for another process that starts, recovers or stops the same server


@dataclass(frozen=True, kw_only=True)
class Home:
    """The files of one embedded server. Made by `locate`; knowing a home creates nothing."""

    client: Path
    """FOLDTUNE_HOME: what one needs to reach the server, for its user alone."""
    server: Path
    """Data and log, owned by the account that runs Postgres; the same folder unless root started it."""
    lifeline: Path
    """Lock file that every process of the server holds for as long as it lives."""

    @property
    def data(self) -> Path:
        return self.server / "data"

    @property
    def log(self) -> Path:
        return self.server / "server.log"

    @property
    def password_file(self) -> Path:
        return self.client / "password"

    @property
    def address_file(self) -> Path:
        return self.client / "server.json"

    def create(self) -> None:
        """Make the folders of this home; their parents keep their modes.

        Raises FoldtuneError where another user's server lives here.
        """
        self.client.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make_passable(self.lifeline.parent)
        for file in (self.password_file, self.address_file):
            if file.exists() and file.stat().st_uid != os.geteuid():
                # Overwriting it would lock its owner out of their own database.
                owner = _user_name(file.stat().st_uid)
                raise FoldtuneError(
                    f"{self.client} must belong to the user who runs foldtune, got {file.name} of {owner}",
                    help=f"run foldtune as {owner}, or set FOLDTUNE_HOME to a folder of your own",
                    code=NO_PERMISSION,
                )

    def password(self) -> str | None:
        """The password of the database's only role, or None before the first start."""
        return _read(self.password_file)

    def save_password(self, password: str) -> None:
        _write_private(self.password_file, password)

    def port(self) -> int | None:
        """The port of the last start, or None before the first."""
        port = self._address().get("port")
        return port if isinstance(port, int) else None

    def host(self) -> str | None:
        """The machine of the last start, or None before the first."""
        host = self._address().get("host")
        return host if isinstance(host, str) else None

    def remember_port(self, port: int) -> None:
        _write_private(self.address_file, json.dumps({"port": port, "host": socket.gethostname()}))

    def _address(self) -> dict[str, object]:
        try:
            address = json.loads(_read(self.address_file) or "{}")
        except ValueError:
            return {}
        return address if isinstance(address, dict) else {}


def locate(home: Path | None = None) -> Home:
    """The home at a path, else at FOLDTUNE_HOME, else ~/.foldtune.

    As root the server's part is a folder of its own under /var/lib/foldtune (or FOLDTUNE_SYSTEM_HOME): Postgres
    refuses root, and the account it runs under cannot see into root's home.
    """
    client = home or Path(os.environ.get("FOLDTUNE_HOME") or "~/.foldtune")
    client = client.expanduser().resolve()
    if os.geteuid() != 0:
        return Home(client=client, server=client, lifeline=client / "lifeline.lock")
    system = Path(os.environ.get("FOLDTUNE_SYSTEM_HOME") or SYSTEM_HOME).resolve()
    key = _key(client)
    return Home(client=client, server=system / key, lifeline=system / f"{key}.lock")


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock file against all other processes. Raises FoldtuneError after two minutes in vain."""
    with open_lock(path) as lock:
        deadline = time.monotonic() + PATIENCE
        while not try_lock(lock):
            if time.monotonic() > deadline:
                raise FoldtuneError(
                    f"another process has held {path} for {PATIENCE:.0f} s while it starts or stops the database",
                    help="end that process, then run the command again",
                    code=UNAVAILABLE,
                )
            time.sleep(0.02)
        try:
            yield
        finally:
            # A child that another thread forked meanwhile shares the descriptor: closing alone leaves it locked.
            fcntl.flock(lock, fcntl.LOCK_UN)


@contextlib.contextmanager
def open_lock(path: Path) -> Iterator[int]:
    """A descriptor of a lock file, created if need be; not locked yet."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        yield lock
    finally:
        os.close(lock)


def try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def in_words(home: Home) -> Iterator[None]:
    """Turn an error of the file system into a FoldtuneError that says what to do."""
    try:
        yield
    except OSError as error:
        variable = "FOLDTUNE_HOME" if os.geteuid() != 0 else "FOLDTUNE_HOME and FOLDTUNE_SYSTEM_HOME"
        raise FoldtuneError(
            f"cannot keep a database in {error.filename or home.client}: {error.strerror or error}",
            help=f"set {variable} to a folder you may write to, or name another Postgres with --storage",
            code=UNAVAILABLE,
        ) from error


def _make_passable(folder: Path) -> None:
    """Make a folder that other accounts may pass through; one that exists keeps its mode."""
    try:
        folder.mkdir()
    except FileExistsError:
        return
    folder.chmod(0o755)  # root's umask may be 077


def _key(client: Path) -> str:
    """The folder name of a home: `default` for root's own, else its name and a hash of its path."""
    # root's own home by the user list: HOME may be another user's (sudo), and two homes mean two servers.
    if client == (Path(pwd.getpwuid(0).pw_dir) / ".foldtune").resolve():
        return "default"
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", client.name).strip("-")[:32]
    return f"{name or 'home'}-{hashlib.sha256(os.fsencode(client)).hexdigest()[:12]}"


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except FileNotFoundError:
        return None


def _write_private(path: Path, text: str) -> None:
    """Replace a file in one step, readable by its owner alone."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
