"""An engine with three slots that computes nothing: what the trainer makes of messages and events, without torch.

An epoch of a unit is `batch_size` steps, then as many evaluation batches, none of which takes any time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from orchestrator.contract import (
    Checkpoint,
    EpochDone,
    OpenStudy,
    Outcome,
    Predictions,
    Progress,
    TrainUnit,
    UnitEnded,
)

Event = Progress | EpochDone | UnitEnded
STEP_SECONDS = 0.002


def prepare() -> str:
    return "light"


def versions() -> dict[str, str]:
    return {"torch": "none", "transformers": "none", "peft": "none"}


def open_study(study: OpenStudy, device: str) -> Pack:
    assert device == "light"
    if study.name == "unusable":
        raise ValueError("this study is unusable\nand says more")
    return Pack()


class Pack:
    slots = 3

    def __init__(self) -> None:
        self._units: dict[int, tuple[TrainUnit, Iterator[Event | None]]] = {}
        self._left: dict[int, float] = {}

    @property
    def free(self) -> int:
        return self.slots - len(self._units)

    def add(self, unit: TrainUnit) -> None:
        assert self.free
        assert unit.unit not in self._units
        self._units[unit.unit] = unit, self._course(unit)
        self._left[unit.unit] = float("inf") if unit.seconds_left is None else unit.seconds_left

    def advance(self) -> list[Event]:
        time.sleep(STEP_SECONDS)
        events = [next(course) for _, course in list(self._units.values())]
        for event in events:
            if isinstance(event, UnitEnded):
                del self._units[event.unit]
        return [event for event in events if event is not None]

    def drop(self, unit: int, reason: str, keep: bool) -> list[Event]:
        if unit not in self._units:
            return []
        order, _ = self._units.pop(unit)
        kept = Checkpoint(path="/kept", sha256="0" * 64, bytes=1, kind="resume", epoch=0, step=1) if keep else None
        return [order.ended(Outcome.DROPPED, reason, checkpoint=kept)]

    def limit(self, unit: int, seconds_left: float) -> None:
        if unit in self._units:
            self._left[unit] = seconds_left

    def _course(self, unit: TrainUnit) -> Iterator[Event | None]:
        steps = unit.settings.batch_size
        for epoch in range(1, unit.settings.epochs + 1):
            if self._left[unit.unit] <= 0:
                yield unit.ended(Outcome.OVER_BUDGET, "no time is left")
            for step in range(1, steps + 1):
                whole = steps * unit.settings.epochs
                yield Progress(unit=unit.unit, epoch=epoch, step=step, steps=whole, loss=0.0, to_go=0.0)
            for _ in range(steps):
                yield None
            yield EpochDone(
                unit=unit.unit,
                lease_epoch=unit.lease_epoch,
                epoch=epoch,
                train_loss=0.0,
                seconds=0.0,
                tallies={},
                predictions=Predictions(nats="", counts=""),
            )
        yield unit.ended(Outcome.DONE)
