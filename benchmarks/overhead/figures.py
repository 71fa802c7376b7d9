"""From what the workers logged to the figures (pure)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

MINUTE = 60.0
LIMIT = 0.01  # of wall time
FLEET = 64  # workers that the limit speaks of
LIFE = 10_000 / FLEET  # trials that one of them trains in such a study; its start is a part of what they cost
ON_THE_WAY = ("take", "report", "finish")  # a worker waits for these; renewals have a thread of their own


def quantile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that at least this share of the values do not exceed; None without values."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def spread(values: Sequence[float]) -> dict[str, float | int | None]:
    """Number, mean, median, 95th percentile and greatest, in seconds."""
    mean = sum(values) / len(values) if values else None
    found = {"mean": mean, "median": quantile(values, 0.5), "p95": quantile(values, 0.95), "max": quantile(values, 1)}
    return {"calls": len(values), **{name: figure(value) for name, value in found.items()}}


def figure(value: float | None) -> float | None:
    """Three significant digits."""
    return None if value is None else float(f"{value:.3g}")


def of_window(
    logs: Sequence[Mapping[str, Any]], *, wall: float, server_cpu: float, training: bool = True
) -> dict[str, Any]:
    """The figures of one window. A trial is a minute of simulated training, whatever units that was.

    logs: of each worker: waits, trained, units, away, fenced, idle, statements, cpu. training: in real time; else the
    workers did nothing but wait, and their throughput is what the database and this machine can carry.
    """
    trials = sum(log["trained"] for log in logs) / MINUTE
    waits = {name: [wait for log in logs for wait in log["waits"][name]] for name in logs[0]["waits"]}
    waiting = sum(sum(waits[name]) for name in ON_THE_WAY)
    first = sum(waits["first"]) / len(waits["first"]) if waits["first"] else 0.0
    rate = trials / wall * 60
    found: dict[str, Any] = {
        "seconds": figure(wall),
        "trials": figure(trials),
        "units": sum(log["units"] for log in logs),
        "waits": {name: spread(values) for name, values in waits.items()},
        "waiting_per_trial": _per(waiting, trials),
        "renewing_per_trial": _per(sum(waits["renew"]), trials),
        "client_cpu_per_trial": _per(sum(log["cpu"] for log in logs), trials),
        "server_cpu_per_trial": _per(server_cpu, trials),
        "cpu_share_of_1_minute_trials": _per(sum(log["cpu"] for log in logs) + server_cpu, trials * MINUTE),
        "statements_per_trial": _per(sum(log["statements"] for log in logs), trials),
        "tried_again": sum(log["away"] for log in logs),
        "fenced": sum(log["fenced"] for log in logs),
        "idle_looks": sum(log["idle"] for log in logs),
    }
    found["share_of_1_minute_trials"] = _per(waiting / trials + first / LIFE, MINUTE) if trials else None
    if not training:
        found["trials_per_minute"] = figure(rate)
        found["utilisation_by_64_workers"] = _per(FLEET, rate)
    return found


def _per(amount: float, of: float) -> float | None:
    return figure(amount / of) if of else None


def growth(smaller: tuple[int, float], larger: tuple[int, float]) -> float | None:
    """The exponent p of seconds ~ trials^p between two points (trials, seconds); None where one took no time."""
    (few, short), (many, long) = smaller, larger
    if few == many or short <= 0 or long <= 0:
        return None
    return round(math.log(long / short) / math.log(many / few), 2)


def holds(points: Sequence[Mapping[str, Any]]) -> bool | None:
    """Whether orchestration took under 1 % of 1-minute trials wherever 64 workers were measured; None: nowhere."""
    shares = [point["paced"]["share_of_1_minute_trials"] for point in points if point["workers"] >= FLEET]
    return all(share is not None and share < LIMIT for share in shares) if shares else None
