"""Which fault comes when: a function of the seed and of how many processes are to be killed (pure)."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What is done."""

    KILL_SUPERVISOR = "kill -9 of the supervisor"
    KILL_TRAINER = "kill -9 of the trainer"
    KILL_BOTH = "kill -9 of both"
    PAUSE = "SIGSTOP for less than a lease"
    PAUSE_LONG = "SIGSTOP for more than a lease"
    TERMINATE = "SIGTERM"
    INTERRUPT_TWICE = "SIGINT twice"
    CRASH_DATABASE = "Postgres -m immediate, started again"
    DATABASE_AWAY = "Postgres -m immediate, away for seconds"
    TERMINATE_BACKENDS = "pg_terminate_backend of all"
    FREEZE_BACKEND = "SIGSTOP of a backend"
    DELAY = "network: half a second late"
    STALL = "network: stalls"
    DROP_TO_SERVER = "network: nothing reaches the server"
    DROP_TO_CLIENT = "network: nothing reaches the worker"
    SWALLOW_COMMIT = "network: the reply to COMMIT is lost"
    CUT = "network: connections cut"
    DAMAGE_STATE = "a stored checkpoint is damaged"
    DAMAGE_FILE = "a checkpoint file is damaged"


# Nobody can be told anything meanwhile: a dead worker's lease is looked at when the database is there again.
OUTAGES = frozenset(
    kind for kind in Kind if kind.startswith(("Postgres", "pg_", "network")) or kind == "SIGSTOP of a backend"
)

KILLS = {Kind.KILL_SUPERVISOR: 0.45, Kind.KILL_TRAINER: 0.35, Kind.KILL_BOTH: 0.2}  # shares of all kills

# kind -> (how many beside 40 kills, shortest seconds, longest seconds)
OTHERS: dict[Kind, tuple[float, float, float]] = {
    Kind.PAUSE: (3, 1, 8),
    Kind.PAUSE_LONG: (1, 34, 40),
    Kind.TERMINATE: (4, 0, 0),
    Kind.INTERRUPT_TWICE: (2, 0.1, 1.5),
    Kind.CRASH_DATABASE: (2, 0, 0),
    Kind.DATABASE_AWAY: (1, 2, 5),
    Kind.TERMINATE_BACKENDS: (3, 0, 0),
    Kind.FREEZE_BACKEND: (2, 3, 13),
    Kind.DELAY: (1, 3, 6),
    Kind.STALL: (2, 3, 12),
    Kind.DROP_TO_SERVER: (1, 3, 12),
    Kind.DROP_TO_CLIENT: (1, 3, 12),
    Kind.SWALLOW_COMMIT: (5, 0, 0),
    Kind.CUT: (3, 0, 0),
    Kind.DAMAGE_STATE: (3, 0, 0),
    Kind.DAMAGE_FILE: (2, 0, 0),
}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that happens.

    gap: time since the fault before, in units of the run's pace. pick: which of the possible victims, 0 <= pick < 1.
    seconds: how long it lasts, where it lasts. busy: the victim should have a trainer; else any will do, one that
    is only starting too.
    """

    kind: Kind
    gap: float
    pick: float
    seconds: float = 0.0
    busy: bool = True

    @property
    def kills(self) -> int:
        """Processes that it kills outright, for the count of kills."""
        return {Kind.KILL_SUPERVISOR: 1, Kind.KILL_TRAINER: 1, Kind.KILL_BOTH: 2}.get(self.kind, 0)


def plan(seed: int, kills: int) -> tuple[Fault, ...]:
    """Faults that kill just so many processes, others between them in their proportion. Equal seeds, equal plans."""
    draw = random.Random(f"chaos {seed}")
    strikes: list[Fault] = []
    left = kills
    while left > 0:
        kind = draw.choices(list(KILLS), list(KILLS.values()))[0]
        fault = _fault(draw, kind, 0.0, 0.0)
        if fault.kills <= left:
            strikes.append(fault)
            left -= fault.kills
    others = [
        _fault(draw, kind, low, high)
        for kind, (share, low, high) in OTHERS.items()
        for _ in range(_rounded(draw, share * kills / 40))
    ]
    faults = strikes + others
    draw.shuffle(faults)
    # A long pause must begin early, or the run would wait for it with nothing else going on.
    early = [fault for fault in faults if fault.kind == Kind.PAUSE_LONG and kills <= 60]
    rest = [fault for fault in faults if fault not in early]
    return tuple(rest[:2] + early + rest[2:])


def _fault(draw: random.Random, kind: Kind, low: float, high: float) -> Fault:
    return Fault(
        kind=kind,
        gap=draw.expovariate(1.0) * 0.5 + 0.5 if kind in KILLS else draw.uniform(0.1, 0.5),
        pick=draw.random(),
        seconds=round(draw.uniform(low, high), 2),
        busy=draw.random() < 0.8,
    )


def _rounded(draw: random.Random, number: float) -> int:
    """Up or down by chance, so that short runs get rare faults at times."""
    return int(number) + (draw.random() < number % 1)
