"""Single-threaded processes that share a list of units."""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

from benchmarks.search_speed import harness
from orchestrator.contract import EpochDone, OpenStudy, Outcome, TrainUnit, UnitEnded, decode, encode

Heard = Callable[[TrainUnit, UnitEnded, Sequence[EpochDone]], None]


@dataclass(frozen=True)
class Lost:
    """A process ended, or a unit did as no unit should; says how."""

    reason: str


Answer = tuple[TrainUnit, UnitEnded, list[EpochDone]] | Lost


def train(study: OpenStudy, units: Iterable[TrainUnit], workers: int, heard: Heard) -> None:
    """Train them all; `heard` is called in this thread, as they end.

    Raises:
        RuntimeError: a unit neither was trained nor diverged, or a process ended.
    """
    todo: queue.SimpleQueue[TrainUnit] = queue.SimpleQueue()
    count = 0
    for unit in units:
        todo.put(unit)
        count += 1
    answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
    # started in this thread, which lives as long as the program: they die with the thread that started them
    started = [_start(study) for _ in range(min(workers, count))]
    for process in started:
        threading.Thread(target=_serve, args=(process, todo, answers), daemon=True).start()
    try:
        for _ in range(count):
            answer = answers.get()
            if isinstance(answer, Lost):
                raise RuntimeError(answer.reason)
            heard(*answer)
    finally:
        for process in started:
            process.kill()
            process.wait()


def _start(study: OpenStudy) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.sampler_replay.child"],
        cwd=harness.ROOT,
        env=harness.environment(threads=1),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    assert process.stdin is not None
    process.stdin.write(encode(study) + "\n")
    return process


def _serve(
    process: subprocess.Popen[str], todo: queue.SimpleQueue[TrainUnit], answers: queue.SimpleQueue[Answer]
) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(queue.Empty):
        while True:
            unit = todo.get_nowait()
            try:
                answers.put(_train_one(unit, process.stdin, process.stdout))
            except (OSError, ValueError) as error:
                answers.put(Lost(f"a training process ended with {process.poll()}: {error}"))
                return


def _train_one(unit: TrainUnit, to: IO[str], back: IO[str]) -> Answer:
    to.write(encode(unit) + "\n")
    to.flush()
    epochs: list[EpochDone] = []
    for line in back:
        message = decode(line)
        if isinstance(message, EpochDone):
            epochs.append(message)
        elif message.outcome in (Outcome.DONE, Outcome.DIVERGED):
            return unit, message, epochs
        else:
            return Lost(f"unit {unit.unit}: {message.outcome}: {message.reason}\n{message.evidence}")
    raise OSError("its output is over")
