"""A held unit and the messages about it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator import durable, snapshots
from orchestrator.contract import Checkpoint, Generation, OpenStudy, Outcome, TrainUnit, UnitEnded, derive_seed
from orchestrator.records import Lease
from orchestrator.spec import StudySpec
from trial_worker.desk import Taken


@dataclass(frozen=True)
class Held:
    """A unit of this worker, and where it is."""

    taken: Taken
    checkpoint: Checkpoint | None  # its newest, on this machine
    epoch: int = 0  # the last one it reported here
    chosen: int | None = None  # as `EpochDone.chosen`
    sent: bool = False  # the trainer has it
    ends: float = math.inf  # when the trainer expects it to end, monotonic seconds
    kills: int = 0  # of its trainer from outside, without an epoch in between
    most_rows: int | None = None  # in one micro-step

    @property
    def lease(self) -> Lease:
        return self.taken.lease

    @property
    def study(self) -> str:
        """The study's name."""
        return self.taken.record.name

    @property
    def base(self) -> tuple[int, str | None]:
        """What must be open for it to train: its study, and of several models which."""
        return self.taken.record.id, self.lease.model

    @property
    def complete(self) -> bool:
        """Whether its last epoch was reported: whatever happens now, nothing is left to train."""
        return self.chosen is not None or self.epoch == self.lease.settings.epochs

    def ended(self, outcome: Outcome, reason: str, **more: Any) -> UnitEnded:
        """The end of this unit, as the supervisor sees it."""
        return UnitEnded(unit=self.lease.unit, lease_epoch=self.lease.epoch, outcome=outcome, reason=reason, **more)


def intact(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint's file is what was written."""
    try:
        return durable.sha256(Path(checkpoint.path).read_bytes()) == checkpoint.sha256
    except OSError:
        return False


def open_message(taken: Taken) -> OpenStudy:
    """What the trainer needs to load a study, with the model of this unit."""
    record = taken.record
    return OpenStudy(
        study=record.id,
        name=record.name,
        task=record.spec.task,
        model=record.pin(taken.lease.model),
        data=str(taken.data),
        labels=record.labels,
        shots=record.spec.baselines.shots,
        template=record.spec.baselines.template,
        pool=None if record.pool is None else str(snapshots.place(taken.data.parent, record.pool)),
        writers=record.writers,
        cache=str(taken.data.parent.parent / "augmentation"),
        generation=generation_of(record.spec),
    )


def generation_of(spec: StudySpec) -> Generation | None:
    """What units write; after every epoch where epochs are compared by it: by racing, by shared epochs."""
    wanted = spec.generation
    if not wanted.metrics:
        return None
    every = spec.compared_by_text or spec.share_epochs
    return Generation(metrics=tuple(wanted.metrics), max_new_tokens=wanted.max_new_tokens, every_epoch=every)


def work(held: Held, scratch: str) -> TrainUnit:
    """What the trainer needs to train a unit. Seeds know nothing of trial numbers, attempts and workers."""
    record, lease = held.taken.record, held.lease
    train, validation = record.plan.split(lease.repeat, lease.fold)
    return TrainUnit(
        study=record.id,
        unit=lease.unit,
        lease_epoch=lease.epoch,
        trial=lease.trial,
        repeat=lease.repeat,
        fold=lease.fold,
        seed=derive_seed(record.spec.seed, lease.configuration, lease.fold, lease.repeat),
        settings=lease.settings,
        train=train,
        validation=validation,
        seconds_left=lease.seconds_left,
        scratch=scratch,
        resume=held.checkpoint if held.checkpoint is not None and held.checkpoint.kind == "resume" else None,
        all_logits=record.spec.share_epochs or lease.settings.patience > 0,
        model=lease.model,
        most_rows=held.most_rows,
    )
