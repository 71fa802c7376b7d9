"""One of foldtune's workers without its service: the engine's pack alone. Needs torch, transformers and peft."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection

import numpy as np
import torch

from benchmarks.search_speed import account, scores
from benchmarks.search_speed.account import Tokens
from benchmarks.search_speed.replay import Replay
from orchestrator.contract import EpochDone, Outcome, Progress, TrainUnit, canonical, derive_seed
from trial_worker.engine import Base, Pack, Rows, prepare
from trial_worker.engine.stream import current
from trial_worker.tasks import task_named


def work(line: Connection, replay: Replay) -> None:
    """Train what the other end of the line hands out, then the winner once more; see `fleet`."""
    from benchmarks.search_speed.fleet import Epoch, Hello, Over, Want

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
        return found

    def heard(one: TrainUnit, done: EpochDone | None) -> bool:
        if done is None:
            said = Epoch(unit=one.unit, epoch=0, last=True, tallies=None)
        else:
            tokens.worked(lengths, one.train, one.validation, 1)
            said = Epoch(
                unit=one.unit,
                epoch=done.epoch,
                last=done.epoch == one.settings.epochs,
                tallies=done.tallies,
                nats=_floats(done.predictions.nats),
                counts=_floats(done.predictions.counts),
            )
        line.send(said)
        still_wanted: bool = line.recv()
        return still_wanted

    drive(pack, wanted, heard)
    line.send(Over(search=account.now() - started, tokens=tokens))
    meter.tokens = None
    line.send([_logits(done, len(task.labels)) for done in _on_test(replay, pack, line.recv())])


def drive(
    pack: Pack,
    wanted: Callable[[bool], TrainUnit | None],
    heard: Callable[[TrainUnit, EpochDone | None], bool],
) -> None:
    """Keep the pack's slots filled until nothing is wanted any more.

    wanted: is told whether nothing trains. heard: is told of every epoch, None where the unit diverged, and says
    whether the unit is still wanted.

    Raises:
        RuntimeError: a unit ended otherwise than trained, diverged or unwanted.
    """
    running: dict[int, TrainUnit] = {}
    while True:
        while pack.free and (one := wanted(not running)) is not None:
            running[one.unit] = one
            pack.add(one)
        if not running:
            return
        for event in pack.advance():
            if isinstance(event, Progress):
                continue
            one = running[event.unit]
            if isinstance(event, EpochDone):
                if not heard(one, event) and event.epoch < one.settings.epochs:
                    del running[event.unit]
                    pack.drop(event.unit, "racing")
                continue
            if event.outcome not in (Outcome.DONE, Outcome.DIVERGED):
                raise RuntimeError(f"unit {event.unit}: {event.outcome}: {event.reason}\n{event.evidence}")
            del running[event.unit]
            if event.outcome == Outcome.DIVERGED:
                heard(one, None)


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


def _on_test(replay: Replay, pack: Pack, trial: int) -> list[EpochDone]:
    """The last epochs of the winner's fold models, trained again from their seeds."""
    waiting = [
        unit(replay, trial, fold, number=number, test=True)
        for number, fold in enumerate(replay.trial(trial).folds, start=1_000_000)
    ]
    found: dict[int, EpochDone] = {}

    def heard(one: TrainUnit, done: EpochDone | None) -> bool:
        if done is None:
            raise RuntimeError("the winner's folds do not repeat")
        found[one.unit] = done
        return True

    drive(pack, lambda _: waiting.pop(0) if waiting else None, heard)
    return list(found.values())


def _logits(done: EpochDone, classes: int) -> np.ndarray:
    assert done.predictions.logits is not None
    return np.frombuffer(base64.b64decode(done.predictions.logits), dtype="<f2").reshape(-1, classes)


def _floats(packed: str) -> Sequence[float]:
    values: list[float] = np.frombuffer(base64.b64decode(packed), dtype="<f4").tolist()
    return values
