"""The workers of a run: started by the same command again and again, whatever became of the one before."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.engine import URL

from benchmarks.chaos import processes
from benchmarks.chaos.evidence import read_history
from benchmarks.chaos.processes import Process

ROOT = Path(__file__).parents[2]
ORDERLY = frozenset({0, 69, 75, 130, 143, -9, -15, -2})  # 69: the database was away when it started
TAIL_LINES = 12
PATIENCE = 20.0  # seconds in which workers leave by themselves once a study has ended


@dataclass
class Worker:
    """A supervisor. struck: what was done to it that ends it."""

    process: subprocess.Popen[bytes]
    log: Path
    started: float
    struck: str = ""
    struck_at: float = 0.0
    paused: bool = False

    @property
    def pid(self) -> int:
        return self.process.pid


class Fleet:
    """So many workers, each in its place.

    urls: where the worker in each place finds the database. history: folder in which workers write down their leases.
    homes: folder for the workers' homes. Those in even places are one machine and share one; each in an odd place is
        on a machine of its own that nobody comes back to, so that only its lease says when its units are free. None:
        the environment says.
    """

    def __init__(
        self,
        command: Sequence[str],
        urls: Sequence[URL],
        logs: Path,
        environment: Mapping[str, str],
        history: Path | None = None,
        homes: Path | None = None,
    ) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self.command = list(command)
        self.urls = list(urls)
        self.logs = logs
        self.environment = dict(environment)
        self.history = history
        self.homes = homes
        self.places: list[Worker | None] = [None] * len(self.urls)
        self.started = 0
        self.exits: Counter[int] = Counter()
        self.findings: list[str] = []
        self.leaving: list[float] = []  # seconds from SIGTERM to the end
        self._not_before = [0.0] * len(self.urls)

    def fill(self) -> None:
        """Replace whoever has ended: a killed one at once, one that ended by itself after a second."""
        self.look()
        for place, worker in enumerate(self.places):
            if worker is None and time.monotonic() >= self._not_before[place]:
                self.places[place] = self._start(place)

    def look(self) -> None:
        """Take down who has ended, and how."""
        for place, worker in enumerate(self.places):
            if worker is None or (code := worker.process.poll()) is None:
                continue
            self.places[place] = None
            self.exits[code] += 1
            if worker.struck == "SIGTERM":
                self.leaving.append(time.monotonic() - worker.struck_at)
            if not worker.struck:
                self._not_before[place] = time.monotonic() + 1.0
            if code not in ORDERLY:
                self.findings.append(f"worker process {worker.pid} ended with {code}: {tail(worker.log)}")

    def _start(self, place: int) -> Worker:
        self.started += 1
        log = self.logs / f"{self.started:06}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={
                    **self.environment,
                    **self._home(place),
                    "OPTUNA_STORAGE": self.urls[place].render_as_string(hide_password=False),
                },
                start_new_session=True,
            )
        return Worker(process, log, time.monotonic())

    def _home(self, place: int) -> dict[str, str]:
        if self.homes is None:
            return {}
        return {"FOLDTUNE_HOME": str(self.homes / ("shared" if place % 2 == 0 else f"lost-{self.started}"))}

    def living(self) -> list[Worker]:
        """Workers that run and are not paused."""
        return [w for w in self.places if w is not None and not w.paused and w.process.poll() is None]

    def busy(self, table: Mapping[int, Process]) -> list[tuple[Worker, int]]:
        """Living workers that hold a unit and have a trainer, with its process id."""
        found = ((worker, processes.trainer_of(worker.pid, table)) for worker in self.living())
        return [(w, trainer) for w, trainer in found if trainer is not None and self.holds(w.pid)]

    def holds(self, pid: int) -> bool:
        """Whether a worker holds a unit, by its own history; any with a trainer counts where there is no history."""
        if self.history is None:
            return True
        try:
            notes = read_history(pid, (self.history / f"{pid}.jsonl").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return False
        leased = [note.lease for note in notes if note.event == "leased"]
        over = {note.lease for note in notes if note.event in ("ended", "released", "fenced")}
        return any(lease not in over for lease in leased)

    def strike(self, worker: Worker, number: signal.Signals) -> None:
        """Send a signal that should end it."""
        if processes.send(worker.pid, number) and not worker.struck:
            worker.struck, worker.struck_at = number.name, time.monotonic()

    def drain(self) -> list[str]:
        """Let all leave by themselves, then make them; who had to be made."""
        late = []
        for patience, number in ((PATIENCE, signal.SIGTERM), (10.0, signal.SIGKILL), (5.0, signal.SIGKILL)):
            deadline = time.monotonic() + patience
            while time.monotonic() < deadline and any(self.places):
                self.look()
                time.sleep(0.05)
            for worker in filter(None, self.places):
                late.append(f"worker process {worker.pid} still ran, and got {number.name}: {tail(worker.log)}")
                self.strike(worker, number)
        return late

    def kill(self) -> None:
        """End all of them now."""
        for worker in filter(None, self.places):
            worker.process.kill()
            worker.process.wait()
        self.places = [None] * len(self.places)


def tail(log: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a log."""
    return " | ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def environment(**variables: str) -> dict[str, str]:
    """What every process of a run is given: one thread each, no library's chatter, and these."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FOLDTUNE_")}
    kept.pop("OPTUNA_STORAGE", None)
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", **variables}
