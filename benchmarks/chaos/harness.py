"""One run: a study, its workers, what is done to them, and the verdict."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.chaos import collect, processes, schedule, study
from benchmarks.chaos.evidence import Evidence
from benchmarks.chaos.fleet import Fleet, environment
from benchmarks.chaos.measures import Kill
from benchmarks.chaos.postgres import Postgres
from benchmarks.chaos.proxy import Proxy
from benchmarks.chaos.schedule import Fault
from benchmarks.chaos.storm import FIRST_PACE, Storm, talk
from benchmarks.chaos.watch import Watch
from orchestrator.database.engine import connect

# A unit whose workers are killed five times in a row without an epoch between has failed: nothing tells it from one
# that kills them. Longer epochs than the pace of the kills would make such units of sound ones.
LONGEST_EPOCH = 1.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line asks for. trials, limit, epoch_seconds: None for what suits the number of kills."""

    seed: int
    kills: int
    workers: int
    trials: int | None = None
    slots: int = 1
    epoch_seconds: float | None = None
    limit: float | None = None
    keep: Path | None = None  # where logs and histories go afterwards

    @property
    def points(self) -> int:
        """Grid points: 60 for 40 kills, 300 for 1000."""
        return self.trials or max(12, 60 + (self.kills - 40) // 4)

    @property
    def patience(self) -> float:
        """Seconds after which the run is given up."""
        return self.limit or 180 + 4 * self.kills


@dataclass
class Run:
    """What came of it."""

    evidence: Evidence
    kills: list[Kill]
    killed: int
    faults: dict[str, int]
    skipped: dict[str, int]
    exits: dict[int, int]
    leaving: list[float]
    started: int
    seconds: float
    epoch_seconds: float
    notes: dict[str, Any] = field(default_factory=dict)
    outages: list[tuple[float, float]] = field(default_factory=list)


@contextlib.contextmanager
def workplace(keep: Path | None = None) -> Iterator[Path]:
    """A folder that every account can pass, gone afterwards whatever happens."""
    root = Path(tempfile.mkdtemp(prefix="foldtune-chaos-", dir="/tmp"))
    root.chmod(0o755)
    talk(f"working in {root}")
    try:
        yield root
    finally:
        if keep is not None:
            for part in ("logs", "history", "steps"):
                shutil.copytree(root / part, keep / part, dirs_exist_ok=True)
        shutil.rmtree(root, ignore_errors=True)


@contextlib.contextmanager
def database(root: Path, count: int) -> Iterator[tuple[Postgres, list[Proxy]]]:
    """The run's own server with so many proxies in front of it."""
    postgres = Postgres(root)
    proxies = [Proxy(postgres.url.port or 0) for _ in range(count)]
    try:
        yield postgres, proxies
    finally:
        for proxy in proxies:
            proxy.close()
        connect.cache_clear()
        postgres.close()


def epoch_seconds(options: Options, faults: Sequence[Fault]) -> float:
    """How long an epoch must take for the study to outlast the faults: workers that are killed train half the time."""
    if options.epoch_seconds is not None:
        return options.epoch_seconds
    wanted = FIRST_PACE * sum(fault.gap for fault in faults) + 10
    epochs = (options.points + 1) * study.FOLDS * study.EPOCHS
    return round(min(LONGEST_EPOCH, max(0.05, wanted * options.workers * 0.45 / epochs)), 3)


def run(options: Options) -> Run:
    """Do it; the evidence, not judged yet."""
    faults = schedule.plan(options.seed, options.kills)
    with workplace(options.keep) as root, database(root, max(1, options.workers // 4)) as (postgres, proxies):
        for folder in ("history", "steps", "logs", "home"):
            (root / folder).mkdir()
        engine = connect(postgres.url)
        path = study.write(root / "study", trials=options.points, seed=options.seed)
        study.launched(engine, path)
        with engine.begin() as connection:
            collect.install_witness(connection)
        engine.dispose()
        talk(f"{options.points} points launched; training them undisturbed")
        expected = study.expected(study.planned(path))
        pace = epoch_seconds(options, faults)
        fleet = Fleet(
            [sys.executable, "-m", "trial_worker", "--device", "cpu", study.NAME],
            [_way(postgres, proxies, place) for place in range(options.workers)],
            root / "logs",
            environment(
                FOLDTUNE_ENGINE="benchmarks.chaos.light",
                FOLDTUNE_DEBUG="1",
                FOLDTUNE_HISTORY=str(root / "history"),
                FOLDTUNE_LIGHT_LOG=str(root / "steps"),
                FOLDTUNE_LIGHT_EPOCH_SECONDS=str(pace),
                FOLDTUNE_LIGHT_SLOTS=str(options.slots),
            ),
            root / "history",
            root / "home",
        )
        storm = Storm(fleet, postgres, proxies, root / "home", faults)
        watch = Watch(str(root / "steps"), postgres.canary, root / "home")
        began = time.monotonic()
        try:
            watch.start()
            storm.rage(options.patience)
            storm.injector.heal()
            late = fleet.drain()
        finally:
            (root / "logs" / "faults.log").write_text("\n".join(storm.injector.journal), encoding="utf-8")
            fleet.kill()
            watch.stop()
        seconds = time.monotonic() - began
        time.sleep(0.5)  # for trainers whose supervisor had to be killed
        late += [f"process {pid} was left behind" for pid in sorted(watch.trainers) if processes.alive(pid)]
        processes.end({pid for pid in watch.trainers if processes.belongs_to(pid, str(root / "steps"))})
        with connect(postgres.url).connect() as connection:
            leaks = collect.secrets_in_tables(connection, postgres.canary)
        leaks += collect.secrets_in_files(
            [root / part for part in ("logs", "history", "home", "steps")], postgres.canary
        )
        evidence = collect.collect(
            connect(postgres.url),
            study.NAME,
            expected,
            history=root / "history",
            steps=root / "steps",
            store=root / "home" / "shared" / "artifacts",
            stuck=tuple(storm.stuck),
            secrets=(*sorted(watch.secrets), *leaks),
            orphans=(*watch.orphans, *late),
            exits=tuple(fleet.findings),
        )
        connect(postgres.url).dispose()
    return Run(
        evidence=evidence,
        kills=storm.injector.kills,
        outages=storm.injector.outages,
        killed=storm.injector.killed,
        faults={kind.value: count for kind, count in sorted(storm.injector.done.items())},
        skipped=storm.skipped,
        exits=dict(fleet.exits),
        leaving=fleet.leaving,
        started=fleet.started,
        seconds=seconds,
        epoch_seconds=pace,
        notes={"lost replies to COMMIT": sum(proxy.swallowed for proxy in proxies), "complete": storm.complete},
    )


def _way(postgres: Postgres, proxies: Sequence[Proxy], place: int) -> Any:
    """Every other worker reaches the database through a proxy."""
    if place % 2 == 0:
        return postgres.url
    return postgres.url.set(port=proxies[place // 2 % len(proxies)].port)
