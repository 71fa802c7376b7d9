"""The unprivileged account that runs Postgres when root calls: Postgres refuses root."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import UNAVAILABLE, FoldtuneError

NAME = "foldtune"


@dataclass(frozen=True)
class Account:
    name: str
    uid: int
    gid: int

    def identity(self) -> dict[str, Any]:
        """Keyword arguments that make subprocess run a command as this account and nothing more."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []}


def server_account(server: Path) -> Account | None:
    """Who runs the server whose files are in a folder; None for the caller, who is not root.

    A folder that exists keeps its owner: data of one account is refused to a server of another.
    """
    if os.geteuid() != 0:
        return None
    if server.exists() and (owner := server.stat().st_uid) != 0:
        return _by_uid(owner)
    return _by_name(NAME) or _created() or _nobody()


def hand_over(folder: Path, account: Account | None) -> None:
    """Make a folder that only the server's account can enter.

    Raises FoldtuneError if the account cannot get there: no parent is opened for it.
    """
    if account is None:
        return
    folder.mkdir(mode=0o700, exist_ok=True)
    os.chown(folder, account.uid, account.gid)
    try:
        probe = subprocess.run(
            ["/bin/sh", "-c", 'cd "$0"', str(folder)],
            cwd="/",
            capture_output=True,
            check=False,
            **account.identity(),
        )
    except OSError as error:
        raise FoldtuneError(
            f"root must be able to run Postgres as {account.name}, got: {error.strerror}",
            help="run foldtune as an ordinary user, or name another Postgres with --storage",
            code=UNAVAILABLE,
        ) from error
    if probe.returncode != 0:
        raise FoldtuneError(
            f"{account.name}, who runs Postgres for root, cannot enter {folder}",
            help="set FOLDTUNE_SYSTEM_HOME to a folder whose parents let every user pass",
            code=UNAVAILABLE,
        )


def _created() -> Account | None:
    """A system account made for the purpose, or None where the machine does not allow it."""
    useradd = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if useradd is None:
        return None
    options = ["--system", "--no-create-home", "--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin"]
    subprocess.run([useradd, *options, NAME], cwd="/", capture_output=True, check=False)
    return _by_name(NAME)  # also where another process was faster


def _nobody() -> Account:
    account = _by_name("nobody")
    if account is None:
        raise FoldtuneError(
            "as root, Postgres needs an unprivileged account, got neither foldtune nor nobody",
            help="create one: useradd --system foldtune",
            code=UNAVAILABLE,
        )
    return account


def _by_name(name: str) -> Account | None:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    # An account of this name with root's number would be refused by Postgres, and deserves to be.
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid) if entry.pw_uid != 0 else None


def _by_uid(uid: int) -> Account:
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return Account(f"user {uid}", uid, uid)
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
