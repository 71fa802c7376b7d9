"""Places where this process can be made to die, so that a test can die at every one of them.

FOLDTUNE_CRASH_AT names one, as `name` or `name@n` for the n-th time it is reached (the first is 1): the process kills
itself there with SIGKILL. FOLDTUNE_CRASH_LOG names a file to which every place reached is appended, a line each.
Statements of the database are places too, see `database.engine`. Without either variable nothing happens.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

_reached: Counter[str] = Counter()
_at: str | None = None
_log: Path | None = None


def arm(at: str | None, log: Path | None = None) -> None:
    """Die at this place, and write down every place reached; None: not. Counting starts anew."""
    global _at, _log
    _at, _log = at, log
    _reached.clear()


def armed() -> bool:
    """Whether anything is asked for."""
    return _at is not None or _log is not None


def reach(name: str) -> None:
    """This process is at the place `name` now."""
    if not armed():
        return
    _reached[name] += 1
    place = f"{name}@{_reached[name]}"
    if _log is not None:
        with _log.open("a", encoding="utf-8") as file:
            file.write(place + "\n")
    if _at in (place, name):
        os.kill(os.getpid(), signal.SIGKILL)


_file = os.environ.get("FOLDTUNE_CRASH_LOG")
arm(os.environ.get("FOLDTUNE_CRASH_AT"), Path(_file) if _file else None)
