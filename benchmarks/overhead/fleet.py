"""So many workers at once, a process each: first in real time, then without any training."""

from __future__ import annotations

import multiprocessing
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

from sqlalchemy.engine import URL

from benchmarks.overhead import figures, server, worker
from benchmarks.overhead.meters import Statements
from orchestrator import study, workers
from orchestrator.database.engine import connect
from trial_worker.lifeline import die_with_parent

START_SECONDS = 300.0  # until every worker is ready
GIVEN_UP_SECONDS = 120.0  # without a whole trial


@dataclass(frozen=True, kw_only=True)
class Shift:
    """What the workers of one point do."""

    url: URL
    postmaster: int
    name: str  # of the study
    workers: int
    unit_seconds: float
    paced_seconds: float  # of the window in real time; 0: none
    flat_seconds: float  # of the window without training, at most
    flat_trials: int  # and its trials, at most


def measure(shift: Shift) -> dict[str, Any]:
    """Figures of both windows. The calling process must have no open connection."""
    fork = multiprocessing.get_context("fork")
    gate, answers, units = fork.Barrier(shift.workers + 1), fork.Queue(), fork.Value("i", 0)
    shared = (gate, answers, units)
    crew = [fork.Process(target=_live, args=(shift, index, *shared)) for index in range(shift.workers)]
    try:
        for process in crew:
            process.start()
        found: dict[str, Any] = {"workers": shift.workers}
        if shift.paced_seconds:
            found["paced"] = _window(shift, gate, answers, training=True)
        found["flat"] = _window(shift, gate, answers, training=False)
        for process in crew:
            process.join(60)
    finally:  # at an error or a signal they may wait for each other, or sleep to the end of their window
        for process in crew:
            if process.is_alive():
                process.kill()
                process.join()
    if not shift.paced_seconds:  # one worker alone waits for nobody: the same calls, whether it trains between or not
        found["paced"] = found["flat"]
    return found


def _window(shift: Shift, gate: Any, answers: Any, *, training: bool) -> dict[str, Any]:
    gate.wait(START_SECONDS)
    before = server.cpu_seconds(shift.postmaster)
    patience = shift.paced_seconds + shift.flat_seconds + START_SECONDS
    logs = [answers.get(timeout=patience) for _ in range(shift.workers)]
    cpu = server.cpu_seconds(shift.postmaster) - before
    failed = [log["failed"] for log in logs if "failed" in log]
    if failed:
        raise RuntimeError(f"{len(failed)} of {shift.workers} workers failed, one with {failed[0]}")
    # Without training the last call may be a long one: its seconds count, since its trial does.
    wall = max(log["seconds"] for log in logs)
    return figures.of_window(logs, wall=wall, server_cpu=cpu, training=training)


def _live(shift: Shift, index: int, gate: Any, answers: Any, units: Any) -> None:
    die_with_parent()
    try:
        engine, statements = connect(shift.url), Statements()
        statements.watch(engine)
        statements.watch(study.storage(shift.url).engine)
        who, _ = workers.register(engine, [worker.CPU])
        first = worker.begin(engine, who, shift.name)
        if shift.paced_seconds:
            pace = worker.Pace(unit_seconds=shift.unit_seconds, sleep=time.sleep)
            late = Random(index).uniform(0, shift.unit_seconds)  # so that not all finish at once
            answers.put(_run(shift, gate, statements, who, pace, shift.paced_seconds, late, first))
        pace = worker.Pace(unit_seconds=shift.unit_seconds, sleep=None)
        answers.put(_run(shift, gate, statements, who, pace, shift.flat_seconds, 0.0, first, units))
        workers.leave(engine, who, "done")
    except BaseException as error:
        traceback.print_exc(file=sys.stderr)
        answers.put({"failed": f"{type(error).__name__}: {error}"})
        raise


def _run(
    shift: Shift,
    gate: Any,
    statements: Statements,
    who: int,
    pace: worker.Pace,
    seconds: float,
    late: float,
    first: float,
    units: Any = None,
) -> dict[str, Any]:
    """One window of one worker.

    first: seconds of its first take, before. units: trained by all, where their number ends the window.
    """
    engine, log, most = connect(shift.url), worker.Log(), shift.flat_trials * figures.MINUTE / shift.unit_seconds
    least, told = figures.MINUTE / shift.unit_seconds, 0

    def over() -> bool:
        nonlocal told
        if units is not None and log.units > told:
            with units.get_lock():
                units.value += log.units - told
            told = log.units
        passed = time.monotonic() - began
        if units is None:
            return passed >= seconds
        # a whole trial at least: else a slow study would be judged by the first steps of one
        return units.value >= most or (passed >= seconds and units.value >= least) or passed >= GIVEN_UP_SECONDS

    log.waits["first"].append(first)
    gate.wait(START_SECONDS)
    began, sent, cpu = time.monotonic(), statements.count, time.process_time()
    time.sleep(late)
    worker.work(engine, who, shift.name, pace, over, log)
    return {
        **asdict(log),
        "seconds": time.monotonic() - began,
        "statements": statements.count - sent,
        "cpu": time.process_time() - cpu,
    }
