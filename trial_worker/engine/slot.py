"""One unit in its slot: what it computes next, and what becomes of it. It knows nothing of its company."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic

import numpy as np
from torch import Tensor

from orchestrator.contract import Checkpoint, EpochDone, Generation, Outcome, Progress, Settings, TrainUnit
from trial_worker.augment.made import Made
from trial_worker.engine import optimizer, state
from trial_worker.engine.answering import Answering
from trial_worker.engine.base import Base
from trial_worker.engine.batches import effective_batches, epoch_order, steps_per_epoch
from trial_worker.engine.class_weights import balanced
from trial_worker.engine.clock import Clock, Forecast
from trial_worker.engine.dropout import row_keys
from trial_worker.engine.errors import UnitStopped
from trial_worker.engine.installed import Installed
from trial_worker.engine.losses import Bundle, Sample, bundles, share_of
from trial_worker.engine.scores import pack_predictions
from trial_worker.engine.state import Position
from trial_worker.engine.stopping import Stopping
from trial_worker.engine.training_part import training_part
from trial_worker.tasks.interface import Scores
from trial_worker.tasks.rows import Rows


class Slot:
    """A unit that trains. It waits for rows to be computed: of its effective batch, or such as are evaluated.

    train: numbers of the rows it trains on, made ones included. waiting: rows to compute, in order. evaluating: whether
    they are of the stopping or the validation part. answering: texts that are written once these are scored. finished:
    nothing is left to do.
    """

    def __init__(
        self,
        place: int,
        unit: TrainUnit,
        base: Base,
        rows: Rows,
        network: Installed,
        made: Sequence[Made] = (),
        generation: Generation | None = None,
    ) -> None:
        """Give the unit its weights, fresh or from its checkpoint.

        Raises:
            ValueError: settings or rows that this study's model cannot take, or a checkpoint that is not this unit's.
        """
        self.place = place
        self.unit = unit
        part = training_part(base, rows, unit, made)
        self.train = part.train
        self.items = rows.task.fitted(part.items, unit.train)  # a scale that no setting changes: losses are compared
        self._stopping = Stopping(part.stopping, self.settings.patience) if part.stopping else None
        self.clock = Clock()
        self.clock.limit(unit.seconds_left)
        self.at = Position()
        self.waiting: list[Bundle] = []
        self.evaluating = False
        self._pool = rows.pool
        self._task = rows.task
        self._network = network
        weighs = self.settings.class_weights == "balanced"
        if (self.compares or weighs) and not rows.task.one_class:
            raise ValueError("mixup_alpha, r_drop_alpha and class_weights need rows of one class each")
        self._weights = balanced(self.items, self.train) if weighs else {}
        self._batches: list[list[int]] = []  # of this epoch, still to come
        self._forecast = Forecast(0.0, 0.0, 0.0)
        self._nats = 0.0  # of the effective batch, so far
        self._scores: dict[int, tuple[Scores, int]] = {}
        self._parts: list[Sequence[int]] = []  # rows to evaluate after those that wait
        self._base, self._generation = base, generation
        self.answering: Answering | None = None
        saved = self._saved()
        over = saved is not None and saved.kind == "adapter" and self._stopping is not None
        self.finished = over or self.at.epoch == self.settings.epochs
        if not self.finished:
            network.open(place, self.settings, unit.seed)
            if saved is not None:
                state.restore(saved, network.memory, place)

    # --- what it is, and how much -------------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        return self.unit.settings

    @property
    def epoch_steps(self) -> int:
        """Optimizer steps of one epoch."""
        return steps_per_epoch(len(self.train), self.settings.batch_size)

    @property
    def between_epochs(self) -> bool:
        """Whether `begin_epoch` is due: at the start, and after each epoch but the last."""
        return not self.waiting and not self.evaluating

    @property
    def batch(self) -> list[int]:
        """The rows of the effective batch under way."""
        return self._batches[0]

    @property
    def batch_weight(self) -> int:
        """What the loss of the effective batch is divided by."""
        return max(sum(self.items[row].weight for row in self.batch), 1)

    def tokens(self, rows: Sequence[int]) -> int:
        """Work of training on these rows and evaluating: a backward pass costs twice a forward one."""
        evaluated = (*self.unit.validation, *(self._stopping.rows if self._stopping else ()))
        return self._training(rows) + sum(self.items[row].tokens for row in evaluated)

    def _training(self, rows: Sequence[int]) -> int:
        copies = 2 if self.settings.r_drop_alpha else 1
        return copies * sum(self.items[row].tokens * 3 for row in rows)

    @property
    def draws(self) -> bool:
        """Whether anything random belongs to its rows now."""
        chosen = self.settings
        rates = (chosen.lora_dropout, chosen.dropout, chosen.neftune_alpha, chosen.token_dropout)
        return not self.evaluating and any(rates)

    @property
    def compares(self) -> bool:
        """Whether the loss of a row depends on others."""
        return not self.evaluating and any((self.settings.mixup_alpha, self.settings.r_drop_alpha))

    @property
    def copies(self) -> int:
        """How often a step computes each row."""
        return 2 if self.settings.r_drop_alpha else 1

    def size(self, bundle: Bundle) -> int:
        """Tokens."""
        return sum(self.items[row].tokens for row, _ in bundle)

    def weight(self, row: int) -> float:
        """What the row's loss is multiplied by now."""
        return 1.0 if self.evaluating else self._weights.get(row, 1.0)

    def keys(self, samples: Sequence[Sample]) -> Tensor:
        """(samples,) int64, for what is drawn for these at the step under way."""
        rows, copies = zip(*samples, strict=True)
        return row_keys(self.unit.seed, self.at.step + 1, rows, copies)

    def share(self, bundle: Bundle) -> float:
        """Of itself in each of its rows, where they are mixed at the step under way."""
        return share_of(bundle, self.settings, self.unit.seed, self.at.step + 1)

    # --- its course ---------------------------------------------------------------------------------------------

    def begin_epoch(self, pace: float | None, text_seconds: float | None = None) -> None:
        """Wait for the epoch's next batch, from wherever the unit was broken off.

        pace: seconds per token of work, as epochs on this device took; None before the first. text_seconds: the same
        for each text that was written.

        Raises:
            UnitStopped: OVER_BUDGET, the epoch would not end in time.
        """
        order = epoch_order(self.train, self.unit.seed, self.at.epoch + 1)
        batches = list(effective_batches(order, self.settings.batch_size))
        self._batches = batches[self.at.step - self.at.epoch * self.epoch_steps :]
        self.clock.spend(self.at.seconds)
        work = self.tokens([row for batch in self._batches for row in batch])
        texts = len(self.unit.validation) if self._writes_at(self.at.epoch + 1) else 0
        self.clock.demand((pace or 0.0) * work + (text_seconds or 0.0) * texts)
        work += (self.settings.epochs - self.at.epoch - 1) * self.tokens(self.train)
        self._forecast = Forecast(monotonic(), work, work)
        self._next_batch()

    def _next_batch(self) -> None:
        self._nats = 0.0
        if self._batches:
            self.waiting = self._bundles()
        else:
            self.evaluating, self._scores, self.answering = True, {}, None
            self._parts = [self._stopping.rows, self._scored] if self._stopping else [self._scored]
            self._next_part()

    def _next_part(self) -> None:
        """Not both at once: what shares a batch changes the last bits of a loss, and validation rows decide nothing."""
        rows = sorted(self._parts.pop(0), key=lambda row: (-self.items[row].length, row))
        self.waiting = [((row, 0),) for row in rows]

    @property
    def _scored(self) -> Sequence[int]:
        """Rows to evaluate at this epoch: the validation part, of a pool only after the last."""
        if not self._pool or self.at.epoch + 1 == self.settings.epochs:
            return self.unit.validation
        return [row for row in self.unit.validation if row not in self._pool] or self.unit.validation[:1]

    def _bundles(self) -> list[Bundle]:
        return bundles(self.batch, self.settings, self.unit.seed, self.at.step + 1)

    def restart_batch(self) -> None:
        """What was computed of the effective batch is void: a go that broke off left only part of its gradients."""
        if self.evaluating:
            return
        self._network.memory.gradients[self.place].zero_()
        self._nats, self.waiting = 0.0, self._bundles()

    def computed(self, samples: Sequence[Sample], nats: float) -> None:
        """Forward and backward of these rows of the effective batch are done; nats: summed over the samples."""
        self._nats += nats / self.copies
        done = set(samples)
        self.waiting = [bundle for bundle in self.waiting if bundle[0] not in done]

    def step(self, norm: float) -> Progress:
        """The effective batch is complete: one optimizer step. norm: of its gradients.

        Raises:
            UnitStopped: DIVERGED, before anything is changed.
        """
        number = self.at.step + 1
        weight = sum(self.items[row].weight for row in self.batch)
        loss = self._nats / max(weight, 1)
        if not math.isfinite(loss):
            raise UnitStopped(Outcome.DIVERGED, f"loss {loss} at step {number}")
        if not math.isfinite(norm):
            raise UnitStopped(Outcome.DIVERGED, f"gradient norm {norm} at step {number}")
        settings, memory = self.settings, self._network.memory
        steps = self.epoch_steps * settings.epochs
        factor = optimizer.schedule_factor(settings, self.at.step, steps)
        optimizer.clip(memory, self.place, norm, settings.max_grad_norm)
        optimizer.step(memory, self.place, settings, settings.learning_rate * factor)
        self.at.step = number
        self.at.nats += self._nats
        self.at.weight += weight
        self._forecast.did(self._training(self.batch))
        self._batches.pop(0)
        self._next_batch()
        to_go = self._forecast.to_go(monotonic())
        return Progress(unit=self.unit.unit, epoch=self.at.epoch + 1, step=number, steps=steps, loss=loss, to_go=to_go)

    def scored(self, samples: Sequence[Sample], scores: Scores) -> None:
        """These rows of the stopping or the validation part are scored, in this order."""
        self._scores.update({row: (scores, place) for place, (row, _) in enumerate(samples)})
        self.waiting = [bundle for bundle in self.waiting if bundle[0][0] not in self._scores]
        if not self.waiting and self._parts:
            self._next_part()

    def writes(self) -> bool:
        """Whether texts are still to be written, now that all rows are scored."""
        if not self.evaluating or self.waiting or not self._writes_at(self.at.epoch + 1):
            return False
        if self.answering is None:
            assert self._generation is not None
            self.answering = Answering(self._base, self._generation, {row: self.items[row] for row in self._scored})
        return bool(self.answering.todo)

    def _writes_at(self, epoch: int) -> bool:
        wanted = self._generation
        if wanted is None:
            return False
        any_may_count = wanted.every_epoch or self._stopping is not None
        return any_may_count or epoch == self.settings.epochs

    def end_epoch(self) -> EpochDone:
        """The epoch's results, its checkpoint written before anybody hears of it.

        Raises:
            UnitStopped: DIVERGED.
        """
        unit, epoch = self.unit, self.at.epoch + 1
        validation = [self.items[row] for row in self._scored]
        scores = self._of_part("validation", self._scored)
        stop = self._stopping is not None and self._hear(self._stopping, epoch)
        train_loss, self.at = self.at.train_loss, Position(epoch=epoch, step=self.at.step)
        written = {} if self.answering is None else self.answering.tallies()
        self.evaluating, self._scores, self.answering = False, {}, None
        self.finished = stop or epoch == self.settings.epochs
        chosen = None
        if self.finished and self._stopping is not None:
            chosen = self._stopping.give_back(self._network.memory.named(self.place))
        seconds = self.clock.close_epoch()
        return EpochDone(
            unit=unit.unit,
            lease_epoch=unit.lease_epoch,
            epoch=epoch,
            train_loss=train_loss,
            seconds=seconds,
            tallies=self._task.tallies(validation, scores) | written,
            predictions=pack_predictions(scores, with_logits=self.finished or unit.all_logits),
            checkpoint=self.checkpoint(),
            chosen=chosen,
        )

    def _of_part(self, name: str, rows: Sequence[int]) -> Scores:
        scores = _in_order([self._scores[row] for row in rows])
        if not math.isfinite(scores.nats.sum()):
            raise UnitStopped(Outcome.DIVERGED, f"{name} loss {scores.nats.sum()} after epoch {self.at.epoch + 1}")
        return scores

    def _hear(self, stopping: Stopping, epoch: int) -> bool:
        scores = self._of_part("stopping", stopping.rows)
        loss = float(scores.nats.sum()) / max(int(scores.counts.sum()), 1)
        return stopping.heard(epoch, loss, self._network.memory.named(self.place))

    def checkpoint(self) -> Checkpoint | None:
        """Write the last step boundary into the unit's scratch folder: "adapter" after the last epoch, else "resume".

        The end of an epoch has one file with one content, however often it is written. Of an evaluation under way the
        seconds count, though it will be done again.

        Returns:
            What was written; None without a scratch folder, or where it cannot be written, which is said on stderr.
        """
        unit, at = self.unit, self.at
        if unit.scratch is None:
            return None
        path = Path(unit.scratch) / f"u{unit.unit}-l{unit.lease_epoch}-e{at.epoch}-s{at.step}.safetensors"
        kind = "adapter" if self.finished else "resume"
        at = replace(at, seconds=self.clock.spent if at.step > at.epoch * self.epoch_steps else 0.0)
        try:
            best = None if self._stopping is None else self._stopping.best
            name = state.identity(unit, self._base.pin)
            return state.write(path, kind, name, at, self._network.memory, self.place, best)
        except OSError as error:
            print(f"unit {unit.unit}: no checkpoint of step {at.step} could be written: {error}", file=sys.stderr)
            return None

    def _saved(self) -> state.Saved | None:
        """What the unit goes on from, `at` set to its place; None: it begins."""
        if self.unit.resume is None:
            return None
        saved = state.read(self.unit.resume, state.identity(self.unit, self._base.pin))
        at, done = saved.position, saved.position.epoch * self.epoch_steps
        inside = done <= at.step <= done + self.epoch_steps and 0 <= at.epoch < self.settings.epochs
        if not inside and (at.epoch, at.step) != (self.settings.epochs, done):
            raise ValueError(f"checkpoint {saved.path}: {at} is no place of this unit")
        if (saved.best is not None) != (self._stopping is not None and at.epoch > 0):
            raise ValueError(f"checkpoint {saved.path}: a unit has a best epoch if it has patience and finished epochs")
        if self._stopping is not None:
            self._stopping.best = saved.best
        self.at = at
        return saved


def _in_order(found: Sequence[tuple[Scores, int]]) -> Scores:
    logits = [scores.logits[i] for scores, i in found if scores.logits is not None]
    return Scores(
        nats=np.array([scores.nats[i] for scores, i in found]),
        counts=np.array([scores.counts[i] for scores, i in found]),
        correct=np.array([scores.correct[i] for scores, i in found]),
        logits=np.stack(logits) if logits else None,
        outputs=[scores.outputs[i] for scores, i in found if scores.outputs is not None] or None,
    )
