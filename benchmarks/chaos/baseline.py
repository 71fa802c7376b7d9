"""The same kills and database faults against Optuna alone, and the same figures from its tables."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from benchmarks.chaos import baseline_worker, collect, harness, report, schedule, study
from benchmarks.chaos.evidence import Evidence
from benchmarks.chaos.fleet import Fleet, Worker, environment
from benchmarks.chaos.harness import Options, Run
from benchmarks.chaos.measures import Kill
from benchmarks.chaos.schedule import Fault, Kind
from benchmarks.chaos.storm import TALK_SECONDS, Storm, talk
from orchestrator.contract import canonical

FAULTS = frozenset(
    {
        Kind.PAUSE,
        Kind.PAUSE_LONG,
        Kind.TERMINATE,
        Kind.INTERRUPT_TWICE,
        Kind.CRASH_DATABASE,
        Kind.DATABASE_AWAY,
        Kind.TERMINATE_BACKENDS,
        Kind.FREEZE_BACKEND,
    }
)


class Workers(Fleet):
    """Workers of one process each; one that ends with 0 has found the grid exhausted, and is not replaced."""

    def busy(self, table: Any) -> list[tuple[Worker, int]]:
        """Living workers inside a trial."""
        return [(worker, worker.pid) for worker in self.living() if self.holds(worker.pid)]

    def fill(self) -> None:
        self.look()
        if not self.exits[0]:
            super().fill()


class Weather(Storm):
    """Faults until every worker has said that nothing is left to do."""

    def _poll(self) -> None:
        self.complete = bool(self.fleet.exits[0]) and not any(self.fleet.places)
        if time.monotonic() >= self._next_talk:
            self._next_talk = time.monotonic() + TALK_SECONDS
            rows = (
                None
                if self.injector.database_away
                else self.postgres.ask("SELECT CAST(state AS text), count(*) FROM public.trials GROUP BY 1 ORDER BY 1")
            )
            talk(f"{self.injector.killed} killed, {self.fleet.started} workers started, trials {dict(rows or [])}")


def faults(seed: int, kills: int) -> tuple[Fault, ...]:
    """The schedule as far as it applies: there is one process for each worker, and no proxy."""
    single = [
        replace(fault, kind=Kind.KILL_SUPERVISOR) if fault.kills else fault for fault in schedule.plan(seed, kills)
    ]
    return tuple(fault for fault in single if fault.kills or fault.kind in FAULTS)


def run(options: Options) -> tuple[dict[str, Any], bool]:
    """Do it; (the JSON object, whether nothing was lost, duplicated, invented or stuck)."""
    planned = faults(options.seed, options.kills)
    with harness.workplace(options.keep) as root, harness.database(root, 0) as (postgres, _):
        for folder in ("history", "steps", "logs", "home"):
            (root / folder).mkdir()
        path = study.write(root / "study", trials=options.points, seed=options.seed)
        plan = study.planned(path)
        url = postgres.url.render_as_string(hide_password=False)
        optuna.create_study(storage=baseline_worker.storage(url), study_name=study.NAME)
        expected = {
            canonical(point): plan.loss(point, lambda unit: study.tallies(study.LightPack(plan.examples), unit))
            for point in plan.points(default=False)
        }
        pace = harness.epoch_seconds(options, planned)
        fleet = Workers(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.chaos.baseline_worker", str(path)],
            [postgres.url] * options.workers,
            root / "logs",
            environment(
                CHAOS_HISTORY=str(root / "history"),
                FOLDTUNE_LIGHT_LOG=str(root / "steps"),
                FOLDTUNE_LIGHT_EPOCH_SECONDS=str(pace),
            ),
            root / "history",
        )
        storm = Weather(fleet, postgres, (), root / "none", planned)
        began = time.monotonic()
        try:
            storm.rage(options.patience)
            storm.injector.heal()
        finally:
            fleet.kill()
        seconds = time.monotonic() - began
        trials = optuna.load_study(study_name=study.NAME, storage=baseline_worker.storage(url)).get_trials()
        notes = collect.histories(root / "history")
        trained = seconds_of_trials(root / "steps")
    found = figures(expected, trials)
    result = Run(
        evidence=Evidence(expected=expected, trials=(), shown=(), units=(), results=()),
        kills=storm.injector.kills,
        killed=storm.injector.killed,
        faults={kind.value: count for kind, count in sorted(storm.injector.done.items())},
        skipped=storm.skipped,
        exits=dict(fleet.exits),
        leaving=[],
        started=fleet.started,
        seconds=seconds,
        epoch_seconds=pace,
        notes={
            "complete": storm.complete,
            "settings": f"heartbeat_interval={baseline_worker.HEARTBEAT_SECONDS}, "
            f"grace_period={baseline_worker.GRACE_SECONDS}, RetryHeartbeatStaleTrialCallback(), pool_pre_ping",
            "workers that died of an exception": sum(n for code, n in fleet.exits.items() if code > 0 and code != 130),
        },
    )
    body = {
        "system": "optuna",
        "kills": storm.injector.killed,
        "trials": len(trials),
        **found,
        **report.recovery(recoveries(trials, notes, storm.injector.kills)),
        "wasted_fraction": wasted(trials, trained),
        **report.common(options, result),
        "violations": [],
    }
    return body, not any(found[name] for name in ("lost", "duplicated", "invented", "stuck", "different"))


def figures(expected: dict[str, float], trials: Sequence[FrozenTrial]) -> dict[str, Any]:
    """What became of the points."""
    complete = Counter(canonical(t.params) for t in trials if t.state == TrialState.COMPLETE)
    open_states = (TrialState.RUNNING, TrialState.WAITING)
    values = [(canonical(t.params), t.value) for t in trials if t.state == TrialState.COMPLETE]
    names = {name for point in expected for name in json.loads(point)}
    return {
        "lost": sum(point not in complete for point in expected),
        "duplicated": sum(count > 1 for count in complete.values()),
        "invented": sum(t.params.keys() == names and canonical(t.params) not in expected for t in trials),
        "stuck": sum(t.state in open_states for t in trials),
        "stale_accepted": None,  # nothing in Optuna's tables says who told a value
        "different": sum(value != expected.get(point) for point, value in values),
        "states": dict(Counter(t.state.name for t in trials)),
    }


def recoveries(trials: Sequence[FrozenTrial], notes: Sequence[Any], kills: Sequence[Kill]) -> list[float]:
    """Seconds from each kill to the start of the trial that repeats the one it hit, where there is one."""
    again = {t.system_attrs["retry_history"][-1]: t for t in trials if t.system_attrs.get("retry_history")}
    found = []
    for kill in kills:
        mine = [note for note in notes if note.pid == kill.pid and note.time <= kill.time]
        for number in {n.unit for n in mine if n.event == "leased"} - {n.unit for n in mine if n.event == "ended"}:
            retry = again.get(number)
            if retry is not None and retry.datetime_start is not None:
                found.append(retry.datetime_start.replace(tzinfo=UTC).timestamp() - kill.time)
    return sorted(found)


def seconds_of_trials(steps: Path) -> dict[int, float]:
    """Device seconds of every trial, kept or not."""
    found: dict[int, float] = defaultdict(float)
    for file in steps.glob("*.jsonl"):
        for line in file.read_text(encoding="utf-8").split("\n")[:-1]:
            raw = json.loads(line)
            found[int(raw["unit"])] += raw["seconds"]
    return found


def wasted(trials: Sequence[FrozenTrial], trained: dict[int, float]) -> float:
    """Share of all device seconds that is in no COMPLETE trial, or in a second one of its point."""
    points: set[str] = set()
    kept = 0.0
    for trial in trials:
        if trial.state == TrialState.COMPLETE and canonical(trial.params) not in points:
            points.add(canonical(trial.params))
            kept += trained.get(trial.number, 0.0)
    total = sum(trained.values())
    return round(max(0.0, 1 - kept / total), 4) if total else 0.0
