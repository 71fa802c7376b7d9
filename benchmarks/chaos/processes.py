"""What /proc says of this machine's processes. Linux only."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """One process; a zombie has no command line."""

    pid: int
    parent: int
    state: str  # R, S, D, T (stopped), Z
    command: str  # arguments with blanks between them


def table() -> dict[int, Process]:
    """Every process that can be seen now."""
    return {process.pid: process for process in _all()}


def _all() -> Iterator[Process]:
    for name in os.listdir("/proc"):
        if name.isdigit() and (found := one(int(name))) is not None:
            yield found


def one(pid: int) -> Process | None:
    """A process, or None if there is none of that number."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
    except (OSError, ValueError):
        return None
    return Process(pid, int(parent), state, command)


def alive(pid: int) -> bool:
    """Whether a process runs or is stopped; a zombie does not."""
    found = one(pid)
    return found is not None and found.state != "Z"


def trainer_of(supervisor: int, processes: Mapping[int, Process]) -> int | None:
    """The living trainer of a supervisor."""
    for process in processes.values():
        if process.parent == supervisor and is_trainer(process):
            return process.pid
    return None


def is_trainer(process: Process) -> bool:
    """Whether a process is a trainer, of whatever study."""
    return "trial_worker.trainer" in process.command and process.state != "Z"


def belongs_to(pid: int, mark: str) -> bool:
    """Whether a process was given `mark` in its environment, as everything that a run starts is."""
    try:
        return mark.encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def send(pid: int, number: int) -> bool:
    """Send a signal; whether there was a process to take it."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def end(pids: set[int]) -> None:
    """Kill what is left of these, and only these."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
