"""How many units a worker holds: one for each slot, and the next one shortly before its slot is free (pure)."""

from __future__ import annotations

from collections.abc import Iterable

# A take waits 0.2 s for the database at times, and longer for a suggestion or a checkpoint. A worker without work waits
# so long at most for a unit that another has taken ahead.
AHEAD_SECONDS = 2.0
# Forecasts waver, and each unit given back is one more attempt: only what was taken far too early goes back.
KEEP_SECONDS = 10.0


def room(slots: int, to_go: Iterable[float], *, within: float) -> int:
    """Units to hold: one for each slot, and one more for each that is free within so many seconds.

    to_go: seconds until the end of each held unit as the trainer forecast it, infinite without a forecast. One that
    should have ended long ago has none any more: its trainer hangs, or begins its epoch anew.
    """
    return slots + sum(-KEEP_SECONDS <= seconds <= within for seconds in to_go)
