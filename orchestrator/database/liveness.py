"""Which processes of a server live, whatever its pid file says."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

from orchestrator.database.home import Home


def postmaster(home: Home) -> int | None:
    """The process id of the running server, or None: a pid file alone may be older than its process's death."""
    try:
        pid = int((home.data / "postmaster.pid").read_text(encoding="utf-8").split("\n", 1)[0])
    except (FileNotFoundError, PermissionError, ValueError):
        return None
    return pid if _is_postgres_in(pid, home.data) else None


def end_orphans(home: Home) -> None:
    """Kill what a dead server left: a backend in a long query outlives it, and no new server starts beside it.

    Committed rows are safe; the next start recovers as after any crash.
    """
    if not sys.platform.startswith("linux") or postmaster(home) is not None:
        return
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _is_postgres_in(int(entry.name), home.data):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(entry.name), signal.SIGKILL)


def remove_stale_pid(home: Home) -> None:
    """Remove the pid file of a server that died: its number may belong to another process by now, or to a zombie.

    Safe while the lifeline is ours, for no process of that server lives. One started by hand holds no
    lifeline: it keeps its file, and Postgres refuses to start beside it.
    """
    if postmaster(home) is None:
        (home.data / "postmaster.pid").unlink(missing_ok=True)


def _is_postgres_in(pid: int, data: Path) -> bool:
    """Whether a process is alive and one of the server's, which all work in the data directory."""
    if not sys.platform.startswith("linux"):
        try:
            os.kill(pid, 0)
        except (ProcessLookupError, PermissionError):
            return False
        return True
    process = Path("/proc", str(pid))
    try:
        # Not the directory alone: it may be an administrator's shell. A zombie has no directory.
        name = (process / "comm").read_text(encoding="utf-8", errors="replace").strip()
        return name == "postgres" and os.readlink(process / "cwd") == os.path.realpath(data)
    except OSError:
        return False
