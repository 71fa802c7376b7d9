"""Figures of a run, from its evidence (pure)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.chaos.evidence import Attempt, Evidence

PEACE = 20.0  # a restarted server leaves leases alone for 10 s; a worker looks again after as many


@dataclass(frozen=True)
class Kill:
    """A supervisor that was killed, alone or with its trainer."""

    time: float
    pid: int


@dataclass(frozen=True)
class Recovery:
    """A unit of a killed worker, leased again."""

    seconds: float  # from the kill until somebody had it
    claimable: float  # from the kill until anybody could have it: the dead worker's lease was ended
    killed: float  # when, seconds since 1970
    pid: int
    unit: int
    lease_epoch: int
    cause: str | None  # how the lease of the killed worker ended


def recoveries(evidence: Evidence, kills: Sequence[Kill]) -> list[Recovery]:
    """Every unit that a killed worker held and that was leased again, the soonest first.

    Not in it: units that another worker could end from what the dead one left on disk.
    """
    found = []
    for kill in kills:
        workers = [w for w in evidence.workers if w.pid == kill.pid and w.started_at.timestamp() <= kill.time]
        if not workers:
            continue  # killed before it was entered
        worker = max(workers, key=lambda worker: worker.started_at)
        for held in evidence.attempts:
            if held.worker == worker.id and _held(held, kill.time):
                again = [
                    other.granted_at.timestamp()
                    for other in evidence.attempts
                    if other.unit == held.unit and other.lease_epoch > held.lease_epoch
                ]
                if again:
                    seconds = min(again) - kill.time
                    free = held.ended_at.timestamp() - kill.time if held.ended_at else seconds
                    found.append(Recovery(seconds, free, kill.time, kill.pid, held.unit, held.lease_epoch, held.cause))
    return sorted(found, key=lambda recovery: recovery.seconds)


def in_peace(recovered: Sequence[Recovery], outages: Sequence[tuple[float, float]]) -> list[Recovery]:
    """Those between whose kill and lease's end no server and no network was away, nor for `PEACE` seconds before."""
    return [
        recovery
        for recovery in recovered
        if not any(
            start < recovery.killed + recovery.claimable and recovery.killed - PEACE < end for start, end in outages
        )
    ]


def _held(attempt: Attempt, time: float) -> bool:
    ended = attempt.ended_at
    return attempt.granted_at.timestamp() <= time and (ended is None or ended.timestamp() > time)


def wasted_fraction(evidence: Evidence) -> float:
    """Share of the device seconds of all steps and evaluations that is in no accepted result."""
    kept = sum(result.seconds for result in evidence.results)
    return max(0.0, 1 - kept / evidence.seconds_trained) if evidence.seconds_trained else 0.0


def median(values: Sequence[float]) -> float | None:
    """The middle one, the higher of two; None without any."""
    return sorted(values)[len(values) // 2] if values else None
