"""Do to a run what the schedule says."""

from __future__ import annotations

import heapq
import itertools
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.chaos import processes
from benchmarks.chaos.fleet import Fleet, Worker
from benchmarks.chaos.measures import Kill
from benchmarks.chaos.postgres import Postgres
from benchmarks.chaos.proxy import Mode, Proxy
from benchmarks.chaos.schedule import OUTAGES, Fault, Kind

NETWORK = {
    Kind.DELAY: Mode.DELAY,
    Kind.STALL: Mode.STALL,
    Kind.DROP_TO_SERVER: Mode.DROP_TO_SERVER,
    Kind.DROP_TO_CLIENT: Mode.DROP_TO_CLIENT,
    Kind.SWALLOW_COMMIT: Mode.SWALLOW,
}
SWALLOW_SECONDS = 10.0  # a COMMIT comes before that, or the worker has nothing to say


class Injector:
    """Effects of faults on a fleet, its database and the network between them."""

    def __init__(self, fleet: Fleet, postgres: Postgres, proxies: Sequence[Proxy], spool: Path) -> None:
        self.fleet = fleet
        self.postgres = postgres
        self.proxies = proxies
        self.spool = spool
        self.done: Counter[Kind] = Counter()
        self.kills: list[Kill] = []
        self.killed = 0  # processes
        self.outages: list[tuple[float, float]] = []  # when the database or a network was away: from, until
        self.database_away = False
        self.journal: list[str] = []  # what was done when, for whoever looks for the cause of something
        self._whom = ""
        self._later: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()

    def inject(self, fault: Fault) -> bool:
        """Whether it could be done: there may be no victim at the moment."""
        self._whom = ""
        if not self._do(fault):
            return False
        self.done[fault.kind] += 1
        self.journal.append(f"{time.time():.2f} {fault.kind} {self._whom} {fault.seconds or ''}".rstrip())
        self.killed += fault.kills
        if fault.kind in OUTAGES:
            self.outages.append((time.time(), time.time() + fault.seconds))
        return True

    def tick(self) -> None:
        """End what has lasted long enough."""
        while self._later and self._later[0][0] <= time.monotonic():
            heapq.heappop(self._later)[2]()

    def heal(self) -> None:
        """End everything that lasts, now."""
        while self._later:
            heapq.heappop(self._later)[2]()

    @property
    def pending(self) -> bool:
        """Whether something still lasts."""
        return bool(self._later)

    def _after(self, seconds: float, action: Callable[[], object]) -> None:
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._numbers), action))

    def _do(self, fault: Fault) -> bool:
        match fault.kind:
            case Kind.KILL_SUPERVISOR | Kind.KILL_TRAINER | Kind.KILL_BOTH:
                return self._kill(fault)
            case Kind.PAUSE | Kind.PAUSE_LONG:
                return self._pause(fault)
            case Kind.TERMINATE | Kind.INTERRUPT_TWICE:
                return self._ask_to_leave(fault)
            case Kind.CRASH_DATABASE | Kind.DATABASE_AWAY:
                return self._crash_database(fault)
            case Kind.TERMINATE_BACKENDS:
                return self.postgres.terminate_backends() > 0
            case Kind.FREEZE_BACKEND:
                return self._freeze(fault)
            case Kind.DAMAGE_STATE:
                return self._damage_state(fault)
            case Kind.DAMAGE_FILE:
                return self._damage_file(fault)
            case _:
                return self._disturb(fault)

    def _victim(self, fault: Fault, *, busy: bool) -> tuple[Worker, int | None] | None:
        table = processes.table()
        training = {worker.pid: trainer for worker, trainer in self.fleet.busy(table)}
        pool = [w for w in self.fleet.living() if not w.struck and (not busy or w.pid in training)]
        if not pool:
            return None
        worker = pool[int(fault.pick * len(pool))]
        self._whom = str(worker.pid)
        return worker, training.get(worker.pid)

    def _kill(self, fault: Fault) -> bool:
        found = self._victim(fault, busy=fault.busy or fault.kind != Kind.KILL_SUPERVISOR)
        if found is None:
            return False
        worker, trainer = found
        if fault.kind != Kind.KILL_SUPERVISOR and trainer is not None:
            processes.send(trainer, signal.SIGKILL)
        if fault.kind != Kind.KILL_TRAINER:
            self.kills.append(Kill(time.time(), worker.pid))
            self.fleet.strike(worker, signal.SIGKILL)
        return True

    def _pause(self, fault: Fault) -> bool:
        found = self._victim(fault, busy=fault.busy)
        if found is None:
            return False
        worker, trainer = found
        pids = [worker.pid] if trainer is None or fault.pick * 100 % 2 < 1 else [worker.pid, trainer]
        for pid in pids:
            processes.send(pid, signal.SIGSTOP)
        worker.paused = True

        def go_on() -> None:
            for pid in reversed(pids):
                processes.send(pid, signal.SIGCONT)
            worker.paused = False

        self._after(fault.seconds, go_on)
        return True

    def _ask_to_leave(self, fault: Fault) -> bool:
        found = self._victim(fault, busy=fault.busy)
        if found is None:
            return False
        worker, _ = found
        if fault.kind == Kind.TERMINATE:
            self.fleet.strike(worker, signal.SIGTERM)
            return True
        self.fleet.strike(worker, signal.SIGINT)
        self._after(fault.seconds, lambda: worker.process.poll() is None and worker.process.send_signal(signal.SIGINT))
        return True

    def _crash_database(self, fault: Fault) -> bool:
        if self.database_away:
            return False
        self.postgres.crash()
        self.database_away = True

        def start() -> None:
            self.postgres.start()
            self.database_away = False

        if fault.seconds:
            self._after(fault.seconds, start)
        else:
            start()
        return True

    def _freeze(self, fault: Fault) -> bool:
        backends = self.postgres.backends()
        if not backends:
            return False
        backend = backends[int(fault.pick * len(backends))]
        processes.send(backend, signal.SIGSTOP)
        self._after(fault.seconds, lambda: processes.send(backend, signal.SIGCONT))
        return True

    def _disturb(self, fault: Fault) -> bool:
        free = [proxy for proxy in self.proxies if proxy.mode == Mode.PASS]
        if not free:
            return False
        proxy = free[int(fault.pick * len(free))]
        if fault.kind == Kind.CUT:
            proxy.cut()
            return True
        proxy.set(NETWORK[fault.kind])
        self._after(fault.seconds or SWALLOW_SECONDS, lambda: proxy.set(Mode.PASS))
        return True

    def _damage_state(self, fault: Fault) -> bool:
        """A byte turned over, or the end cut off, of a state that some unit may have to go on from."""
        rows = self.postgres.ask(
            "SELECT a.id FROM artifact a JOIN unit u ON u.id = a.unit WHERE a.kind = 'resume' "
            "AND a.content IS NOT NULL AND NOT a.doomed AND u.state IN ('leased', 'waiting') ORDER BY a.id"
        )
        if not rows:
            return False
        [number] = rows[int(fault.pick * len(rows))]
        change = (
            "set_byte(content, length(content) - 9, get_byte(content, length(content) - 9) # 64)"
            if fault.pick * 100 % 2 < 1
            else "substring(content FOR length(content) / 2)"
        )
        changed = self.postgres.ask(
            f"UPDATE artifact SET content = {change} WHERE id = %s RETURNING id",  # noqa: S608
            number,
        )
        return bool(changed)

    def _damage_file(self, fault: Fault) -> bool:
        files = sorted(self.spool.rglob("*.safetensors"))
        if not files:
            return False
        try:
            with files[int(fault.pick * len(files))].open("r+b") as file:
                file.seek(-9, 2)
                byte = file.read(1)
                file.seek(-9, 2)
                file.write(bytes([byte[0] ^ 64]))
        except OSError:  # delivered and removed meanwhile
            return False
        return True
