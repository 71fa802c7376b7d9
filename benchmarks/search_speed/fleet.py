"""foldtune's workers without its service: as many single-threaded processes as there are threads, on a GPU one.

`foldtune run` does the same on a CPU: a second thread in one process costs more than it gives (docs/log.md).
"""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

import numpy as np
import torch

from benchmarks.search_speed import account, engine, order, scores
from benchmarks.search_speed.account import Run, Spent, Tokens, UnitResult
from benchmarks.search_speed.replay import Replay
from trial_worker.engine import versions


@dataclass(frozen=True, kw_only=True)
class Hello:
    """A worker has loaded model and rows."""

    start: Spent
    device: str
    slots: int
    labels: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Want:
    """A slot is free. idle: the worker trains nothing, and waits for the answer."""

    idle: bool


@dataclass(frozen=True, kw_only=True)
class Over:
    """The worker has nothing more to do."""

    search: Spent
    tokens: Tokens


def run(replay: Replay, form: str, *, racing: bool) -> Run:
    """The whole search, then the winner on the test part, which is not timed."""
    count = 1 if torch.cuda.is_available() else int(os.environ.get("OMP_NUM_THREADS", "1"))
    lines, processes = _start(replay, count)
    try:
        hellos: list[Hello] = [line.recv() for line in lines]
        slots = sum(hello.slots for hello in hellos)
        feed = order.Feed(
            {trial.number: trial.folds for trial in replay.trials},
            racing=racing,
            width=max(slots, math.ceil(len(replay.trials) / 5)) if racing else None,
        )
        for line in lines:
            line.send("go")
        results, overs = _serve(replay, lines, feed)
        trial, loss = account.best(results, feed.stopped)
        lines[0].send(trial)
        logits: Sequence[np.ndarray] = lines[0].recv()
    finally:
        for process in processes:
            process.terminate()
            process.join()
    labels, raw = hellos[0].labels, replay.rows()
    truth = [labels.index(raw[row]["label"]) for row in replay.test]
    tokens = Tokens()
    for over in overs:
        tokens = tokens + over.tokens
    return Run(
        form=form,
        device=hellos[0].device,
        start=_together([hello.start for hello in hellos]),
        search=_together([over.search for over in overs]),
        units=results,
        tokens=tokens,
        winner=scores.winner(trial, loss, logits, truth),
        stopped=feed.stopped,
        slots=slots,
        versions=versions(),
    )


def _start(replay: Replay, count: int) -> tuple[list[Connection], list[multiprocessing.process.BaseProcess]]:
    context = multiprocessing.get_context("spawn")
    lines, processes = [], []
    for _ in range(count):
        mine, its = context.Pipe()
        process = context.Process(target=engine.work, args=(its, replay), daemon=True)
        process.start()
        its.close()
        lines.append(mine)
        processes.append(process)
    return lines, processes


def _serve(replay: Replay, lines: Sequence[Connection], feed: order.Feed) -> tuple[list[UnitResult], list[Over]]:
    """Answer workers until all of them are done.

    Raises:
        EOFError: a worker died.
    """
    results: list[UnitResult] = []
    overs: list[Over] = []
    idle: list[Connection] = []

    def answer(line: Connection, *, waits: bool) -> bool:
        chosen = feed.next()
        if chosen is None and waits and feed.busy:
            return False  # what another worker finishes may open a trial
        line.send(None if chosen is None else engine.unit(replay, *chosen, number=len(feed.ran)))
        return True

    while len(overs) < len(lines):
        for line in wait(lines):
            assert isinstance(line, Connection)
            message = line.recv()
            match message:
                case Want():
                    if not answer(line, waits=message.idle):
                        idle.append(line)
                case UnitResult():
                    results.append(message)
                    feed.done(message.trial, message.loss)
                    idle = [waiting for waiting in idle if not answer(waiting, waits=True)]
                case Over():
                    overs.append(message)
    return results, overs


def _together(parts: Sequence[Spent]) -> Spent:
    """Of processes beside each other: CPU seconds add up, wall seconds do not."""
    return Spent(sum(part.cpu for part in parts), max(part.wall for part in parts))
