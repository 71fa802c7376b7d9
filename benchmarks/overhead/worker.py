"""One simulated worker: the product's own calls in the order of a real one, and sleep or nothing for training."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from sqlalchemy import Engine

from benchmarks.overhead.study import EPOCHS
from orchestrator import leases, lifecycle, trials, workers
from orchestrator.contract import EpochDone, Outcome, Predictions, UnitEnded, pack_floats
from orchestrator.devices import Device
from orchestrator.errors import UNAVAILABLE, FoldtuneError
from orchestrator.leases import Fenced
from orchestrator.records import Lease

CPU = Device("cpu")
RETRY_SECONDS = 0.2
TRIES = 50


@dataclass
class Log:
    """What the worker waited for, and how much it trained. first: the take with which its process began."""

    waits: dict[str, list[float]] = field(
        default_factory=lambda: {"first": [], "take": [], "report": [], "finish": [], "renew": []}
    )
    units: int = 0
    trained: float = 0.0  # simulated device seconds
    away: int = 0  # calls that ended with "try again"
    fenced: int = 0
    idle: int = 0  # looks for work that found none


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast: `sleep` is time.sleep, or nothing."""

    unit_seconds: float
    sleep: Callable[[float], None] | None


def begin(engine: Engine, worker: int, name: str) -> float:
    """Train one unit: connections are open then, and the past is read. Seconds of the take."""
    log = Log()
    work(engine, worker, name, Pace(unit_seconds=1.0, sleep=None), lambda: log.units >= 1, log)
    return sum(log.waits["take"])


def work(engine: Engine, worker: int, name: str, pace: Pace, over: Callable[[], bool], log: Log) -> None:
    """Take, train and finish until `over`; what is held then goes back."""
    while not over():
        taken = _waited(log, "take", lambda: trials.take(engine, worker, [name], held=()))
        if taken is None:
            log.idle += 1
            time.sleep(lifecycle.LOOK_SECONDS)
            continue
        try:
            _train(engine, worker, name, taken[1], pace, over, log)
        except Fenced:
            log.fenced += 1
    leases.release_all(engine, worker)


def _train(
    engine: Engine, worker: int, name: str, lease: Lease, pace: Pace, over: Callable[[], bool], log: Log
) -> None:
    epoch_seconds = pace.unit_seconds / EPOCHS
    since = Random(lease.unit).uniform(0, lifecycle.RENEW_SECONDS)  # the renewer is not in step with the epochs
    for epoch in range(1, EPOCHS + 1):
        left = epoch_seconds
        while left > 0:
            step = min(left, lifecycle.RENEW_SECONDS - since)
            if pace.sleep is not None:
                pace.sleep(step)
            log.trained += step
            left, since = left - step, since + step
            if since >= lifecycle.RENEW_SECONDS:
                since = 0.0
                _renew(engine, worker, lease, log)
                if over():
                    return
        done = epoch_done(lease, epoch)
        _waited(log, "report", lambda done=done: trials.report(engine, lease, [done]))
    ended = UnitEnded(unit=lease.unit, lease_epoch=lease.epoch, outcome=Outcome.DONE)
    _waited(log, "finish", lambda: trials.finish(engine, name, lease, ended))
    log.units += 1


def _renew(engine: Engine, worker: int, lease: Lease, log: Log) -> None:
    def renew() -> leases.Renewal:
        workers.beat(engine, worker, CPU)
        return leases.renew(engine, [lease])

    for fenced in _waited(log, "renew", renew).lost:
        raise fenced


def _waited(log: Log, what: str, call: Callable[[], Any]) -> Any:
    """The answer, asked for again while the database is busy; the seconds go to the log in any case."""
    began = time.perf_counter()
    try:
        for attempt in range(TRIES):
            try:
                return call()
            except Fenced:
                raise
            except FoldtuneError as error:
                if error.code != UNAVAILABLE or attempt == TRIES - 1:
                    raise
                log.away += 1
                time.sleep(RETRY_SECONDS)
        raise AssertionError
    finally:
        log.waits[what].append(time.perf_counter() - began)


def epoch_done(lease: Lease, epoch: int) -> EpochDone:
    """One epoch's report, of 48 rows; the loss is the configuration's own, and a little the fold's."""
    items = 48
    loss = (
        (0.4 + 0.5 * Random(lease.configuration).random()) * (1 + 0.02 * (lease.fold - 2)) * (1.3 if epoch == 1 else 1)
    )
    return EpochDone(
        unit=lease.unit,
        lease_epoch=lease.epoch,
        epoch=epoch,
        train_loss=loss,
        seconds=1.0,
        tallies={
            "nats": loss * items,
            "items": items,
            "correct": 40,
            "tp": [20, 20],
            "fp": [4, 4],
            "fn": [4, 4],
            "bins": [[0, 0.0, 0]] * 14 + [[items, 0.9 * items, 40]],
        },
        predictions=Predictions(nats=pack_floats([loss] * items), counts=pack_floats([1.0] * items)),
    )
