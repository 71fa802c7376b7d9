"""Units that train on one frozen base: added, advanced step by step, told about as events."""

from __future__ import annotations

import traceback
from collections.abc import Generator
from dataclasses import dataclass

from orchestrator.contract import EpochDone, Outcome, Progress, TrainUnit, UnitEnded
from trial_worker.engine.base import Base
from trial_worker.engine.errors import UnitStopped, is_out_of_memory
from trial_worker.engine.memory import MicroSteps
from trial_worker.engine.unit import Clock, Event, Work
from trial_worker.tasks.rows import Rows

PackEvent = Progress | EpochDone | UnitEnded


@dataclass
class _Slot:
    unit: TrainUnit
    clock: Clock
    run: Generator[Event | None, None, None]


class Pack:
    """Slots on one base. Today one slot: a further unit is refused until the first has ended.

    Not for several threads; every method returns within one step, or one evaluation batch.
    """

    slots = 1

    def __init__(self, base: Base, rows: Rows) -> None:
        self.base = base
        self.rows = rows
        # a classifier's logits are few; a language model's decide how many tokens fit
        vocabulary = 0 if rows.task.labels else int(base.model.config.get_text_config().vocab_size)
        self.micro = MicroSteps(base.device, vocabulary)
        self._pace: float | None = None
        self._slot: _Slot | None = None

    @property
    def free(self) -> int:
        """Slots without a unit."""
        return self.slots - (self._slot is not None)

    def add(self, unit: TrainUnit) -> None:
        """Give a free slot this unit; nothing is computed yet.

        Raises:
            RuntimeError: no slot is free.
        """
        if self._slot is not None:
            raise RuntimeError(f"no free slot: unit {self._slot.unit.unit} is training")
        clock = Clock(self._pace)
        self._slot = _Slot(unit, clock, Work(self.base, self.rows, unit, self.micro, clock).run())

    def advance(self) -> list[PackEvent]:
        """Do one step, or one evaluation batch, of every unit; what there is to tell of it.

        A unit that raises ends as an event with the evidence; the pack is clean and goes on.
        """
        if self._slot is None:
            return []
        slot = self._slot
        try:
            event = next(slot.run)
        except StopIteration:
            return [self._end(Outcome.DONE)]
        except UnitStopped as stop:
            return [self._end(stop.outcome, str(stop))]
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            if is_out_of_memory(error):
                return [self._end(Outcome.INFEASIBLE, reason, traceback.format_exc())]
            return [self._end(Outcome.FAILED, reason, traceback.format_exc())]
        return [] if event is None else [event]

    def drop(self, unit: int, reason: str) -> list[PackEvent]:
        """Stop a unit where it is; nothing happens if it is in no slot."""
        if self._slot is None or self._slot.unit.unit != unit:
            return []
        return [self._end(Outcome.DROPPED, reason)]

    def limit(self, unit: int, seconds_left: float) -> None:
        """A unit may take this many device seconds beyond its reported epochs; nothing happens if it is in no slot."""
        if self._slot is not None and self._slot.unit.unit == unit:
            self._slot.clock.limit(seconds_left)

    def _end(self, outcome: Outcome, reason: str = "", evidence: str = "") -> UnitEnded:
        assert self._slot is not None
        slot, self._slot = self._slot, None
        slot.run.close()  # detaches the adapter
        self._pace = slot.clock.pace
        return UnitEnded(
            unit=slot.unit.unit,
            lease_epoch=slot.unit.lease_epoch,
            outcome=outcome,
            reason=reason,
            evidence=evidence,
        )
