"""Units that train on one frozen base: added, advanced step by step, told about as events."""

from __future__ import annotations

import traceback
from collections.abc import Generator
from dataclasses import dataclass

import torch

from orchestrator.contract import Checkpoint, EpochDone, OpenStudy, Outcome, Progress, TrainUnit, UnitEnded
from trial_worker.engine.base import Base
from trial_worker.engine.errors import UnitStopped, is_out_of_memory, leaves_no_device
from trial_worker.engine.memory import MicroSteps
from trial_worker.engine.unit import Clock, Event, Work
from trial_worker.tasks import task_named
from trial_worker.tasks.rows import Rows, read_snapshot

PackEvent = Progress | EpochDone | UnitEnded


@dataclass
class _Slot:
    unit: TrainUnit
    work: Work
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
        work = Work(self.base, self.rows, unit, self.micro.capped(unit.most_rows), Clock(self._pace))
        self._slot = _Slot(unit, work, work.run())

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
            if leaves_no_device(error):
                raise  # the process ends; its supervisor finds out whose fault it was
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            if is_out_of_memory(error):
                return [self._end(Outcome.INFEASIBLE, reason, traceback.format_exc())]
            return [self._end(Outcome.FAILED, reason, traceback.format_exc())]
        return [] if event is None else [event]

    def drop(self, unit: int, reason: str, keep: bool = False) -> list[PackEvent]:
        """Stop a unit where it is; nothing happens if it is in no slot.

        keep: write a checkpoint first, see `Work.checkpoint`.
        """
        if self._slot is None or self._slot.unit.unit != unit:
            return []
        checkpoint = self._slot.work.checkpoint() if keep else None
        return [self._end(Outcome.DROPPED, reason, checkpoint=checkpoint)]

    def limit(self, unit: int, seconds_left: float) -> None:
        """A unit may take this many device seconds beyond its reported epochs; nothing happens if it is in no slot."""
        if self._slot is not None and self._slot.unit.unit == unit:
            self._slot.work.clock.limit(seconds_left)

    def _end(
        self, outcome: Outcome, reason: str = "", evidence: str = "", checkpoint: Checkpoint | None = None
    ) -> UnitEnded:
        assert self._slot is not None
        slot, self._slot = self._slot, None
        slot.run.close()  # detaches the adapter
        self._pace = slot.work.clock.pace
        return UnitEnded(
            unit=slot.unit.unit,
            lease_epoch=slot.unit.lease_epoch,
            outcome=outcome,
            reason=reason,
            evidence=evidence,
            checkpoint=checkpoint,
        )


def open_study(study: OpenStudy, device: torch.device) -> Pack:
    """A pack without units on the study's model, tokenizer and rows.

    Raises:
        ValueError: no such task, or a model or row that does not fit it.
        OSError: a file cannot be read.
    """
    task = task_named(study.task, study.labels)
    rows = read_snapshot(study.data)
    base = Base.load(study.model, task.family, len(task.labels), device)
    return Pack(base, Rows(task, rows, base.tokenizer))
