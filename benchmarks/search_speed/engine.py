"""foldtune's side without its service: the engine's pack alone. Needs torch, transformers and peft, nothing else."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.search_speed import account, order, scores
from benchmarks.search_speed.account import Run, Tokens, UnitResult
from benchmarks.search_speed.replay import Replay
from orchestrator.contract import EpochDone, Outcome, TrainUnit, UnitEnded, canonical, derive_seed
from trial_worker.engine import Base, Pack, Rows, prepare, versions
from trial_worker.tasks import task_named


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A unit and its last epoch; None where it diverged."""

    unit: TrainUnit
    last: EpochDone | None


def run(replay: Replay, form: str, *, racing: bool) -> Run:
    """The whole search, then the winner on the test part, which is not timed."""
    device = prepare()
    meter = scores.Meter()
    raw = replay.rows()
    task = task_named("classification", tuple(sorted({row["label"] for row in raw})))
    base = Base.load(replay.model, task.family, len(task.labels), device)
    meter.watch(base.model)
    pack = Pack(base, Rows(task, raw, base.tokenizer))
    started = account.now()
    meter.tokens = tokens = Tokens()
    feed = order.Feed(
        {trial.number: trial.folds for trial in replay.trials},
        racing=racing,
        width=max(pack.slots, math.ceil(len(replay.trials) / 5)) if racing else None,
    )
    units = search(replay, pack, feed)
    searched = account.now() - started
    meter.tokens = None
    lengths = [item.length for item in pack.rows.items(int(replay.fixed["max_length"]))]
    for trial, fold in feed.ran:
        tokens.worked(lengths, *replay.split(fold), replay.settings(replay.trial(trial)).epochs)
    trial, loss = account.best(units, feed.stopped)
    logits = [_logits(ended.last, len(task.labels)) for ended in _on_test(replay, pack, trial)]
    truth = [task.labels.index(raw[row]["label"]) for row in replay.test]
    return Run(
        form=form,
        device=device.type,
        start=started,
        search=searched,
        units=units,
        tokens=tokens,
        winner=scores.winner(trial, loss, logits, truth),
        stopped=feed.stopped,
        slots=pack.slots,
        versions=versions(),
    )


def search(replay: Replay, pack: Pack, feed: order.Feed) -> list[UnitResult]:
    """Train what the feed hands out."""
    results = []

    def wanted() -> TrainUnit | None:
        chosen = feed.next()
        return None if chosen is None else unit(replay, *chosen, number=len(feed.ran))

    def heard(ended: Ended) -> None:
        tallies = None if ended.last is None else ended.last.tallies
        results.append(
            UnitResult(
                trial=ended.unit.trial,
                fold=ended.unit.fold,
                nats=None if tallies is None else tallies["nats"],
                items=len(ended.unit.validation),
                correct=0 if tallies is None else tallies["correct"],
            )
        )
        feed.done(ended.unit.trial, results[-1].loss)

    drive(pack, wanted, heard)
    return results


def drive(pack: Pack, wanted: Callable[[], TrainUnit | None], heard: Callable[[Ended], None]) -> None:
    """Keep the pack's slots filled until nothing is wanted any more.

    Raises:
        RuntimeError: a unit ended otherwise than trained or diverged.
    """
    running: dict[int, TrainUnit] = {}
    last: dict[int, EpochDone] = {}
    while True:
        while pack.free and (one := wanted()) is not None:
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
    drive(pack, lambda: waiting.pop(0) if waiting else None, found.append)
    return found


def _logits(done: EpochDone | None, classes: int) -> np.ndarray:
    if done is None or done.predictions.logits is None:
        raise RuntimeError("the winner's folds do not repeat")
    return np.frombuffer(base64.b64decode(done.predictions.logits), dtype="<f2").reshape(-1, classes)
