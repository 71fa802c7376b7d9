"""Keeps a worker's leases alive, whatever its other threads are at."""

from __future__ import annotations

import threading

from orchestrator import leases, lifecycle, workers
from orchestrator.errors import TRY_AGAIN, FoldtuneError
from trial_worker.desk import Desk, Left, Lost, Trouble


class Renewer(threading.Thread):
    """Every few seconds: sign of life, leases renewed, what was lost reported."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(name="renewer", daemon=True)
        self.desk = desk
        self.stopped = threading.Event()

    def run(self) -> None:
        try:
            while not self.stopped.wait(lifecycle.RENEW_SECONDS):
                self.desk.line.persist(self._renew)
        except BaseException as error:
            if not self.stopped.is_set():
                self.desk.inbox.put(Trouble(error))

    def _renew(self) -> None:
        desk = self.desk
        pulse = workers.beat(desk.engine, desk.worker, desk.device)
        desk.others = pulse.others
        if not pulse.claimed:
            raise FoldtuneError(
                f"{desk.device.name} was claimed by another worker while this one was stopped", code=TRY_AGAIN
            )
        renewal = leases.renew(desk.engine, desk.held) if desk.held else None
        if renewal is None:
            return
        for fenced in renewal.lost:
            if desk.trains(fenced.lease):  # else the courier is telling its end just now
                desk.note("fenced", fenced.lease)
                desk.let_go(fenced.lease)
                desk.inbox.put(Lost(fenced.lease, fenced.message, bool(fenced.closed)))
        for unit, seconds in renewal.seconds_left.items():
            desk.inbox.put(Left(unit, seconds))
