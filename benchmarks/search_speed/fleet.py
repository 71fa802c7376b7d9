"""foldtune's workers without its service: as many single-threaded processes as there are threads, on a GPU one.

`foldtune run` does the same on a CPU: a second thread in one process costs more than it gives (docs/log.md).
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
import torch

from benchmarks.order import Place, Trial, Trials
from benchmarks.search_speed import account, engine, scores
from benchmarks.search_speed.account import Run, Spent, Tokens, UnitResult
from benchmarks.search_speed.replay import Replay
from orchestrator import racing
from orchestrator.contract import TrainUnit
from orchestrator.racing import Fold, Rules
from trial_worker.engine import versions

RACING: dict[str, Any] = {"rule": "forgiving", "hopeless": True}  # the product's default


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
class Epoch:
    """A unit has trained one more epoch; it waits to be told whether it is still wanted.

    tallies: None where it diverged. nats, counts: of each validation item. last: nothing follows.
    """

    unit: int
    epoch: int
    last: bool
    tallies: Mapping[str, float] | None
    nats: Sequence[float] = ()
    counts: Sequence[float] = ()


@dataclass(frozen=True, kw_only=True)
class Over:
    """The worker has nothing more to do."""

    search: Spent
    tokens: Tokens


def run(replay: Replay, form: str, *, raced: bool) -> Run:
    """The whole search, then the winner on the test part, which is not timed."""
    count = 1 if torch.cuda.is_available() else int(os.environ.get("OMP_NUM_THREADS", "1"))
    lines, processes = _start(replay, count)
    try:
        hellos: list[Hello] = [line.recv() for line in lines]
        study = Study(replay, raced=raced)
        for line in lines:
            line.send("go")
        overs = _serve(lines, study)
        trial, loss = account.best(study.results, study.stopped)
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
        units=study.results,
        tokens=tokens,
        winner=scores.winner(trial, loss, logits, truth),
        stopped=study.stopped,
        slots=sum(hello.slots for hello in hellos),
        versions=versions(),
    )


class Study:
    """The replay's trials, handed out and judged as foldtune does it with a list of trials."""

    def __init__(self, replay: Replay, *, raced: bool) -> None:
        self.replay = replay
        rules = Rules(objective="validation_loss", folds=replay.folds, **RACING)
        self.trials = Trials(
            units=tuple((0, fold) for fold in replay.trials[0].folds),
            rules=rules,
            judge=racing.reason_to_stop if raced else None,
        )
        for trial in replay.trials:
            self.trials.insert(trial.number)
        self.results: list[UnitResult] = []
        self._running: dict[int, tuple[Trial, Place]] = {}
        self._handed_out = 0

    @property
    def busy(self) -> bool:
        """Whether a unit that was handed out has not ended."""
        return bool(self._running)

    @property
    def stopped(self) -> dict[int, int]:
        """Trial -> folds that it finished before it was stopped."""
        return {one.configuration: len(one.done()) for one in self.trials.all if one.state == "stopped"}

    def next(self) -> TrainUnit | None:
        """A unit to train; None while there is none."""
        taken = self.trials.take()
        if taken is None:
            return None
        number, self._handed_out = self._handed_out, self._handed_out + 1
        trial, place = self._running[number] = taken
        return engine.unit(self.replay, trial.configuration, place[1], number=number)

    def heard(self, said: Epoch) -> bool:
        """A unit reports; whether it is still wanted."""
        trial, place = self._running[said.unit]
        if trial.units[place] == "leased":
            self._report(trial, place, said)
            if said.last:
                self.results.append(self._result(trial, place, said))
        wanted = trial.units[place] == "leased"
        if said.last or not wanted:
            del self._running[said.unit]
        return wanted

    def _report(self, trial: Trial, place: Place, said: Epoch) -> None:
        if said.tallies is None:
            self.trials.diverge(trial, place)
            return
        before = trial.folds[place].epochs if place in trial.folds else {}
        fold = Fold(done=False, epochs={**before, said.epoch: said.tallies})
        self.trials.report(trial, place, fold)
        if said.last and trial.units[place] == "leased":
            rows = self.replay.split(place[1])[1]
            self.trials.report(trial, place, replace(fold, done=True, rows=rows, nats=said.nats, counts=said.counts))

    def _result(self, trial: Trial, place: Place, said: Epoch) -> UnitResult:
        return UnitResult(
            trial=trial.configuration,
            fold=place[1],
            nats=None if said.tallies is None else said.tallies["nats"],
            items=len(self.replay.split(place[1])[1]),
            correct=0 if said.tallies is None else int(said.tallies["correct"]),
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


def _serve(lines: Sequence[Connection], study: Study) -> list[Over]:
    """Answer workers until all of them are done.

    Raises:
        EOFError: a worker died.
    """
    overs: list[Over] = []
    idle: list[Connection] = []

    def answer(line: Connection, *, waits: bool) -> bool:
        unit = study.next()
        if unit is None and waits and study.busy:
            return False  # what another worker finishes may earn a trial more folds
        line.send(unit)
        return True

    while len(overs) < len(lines):
        for line in wait(lines):
            assert isinstance(line, Connection)
            message = line.recv()
            match message:
                case Want():
                    if not answer(line, waits=message.idle):
                        idle.append(line)
                case Epoch():
                    line.send(study.heard(message))
                    idle = [waiting for waiting in idle if not answer(waiting, waits=True)]
                case Over():
                    overs.append(message)
    return overs


def _together(parts: Sequence[Spent]) -> Spent:
    """Of processes beside each other: CPU seconds add up, wall seconds do not."""
    return Spent(sum(part.cpu for part in parts), max(part.wall for part in parts))
