"""Faults at a pace that the machine bears."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from benchmarks.chaos import collect, processes
from benchmarks.chaos.fleet import Fleet
from benchmarks.chaos.inject import Injector
from benchmarks.chaos.postgres import Postgres
from benchmarks.chaos.proxy import Proxy
from benchmarks.chaos.schedule import Fault

FIRST_PACE = 1.0  # seconds between two kills, to begin with
FASTEST, SLOWEST = 0.3, 4.0
POLL_SECONDS = 0.5
TALK_SECONDS = 10.0
TICK_SECONDS = 0.03
MOST_FINDINGS = 10  # workers that ended by a bug: there is no use in going on
MOST_TRIES = 200  # of a fault that finds no victim


def talk(line: str) -> None:
    """Progress, for people."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


class Storm:
    """Faults at a pace that the machine bears, until the study is complete or the time is over."""

    def __init__(
        self, fleet: Fleet, postgres: Postgres, proxies: Sequence[Proxy], spool: Path, faults: Sequence[Fault]
    ) -> None:
        self.fleet = fleet
        self.postgres = postgres
        self.injector = Injector(fleet, postgres, proxies, spool)
        self.faults = deque((fault, 0) for fault in faults)
        self.pace = FIRST_PACE
        self.stuck: list[str] = []
        self.skipped: dict[str, int] = {}
        self.complete = False
        self._next_poll = self._next_talk = 0.0

    def rage(self, seconds: float) -> None:
        """Go through the faults and wait for the end of the study."""
        deadline = time.monotonic() + seconds
        due = time.monotonic() + 3.0
        while time.monotonic() < deadline and not self.complete and len(self.fleet.findings) < MOST_FINDINGS:
            self.fleet.fill()
            self.injector.tick()
            if self.faults and time.monotonic() >= due:
                due = time.monotonic() + self._next_fault()
            self._poll()
            time.sleep(TICK_SECONDS)

    def _next_fault(self) -> float:
        """Try the next fault; seconds until the one after it."""
        fault, tries = self.faults.popleft()
        training = len(self.fleet.busy(processes.table())) if fault.kills else 0
        if self.injector.inject(fault):
            self._adapt(fault, training)
            return self.faults[0][0].gap * self.pace if self.faults else 0.0
        if tries + 1 < MOST_TRIES:
            self.faults.insert(3, (fault, tries + 1))
        else:
            self.skipped[fault.kind.value] = self.skipped.get(fault.kind.value, 0) + 1
        return 0.1

    def _adapt(self, fault: Fault, training: int) -> None:
        """Slower where fewer than half of the workers trained when it came."""
        if fault.kills:
            slower = training * 2 < len(self.fleet.places)
            self.pace = min(SLOWEST, self.pace * 1.1) if slower else max(FASTEST, self.pace * 0.9)

    def _poll(self) -> None:
        """How far the study is; whether anything is stuck."""
        now = time.monotonic()
        if now < self._next_poll or self.injector.database_away:
            return
        self._next_poll = now + POLL_SECONDS
        if self.fleet.living():
            self.stuck += [
                line
                for [line] in self.postgres.ask(collect.STUCK.format(bound=collect.BOUND)) or []
                if line not in self.stuck
            ]
        rows = self.postgres.ask("SELECT CAST(state AS text) FROM study")
        self.complete = bool(rows) and rows != [("open",)]
        if now >= self._next_talk:
            self._next_talk = now + TALK_SECONDS
            done = self.postgres.ask("SELECT count(*) FILTER (WHERE state = 'done'), count(*) FROM unit")
            talk(
                f"{self.injector.killed} killed, {self.fleet.started} workers started, units done {done and done[0]}, "
                f"{len(self.faults)} faults to come, pace {self.pace:.2f} s"
            )
