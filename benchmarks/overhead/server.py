"""CPU seconds of a Postgres server: of its postmaster, and of all children that it has or had."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(postmaster: int) -> float:
    """User and system time so far. Linux only."""
    total = sum(_times(postmaster, ended=True))
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and _parent(int(folder.name)) == postmaster:
            total += sum(_times(int(folder.name)))
    return total / TICKS


def postmaster_of(data: Path) -> int:
    """Its process id."""
    return int((data / "postmaster.pid").read_text(encoding="ascii").split()[0])


def _times(pid: int, *, ended: bool = False) -> list[int]:
    fields = _fields(pid)
    return [int(field) for field in fields[11 : 15 if ended else 13]]


def _parent(pid: int) -> int | None:
    fields = _fields(pid)
    return int(fields[1]) if fields else None


def _fields(pid: int) -> list[str]:
    """Of /proc/PID/stat, from the state on: the name before it may hold spaces. Empty for a process that is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return []
