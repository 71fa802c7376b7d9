"""What the threads of one worker share, and what they tell its foreman."""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from orchestrator.contract import Checkpoint, EpochDone, Outcome, UnitEnded
from orchestrator.devices import Device
from orchestrator.records import Lease, StudyRecord
from orchestrator.waiting import Opened
from trial_worker.line import Line
from trial_worker.spool import Delivery, Spool


@dataclass(frozen=True)
class Wanted:
    """What the supervisor could train.

    slots: units at once. study: only of this study; None: of any. opened: the model that is loaded, where it is one of
    several of its study.
    """

    slots: int = 0
    study: str | None = None
    opened: Opened | None = None


@dataclass(frozen=True)
class Taken:
    """A unit to train, with everything it needs on this machine."""

    record: StudyRecord
    lease: Lease
    data: Path
    resume: Checkpoint | None


@dataclass(frozen=True)
class Lost:
    """A lease that is gone. closed: nobody else trains the unit now, so that there is no hurry to stop."""

    lease: Lease
    message: str
    closed: bool


@dataclass(frozen=True)
class Left:
    """Device seconds that a unit may still take."""

    unit: int
    seconds: float


class AllDone:
    """The named studies have ended, or cannot be trained here."""


@dataclass(frozen=True)
class Trouble:
    """A thread cannot go on."""

    error: BaseException


@dataclass
class Desk:
    """What the threads of one worker share. Each field is replaced whole, never changed in place."""

    engine: Engine
    worker: int
    device: Device
    names: tuple[str, ...]  # of the studies to work on; empty: all that are open
    spool: Spool
    cache: Path  # for data snapshots
    inbox: queue.Queue[Any]
    say: Callable[[str], None]
    line: Line
    wanted: Wanted = Wanted()
    slots: int = 1  # units that the trainer can train at once
    others: int = 0  # other workers that live
    held: tuple[Lease, ...] = ()  # leases to renew: until their end is delivered
    ended: frozenset[str] = frozenset()  # tokens of those whose end waits in the spool
    refused: frozenset[str] = frozenset()  # studies that this machine cannot train

    def __post_init__(self) -> None:
        self.guard = threading.Lock()
        folder = os.environ.get("FOLDTUNE_HISTORY")
        self.history = Path(folder) / f"{os.getpid()}.jsonl" if folder else None

    def hold(self, lease: Lease) -> None:
        """Renew this lease from now on."""
        with self.guard:
            self.held = (*self.held, lease)

    def let_go(self, lease: Lease) -> None:
        """Renew it no more."""
        with self.guard:
            self.held = tuple(other for other in self.held if other.token != lease.token)
            self.ended -= {lease.token}

    def deliver(self, delivery: Delivery) -> None:
        """Have the clerk tell the database; on disk before this returns, if the disk has room."""
        if isinstance(delivery.message, UnitEnded):
            with self.guard:
                self.ended |= {delivery.lease.token}
        failure = self.spool.add(delivery)
        if failure is not None:
            self.say(f"{self.spool.folder} takes no results ({failure.strerror}); they wait in memory")

    def untold(self) -> list[Lease]:
        """Held leases whose end is not known yet: what trains, or is about to."""
        with self.guard:
            return [lease for lease in self.held if lease.token not in self.ended]

    def tokens(self) -> list[str]:
        """Of all leases that this worker knows of."""
        return [lease.token for lease in self.held]

    def trains(self, lease: Lease) -> bool:
        """Whether the lease is ours as far as we know, and its end is still to come."""
        with self.guard:
            return lease.token not in self.ended and any(other.token == lease.token for other in self.held)

    def note_acknowledged(self, delivery: Delivery) -> None:
        """The database has this."""
        message = delivery.message
        if isinstance(message, EpochDone):
            self.note("accepted", delivery.lease, epoch=message.epoch)
        else:
            self.note("released" if message.outcome == Outcome.DROPPED else "ended", delivery.lease)

    def note(self, event: str, lease: Lease, **more: Any) -> None:
        """Write down what the database acknowledged, for a checker to compare (FOLDTUNE_HISTORY)."""
        if self.history is None:
            return
        entry = {"time": time.time(), "event": event, "unit": lease.unit, "lease_epoch": lease.epoch}
        with self.history.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**entry, "attempt": lease.attempt, **more}) + "\n")
