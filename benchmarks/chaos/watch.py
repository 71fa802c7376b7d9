"""What is looked at all the time while a run lasts: orphans, and secrets where anybody can read them."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

from benchmarks.chaos import collect, processes
from benchmarks.chaos.processes import Process

LOOK_SECONDS = 0.25
ORPHAN_SECONDS = 2.0  # a trainer may outlive its supervisor so long
SCAN_EVERY = 8  # looks at the processes between two scans of the spool


class Watch(threading.Thread):
    """Looks around until it is stopped. mark: what stands in the environment of every process of the run."""

    def __init__(self, mark: str, canary: str, spool: Path) -> None:
        super().__init__(name="watch", daemon=True)
        self.mark = mark
        self.canary = canary
        self.spool = spool
        self.orphans: list[str] = []
        self.secrets: set[str] = set()
        self.trainers: set[int] = set()  # every one that was ever seen
        self._since: dict[int, float] = {}
        self._ended = threading.Event()

    def run(self) -> None:
        looks = 0
        while not self._ended.wait(LOOK_SECONDS):
            self.look(processes.table(), time.monotonic())
            looks += 1
            if looks % SCAN_EVERY == 0:
                self._scan()

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()
        self.join(5)

    def look(self, table: dict[int, Process], now: float) -> None:
        """One look at the processes."""
        for process in table.values():
            if self.canary and self.canary in process.command:
                self.secrets.add(f"the command line of process {process.pid} holds the password")
        orphaned = {pid for pid in self._ours(table) if not _supervised(table[pid], table)}
        self._since = {pid: self._since.get(pid, now) for pid in orphaned}
        for pid, since in self._since.items():
            if since + ORPHAN_SECONDS < now:
                text = f"trainer {pid} has outlived its supervisor"
                if text not in self.orphans:
                    self.orphans.append(text)

    def _ours(self, table: dict[int, Process]) -> set[int]:
        trainers = {process.pid for process in table.values() if processes.is_trainer(process)}
        self.trainers |= {pid for pid in trainers - self.trainers if processes.belongs_to(pid, self.mark)}
        return self.trainers & trainers

    def _scan(self) -> None:
        with contextlib.suppress(OSError):  # a file may be delivered and removed while we look
            self.secrets.update(collect.secrets_in_files([self.spool], self.canary))


def _supervised(trainer: Process, table: dict[int, Process]) -> bool:
    parent = table.get(trainer.parent)
    return parent is not None and "trial_worker" in parent.command and parent.state != "Z"
