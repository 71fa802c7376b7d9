"""An engine without torch: real training in numpy, at a pace that the environment sets. See `learner` for what learns.

The supervisor starts the trainer with it where FOLDTUNE_ENGINE=benchmarks.chaos.light. From the environment, too:

    FOLDTUNE_LIGHT_EPOCH_SECONDS   device seconds of an epoch (0.2), slept between its steps
    FOLDTUNE_LIGHT_SLOTS           units that train at once (1)
    FOLDTUNE_LIGHT_FAULT           faults to plant, see `planted`
    FOLDTUNE_LIGHT_LOG             folder in which each trainer writes down the device seconds of every step
"""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.chaos import learner
from benchmarks.chaos.learner import Examples
from benchmarks.chaos.planted import Stopped, parse
from benchmarks.chaos.unit import Course
from orchestrator.contract import EpochDone, OpenStudy, Outcome, Progress, TrainUnit, UnitEnded

Event = Progress | EpochDone | UnitEnded


def prepare() -> str:
    """The device."""
    return "cpu"


def versions() -> dict[str, str]:
    """What the trainer says of itself; there is no torch."""
    return {"torch": "none", "transformers": "none", "peft": f"light, numpy {np.__version__}"}


def open_study(message: OpenStudy, device: Any) -> LightPack:
    """A pack for this study.

    Raises:
        OSError, ValueError: its rows cannot be read, or are of no classification.
    """
    lines = Path(message.data).read_text(encoding="utf-8").splitlines()
    return LightPack(
        learner.examples([json.loads(line) for line in lines], message.labels),
        slots=int(os.environ.get("FOLDTUNE_LIGHT_SLOTS", "1")),
        epoch_seconds=float(os.environ.get("FOLDTUNE_LIGHT_EPOCH_SECONDS", "0.2")),
        faults=os.environ.get("FOLDTUNE_LIGHT_FAULT", ""),
        log=os.environ.get("FOLDTUNE_LIGHT_LOG"),
    )


class LightPack:
    """Units that train side by side; each has its own state, nothing is shared but the rows."""

    def __init__(
        self, data: Examples, *, slots: int = 1, epoch_seconds: float = 0.0, faults: str = "", log: str | None = None
    ) -> None:
        self.slots = slots
        self._data = data
        self._epoch_seconds = epoch_seconds
        self._faults = parse(faults)
        self._courses: dict[int, Course] = {}
        self._log = (
            None
            if log is None
            else os.open(Path(log) / f"{os.getpid()}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        )

    @property
    def free(self) -> int:
        """Slots without a unit."""
        return self.slots - len(self._courses)

    def add(self, unit: TrainUnit) -> None:
        """Give a free slot this unit; nothing is computed yet.

        Raises:
            RuntimeError: no slot is free.
        """
        if not self.free:
            raise RuntimeError("no free slot")
        self._courses[unit.unit] = Course(unit, self._data, self._faults)

    def advance(self) -> list[Event]:
        """Do one step, or one evaluation, of every unit; what there is to tell of it."""
        events: list[Event] = []
        busy = len(self._courses)
        for course in list(self._courses.values()):
            events += self._advance(course, busy)
        return events

    def drop(self, unit: int, reason: str, keep: bool = False) -> list[Event]:
        """Stop a unit where it is, with `keep` after writing a checkpoint; nothing if it is in no slot."""
        course = self._courses.pop(unit, None)
        if course is None:
            return []
        checkpoint = course.suspended() if keep else None
        return [course.order.ended(Outcome.DROPPED, reason, checkpoint=checkpoint)]

    def limit(self, unit: int, seconds_left: float) -> None:
        """A unit may take this many device seconds beyond its reported epochs; nothing if it is in no slot."""
        if unit in self._courses:
            self._courses[unit].limit = seconds_left

    def _advance(self, course: Course, busy: int) -> Sequence[Event]:
        spent, epoch = course.spent, course.epoch
        try:
            if not course.state:
                course.start()
            pause = self._pause(course, busy)
            time.sleep(pause)
            course.spend(pause)  # not what the clock says: a process that was stopped meanwhile used no device
            event, over = course.advance()
        except Stopped as stop:
            return self._end(course, stop.outcome, str(stop))
        except Exception as error:
            return self._end(course, Outcome.FAILED, f"{type(error).__name__}: {error}", traceback.format_exc())
        if over:
            return self._end(course, Outcome.DONE)
        self._write_down(course, epoch + 1, course.spent - spent)
        return [] if event is None else [event]

    def _pause(self, course: Course, busy: int) -> float:
        """Units that share a device share its time: an epoch takes as long in company as alone."""
        if course.epoch == course.order.settings.epochs:
            return 0.0
        return self._epoch_seconds / (course.steps_per_epoch + 1) / max(1, busy)

    def _end(self, course: Course, outcome: Outcome, reason: str = "", evidence: str = "") -> Sequence[Event]:
        del self._courses[course.order.unit]
        return [course.order.ended(outcome, reason, evidence)]

    def _write_down(self, course: Course, epoch: int, seconds: float) -> None:
        if self._log is not None:
            unit = course.order
            line = {"unit": unit.unit, "lease_epoch": unit.lease_epoch, "epoch": epoch, "seconds": round(seconds, 6)}
            os.write(self._log, (json.dumps(line) + "\n").encode())
