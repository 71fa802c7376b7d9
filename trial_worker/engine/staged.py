"""A pack whose units may have a way to go before they train: rows to be written, a pool to be labelled.

It steps courses (see `courses`) between the steps of the pack, whose slots the inner units of self-training share.
What a step gave is kept on this machine under the sha256 of all it depends on, so that a unit that is broken off takes
up its course where it was, and trials that ask for the same texts have them written once.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic

import numpy as np
import torch

from orchestrator import baselines
from orchestrator.contract import EpochDone, OpenStudy, Outcome, Progress, TrainUnit, UnitEnded
from trial_worker.augment.made import Made
from trial_worker.engine import pack
from trial_worker.engine.courses import Course, Train, Write, course, wanted
from trial_worker.engine.errors import leaves_no_device
from trial_worker.engine.pack import Pack, PackEvent, failed
from trial_worker.engine.stage_files import StageFiles
from trial_worker.engine.writer import Writer


@dataclass
class _Underway:
    """A unit on its course. wants: what it waits for; None: it trains. inside: the pack has a unit of it."""

    unit: TrainUnit
    steps: Course
    begun: bool = False
    wants: Write | Train | None = None
    made: tuple[Made, ...] = ()
    inside: bool = False
    seconds: float = 0.0  # of the course, reported with the first epoch
    computed: bool = False  # anything of it here and now, not found in the cache
    logits: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    @property
    def left(self) -> float | None:
        """Seconds that the unit may take from here."""
        return None if self.unit.seconds_left is None else self.unit.seconds_left - self.seconds


class Staged:
    """As `Pack`, to whoever gives it units. cache: folder of what courses gave; None: nothing is kept."""

    def __init__(self, pack: Pack, writers: Mapping[str, Writer], cache: Path | None) -> None:
        self.pack = pack
        self._writers = writers
        self._files = StageFiles(cache, pack.rows, pack.base.pin)
        self._underway: dict[int, _Underway] = {}

    @property
    def slots(self) -> int:
        return self.pack.slots

    @property
    def free(self) -> int:
        """Slots that no unit has, or will need."""
        return self.pack.free - sum(not each.inside for each in self._underway.values())

    def add(self, unit: TrainUnit) -> None:
        """As `Pack.add`."""
        if baselines.name_of(unit.settings) or not wanted(unit.settings):
            self.pack.add(unit)
            return
        if self.free <= 0:
            raise RuntimeError(f"no free slot: {self.slots} units are training")
        templates = {name: writer.pin.prompt for name, writer in self._writers.items()}
        self._underway[unit.unit] = _Underway(unit, course(unit, self.pack.rows, templates))

    def advance(self) -> list[PackEvent]:
        """One text of every unit that waits for one; then as `Pack.advance`."""
        events: list[PackEvent] = []
        for each in [each for each in self._underway.values() if not each.inside]:
            try:
                self._step(each)
            except Exception as error:
                if leaves_no_device(error):
                    raise
                events.append(self._over(each, failed(each.unit, error)))
                continue
            if each.left is not None and each.left <= 0 and not each.inside:
                reason = f"its augmentation took {each.seconds:.0f} s, and there is no time left"
                events.append(self._over(each, each.unit.ended(Outcome.OVER_BUDGET, reason)))
        if not any(isinstance(each.wants, Write) for each in self._underway.values()):
            for writer in self._writers.values():
                writer.close()
        return events + [told for event in self.pack.advance() for told in self._hear(event)]

    def drop(self, unit: int, reason: str, keep: bool = False) -> list[PackEvent]:
        """As `Pack.drop`; a course is taken up from the cache, and the unit from the state that it came with."""
        each = self._underway.get(unit)
        if each is None or self._trains(each):
            self._underway.pop(unit, None)
            return self.pack.drop(unit, reason, keep)
        for end in self.pack.drop(unit, reason, keep):
            if isinstance(end, UnitEnded) and isinstance(each.wants, Train):
                self._files.underway(each.wants, end.checkpoint)
        return [
            self._over(each, each.unit.ended(Outcome.DROPPED, reason, checkpoint=each.unit.resume if keep else None))
        ]

    def limit(self, unit: int, seconds_left: float) -> None:
        """As `Pack.limit`."""
        if (each := self._underway.get(unit)) is not None:
            each.unit = replace(each.unit, seconds_left=seconds_left)
            seconds_left -= each.seconds
        self.pack.limit(unit, seconds_left)

    # --- steps of a course ------------------------------------------------------------------------------------------

    def _step(self, each: _Underway) -> None:
        """Go on as far as the cache reaches, then do one thing."""
        if not each.begun:
            each.begun = True
            self._send(each, None)
        while (found := self._found(each.wants)) is not None:
            self._send(each, found)
        began = monotonic()
        if isinstance(each.wants, Write):
            each.computed = True
            text = self._writers[each.wants.writer].write(each.wants.asked)
            each.seconds += monotonic() - began
            self._send(each, text)
        elif self.pack.free > 0:
            each.inside = True
            if each.wants is None:
                # rows that were made anew may be others on another device, and the state was of those
                resume = None if each.computed else each.unit.resume
                self.pack.add(replace(each.unit, seconds_left=each.left, resume=resume), each.made)
            else:
                each.computed = True
                stage = self._files.begun(each.wants)
                self.pack.add(replace(stage.unit, seconds_left=each.left), stage.made)

    def _send(self, each: _Underway, answer: str | np.ndarray | None) -> None:
        try:
            each.wants = next(each.steps) if answer is None else each.steps.send(answer)
        except StopIteration as end:
            each.wants, each.made = None, end.value

    def _trains(self, each: _Underway) -> bool:
        """Whether its course is over and the pack has the unit itself."""
        return each.inside and each.wants is None

    def _over(self, each: _Underway, end: UnitEnded) -> UnitEnded:
        del self._underway[each.unit.unit]
        return end

    # --- what the pack says -----------------------------------------------------------------------------------------

    def _hear(self, event: PackEvent) -> Sequence[PackEvent]:
        each = self._underway.get(event.unit)
        if each is None:
            return [event]
        if self._trains(each):
            return [self._of_unit(each, event)]
        if isinstance(event, EpochDone):
            each.seconds += event.seconds
            each.logits = _logits(event, len(self.pack.rows.task.labels))
            assert isinstance(each.wants, Train)
            self._files.underway(each.wants, event.checkpoint)
        elif isinstance(event, UnitEnded):
            if event.outcome != Outcome.DONE:
                end = replace(event, reason=f"in self-training: {event.reason}", checkpoint=each.unit.resume)
                return [self._over(each, end)]
            assert isinstance(each.wants, Train)
            each.inside = False
            self._files.over(each.wants, each.logits)
            self._send(each, each.logits)
        return []

    def _of_unit(self, each: _Underway, event: PackEvent) -> PackEvent:
        if isinstance(event, UnitEnded):
            return self._over(each, event)
        if isinstance(event, Progress):
            return event
        seconds, each.seconds = each.seconds, 0.0
        return replace(event, seconds=event.seconds + seconds)

    def _found(self, wants: Write | Train | None) -> str | np.ndarray | None:
        """The answer, if this machine has it."""
        if isinstance(wants, Write):
            return self._writers[wants.writer].written(wants.asked)
        return None if wants is None else self._files.logits(wants)


def open_study(study: OpenStudy, device: torch.device) -> Pack | Staged:
    """A pack without units, staged where the study has what courses need. Raises as `pack.open_study`."""
    plain = pack.open_study(study, device)
    cache = None if study.cache is None else Path(study.cache)
    texts = None if cache is None else cache / "texts"
    writers = {name: Writer(pin, device, texts) for name, pin in study.writers.items()}
    if not writers and study.pool is None:
        return plain
    return Staged(plain, writers, None if cache is None else cache / "stages")


def _logits(done: EpochDone, classes: int) -> np.ndarray:
    """(validation, classes) float32, as they travel: float16."""
    packed = base64.b64decode(done.predictions.logits or "")
    return np.asarray(np.frombuffer(packed, "<f2").reshape(-1, classes), np.float32)
