"""One unit of the light engine on its way: steps, an evaluation after each epoch, checkpoints."""

from __future__ import annotations

import base64
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from benchmarks.chaos import learner
from benchmarks.chaos.learner import Examples, State
from benchmarks.chaos.planted import Planted, Stopped, happen
from orchestrator import durable
from orchestrator.contract import (
    Checkpoint,
    EpochDone,
    Outcome,
    Predictions,
    Progress,
    TrainUnit,
    digest,
    pack_floats,
)


@dataclass
class Course:
    """A unit in a slot. After `step` steps of `epoch` finished epochs; an epoch's evaluation is a step of its own."""

    order: TrainUnit
    data: Examples
    faults: tuple[Planted, ...] = ()
    state: State = field(default_factory=dict)
    epoch: int = 0
    step: int = 0
    nats: float = 0.0  # training nats of the running epoch
    seconds: float = 0.0  # device seconds of the running epoch, those before a suspension included
    spent: float = 0.0  # device seconds here, of all epochs; writing checkpoints is none of them
    limit: float = math.inf  # device seconds that the unit may take from the start of the running epoch
    pace: float = 0.0  # device seconds of the last epoch
    since: float = 0.0  # when it began here
    goes: int = 0  # steps and evaluations since then

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.order.train) / self.order.settings.batch_size)

    def start(self) -> None:
        """Begin, or go on from the order's checkpoint.

        Raises:
            ValueError: the checkpoint is damaged, or another unit's. OSError: it cannot be read.
        """
        unit = self.order
        self.since = perf_counter()
        self.state = learner.begin(unit.settings, unit.seed, self.data.classes)
        if unit.resume is not None:
            self._restore(unit.resume)
        if unit.seconds_left is not None:
            self.limit = unit.seconds_left

    def advance(self) -> tuple[Progress | EpochDone | None, bool]:
        """One step or one evaluation: (what there is to tell, whether the unit has ended).

        Raises:
            Stopped: diverged, infeasible or over budget.
        """
        unit, began = self.order, perf_counter()
        if self.epoch == unit.settings.epochs:
            return None, True
        self.goes += 1
        within = self.step - self.epoch * self.steps_per_epoch
        if within == self.steps_per_epoch:
            return self._evaluated(began), False
        if within == 0 and self.pace > self.limit:
            raise Stopped(Outcome.OVER_BUDGET, f"an epoch takes {self.pace:.2f} s, and {self.limit:.2f} s are left")
        happen(self.faults, unit.settings, self.step + 1)
        order = learner.order(unit.train, unit.seed, self.epoch + 1)
        rows = order[within * unit.settings.batch_size : (within + 1) * unit.settings.batch_size]
        steps = self.steps_per_epoch * unit.settings.epochs
        self.step += 1
        nats = learner.step(self.state, self.data, rows, unit.settings, unit.seed, self.step, steps)
        if not math.isfinite(nats):
            raise Stopped(Outcome.DIVERGED, f"loss {nats} at step {self.step}")
        self.nats += nats
        self.spend(perf_counter() - began)
        told = Progress(
            unit=unit.unit,
            epoch=self.epoch + 1,
            step=self.step,
            steps=steps,
            loss=nats / len(rows),
            to_go=self._to_go(steps - self.step + unit.settings.epochs - self.epoch),
        )
        return told, False

    def _to_go(self, goes: int) -> float:
        """Seconds that so many steps and evaluations will take."""
        return (perf_counter() - self.since) / self.goes * goes

    def spend(self, seconds: float) -> None:
        """The device worked so long for this unit."""
        self.seconds += seconds
        self.spent += seconds

    def suspended(self) -> Checkpoint | None:
        """A checkpoint of where the unit is; None before its first step, or where none can be written."""
        return self._save("resume") if self.step else None

    def _evaluated(self, began: float) -> EpochDone:
        unit = self.order
        scores = learner.logits(self.state, self.data, unit.validation, unit.settings)
        truth = self.data.y[list(unit.validation)]
        nats = learner.nats_of(scores, truth)
        if not math.isfinite(nats.sum()):
            raise Stopped(Outcome.DIVERGED, f"validation loss {nats.sum()} after epoch {self.epoch + 1}")
        self.spend(perf_counter() - began)
        loss, seconds = self.nats / len(unit.train), self.seconds
        self.limit -= seconds
        self.pace, self.epoch, self.nats, self.seconds = seconds, self.epoch + 1, 0.0, 0.0
        last = self.epoch == unit.settings.epochs
        return EpochDone(
            unit=unit.unit,
            lease_epoch=unit.lease_epoch,
            epoch=self.epoch,
            train_loss=loss,
            seconds=seconds,
            tallies=learner.tallies(scores, truth),
            predictions=Predictions(
                nats=pack_floats(nats.tolist()),
                counts=pack_floats([1.0] * len(nats)),
                logits=base64.b64encode(scores.astype("<f2").tobytes()).decode() if last else None,
            ),
            checkpoint=self._save("adapter" if last else "resume"),
        )

    def _save(self, kind: str) -> Checkpoint | None:
        unit = self.order
        if unit.scratch is None:
            return None
        tensors = learner.weights(self.state) if kind == "adapter" else {**self.state, "nats": np.array(self.nats)}
        header = {**self._identity(), "kind": kind, "epoch": str(self.epoch), "seconds": repr(self.seconds)}
        content = save(tensors, metadata={**header, "step": str(self.step)})
        name = f"u{unit.unit}-l{unit.lease_epoch}-e{self.epoch}-s{self.step}.safetensors"
        path = Path(unit.scratch) / name
        try:
            sha256 = durable.write(path, content)
        except OSError:
            return None
        return Checkpoint(
            path=str(path), sha256=sha256, bytes=len(content), kind=kind, epoch=self.epoch, step=self.step
        )

    def _restore(self, checkpoint: Checkpoint) -> None:
        content = Path(checkpoint.path).read_bytes()
        if durable.sha256(content) != checkpoint.sha256:
            raise ValueError(f"checkpoint epoch {checkpoint.epoch} is damaged (sha256)")
        header = _header(content)
        if any(header.get(name) != value for name, value in self._identity().items()):
            raise ValueError(f"checkpoint epoch {checkpoint.epoch} is of another unit")
        try:
            tensors = load(content)
        except SafetensorError as error:
            raise ValueError(f"checkpoint epoch {checkpoint.epoch} cannot be read: {error}") from error
        self.nats = float(tensors.pop("nats"))
        self.state = tensors
        self.epoch, self.step, self.seconds = checkpoint.epoch, checkpoint.step, float(header["seconds"])

    def _identity(self) -> dict[str, str]:
        """What a checkpoint must share with a unit that goes on from it."""
        unit = self.order
        return {"seed": str(unit.seed), "settings": digest({name: str(v) for name, v in vars(unit.settings).items()})}


def _header(content: bytes) -> dict[str, Any]:
    size = int.from_bytes(content[:8], "little")
    return dict(json.loads(content[8 : 8 + size]).get("__metadata__", {}))
