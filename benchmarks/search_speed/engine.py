"""One of foldtune's workers without its service: the engine's pack alone. Needs torch, transformers and peft."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np
import torch

from benchmarks.search_speed import account, scores
from benchmarks.search_speed.account import Tokens, UnitResult
from benchmarks.search_speed.replay import Replay
from orchestrator.contract import EpochDone, Outcome, TrainUnit, UnitEnded, canonical, derive_seed
from trial_worker.engine import Base, Pack, Rows, prepare
from trial_worker.engine.stream import current
from trial_worker.tasks import task_named


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A unit and its last epoch; None where it diverged."""

    unit: TrainUnit
    last: EpochDone | None


def work(line: Connection, replay: Replay) -> None:
    """Train what the other end of the line hands out, then the winner once more; see `fleet`."""
    from benchmarks.search_speed.fleet import Hello, Over, Want

    account.now()
    device = prepare()
    if device.type == "cpu":
        torch.set_num_threads(1)
    raw = replay.rows()
    task = task_named("classification", tuple(sorted({row["label"] for row in raw})))
    base = Base.load(replay.model, task.family, len(task.labels), device)
    pack = Pack(base, Rows(task, raw, base.tokenizer))
    meter = scores.Meter()
    meter.watch(base.model, lambda ids: stream.tokens if base.streams and (stream := current()) else ids.numel())
    started = account.now()
    line.send(Hello(start=started, device=device.type, slots=pack.slots, labels=task.labels))
    line.recv()
    started = account.now()
    meter.tokens = tokens = Tokens()
    lengths = [item.length for item in pack.rows.items(int(replay.fixed["max_length"]))]

    def wanted(idle: bool) -> TrainUnit | None:
        line.send(Want(idle=idle))
        found: TrainUnit | None = line.recv()
        if found is not None:
            tokens.worked(lengths, found.train, found.validation, found.settings.epochs)
        return found

    def heard(ended: Ended) -> None:
        tallies = None if ended.last is None else ended.last.tallies
        line.send(
            UnitResult(
                trial=ended.unit.trial,
                fold=ended.unit.fold,
                nats=None if tallies is None else tallies["nats"],
                items=len(ended.unit.validation),
                correct=0 if tallies is None else tallies["correct"],
            )
        )

    drive(pack, wanted, heard)
    line.send(Over(search=account.now() - started, tokens=tokens))
    meter.tokens = None
    line.send([_logits(ended.last, len(task.labels)) for ended in _on_test(replay, pack, line.recv())])


def drive(pack: Pack, wanted: Callable[[bool], TrainUnit | None], heard: Callable[[Ended], None]) -> None:
    """Keep the pack's slots filled until nothing is wanted any more. wanted: is told whether nothing trains.

    Raises:
        RuntimeError: a unit ended otherwise than trained or diverged.
    """
    running: dict[int, TrainUnit] = {}
    last: dict[int, EpochDone] = {}
    while True:
        while pack.free and (one := wanted(not running)) is not None:
            running[one.unit] = one
            pack.add(one)
        if not running:
            return
        for event in pack.advance():
            if isinstance(event, EpochDone):
                last[event.unit] = event
            elif isinstance(event, UnitEnded):
                if event.outcome not in (Outcome.DONE, Outcome.DIVERGED):
                    raise RuntimeError(f"unit {event.unit}: {event.outcome}: {event.reason}\n{event.evidence}")
                done = last.pop(event.unit, None)
                heard(Ended(unit=running.pop(event.unit), last=done if event.outcome == Outcome.DONE else None))


def unit(replay: Replay, trial: int, fold: int, *, number: int, test: bool = False) -> TrainUnit:
    """A unit; with `test` the same training, scored on the test part."""
    train, validation = replay.split(fold)
    settings = replay.settings(replay.trial(trial))
    return TrainUnit(
        study=1,
        unit=number,
        lease_epoch=1,
        trial=trial,
        repeat=0,
        fold=fold,
        seed=derive_seed(replay.seed, canonical(dict(replay.trial(trial).params)), fold),
        settings=settings,
        train=train,
        validation=replay.test if test else validation,
    )


def _on_test(replay: Replay, pack: Pack, trial: int) -> Sequence[Ended]:
    """The winner's fold models, trained again from their seeds."""
    waiting = [
        unit(replay, trial, fold, number=number, test=True)
        for number, fold in enumerate(replay.trial(trial).folds, start=1_000_000)
    ]
    found: list[Ended] = []
    drive(pack, lambda _: waiting.pop(0) if waiting else None, found.append)
    return found


def _logits(done: EpochDone | None, classes: int) -> np.ndarray:
    if done is None or done.predictions.logits is None:
        raise RuntimeError("the winner's folds do not repeat")
    return np.frombuffer(base64.b64decode(done.predictions.logits), dtype="<f2").reshape(-1, classes)
