"""One unit, told from start to end: attach, train its epochs, evaluate each; where it was broken off, go on."""

from __future__ import annotations

import math
import sys
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic

import torch

from orchestrator.contract import Checkpoint, EpochDone, Outcome, Progress, Settings, TrainUnit
from trial_worker.engine import optimizer as optim
from trial_worker.engine import state
from trial_worker.engine.adapter import Network, attached
from trial_worker.engine.base import Base
from trial_worker.engine.batches import effective_batches, epoch_order, steps_per_epoch
from trial_worker.engine.errors import UnitStopped, is_out_of_memory
from trial_worker.engine.evaluate import evaluate, pack_predictions
from trial_worker.engine.memory import MicroSteps
from trial_worker.engine.state import Position
from trial_worker.tasks.interface import Item, collate, target_nats
from trial_worker.tasks.rows import Rows

Event = Progress | EpochDone


@dataclass
class Clock:
    """Device seconds: what the unit may still take, and what an epoch is expected to take.

    pace: seconds per token of work, learnt from the last epoch of any unit; None before the first.
    """

    pace: float | None = None
    _until: float = math.inf
    _began: float | None = None  # when the running epoch did

    def limit(self, seconds_left: float | None) -> None:
        """The unit may take so many seconds beyond its reported epochs; None lifts the limit.

        They count from the start of the running epoch: whoever sets the limit knows nothing of that epoch yet, and
        counted from now its time would be given twice.
        """
        start = monotonic() if self._began is None else self._began
        self._until = math.inf if seconds_left is None else start + seconds_left

    def begin(self, spent: float = 0.0) -> None:
        """An epoch starts now, or goes on that took `spent` seconds before it was broken off; they count too."""
        self._began = monotonic() - spent
        self._until -= spent

    @property
    def elapsed(self) -> float:
        """Seconds of the running epoch."""
        return 0.0 if self._began is None else monotonic() - self._began

    def demand(self, tokens: int) -> None:
        """Raises UnitStopped (OVER_BUDGET) where an epoch over so many tokens would not end in time."""
        forecast, left = (self.pace or 0.0) * tokens, self._until - monotonic()
        if left <= 0 or forecast > left:
            raise UnitStopped(
                Outcome.OVER_BUDGET, f"an epoch takes about {forecast:.0f} s, and {max(left, 0):.0f} s are left"
            )


@dataclass
class Work:
    """A unit on its way: what it was given, and where it is."""

    base: Base
    rows: Rows
    order: TrainUnit
    micro: MicroSteps
    clock: Clock
    at: Position = field(default_factory=Position)
    items: list[Item] = field(default_factory=list)
    _attached: tuple[Network, torch.optim.AdamW] | None = None  # once it trains

    @property
    def settings(self) -> Settings:
        return self.order.settings

    @property
    def epoch_steps(self) -> int:
        """Optimizer steps of one epoch."""
        return steps_per_epoch(len(self.order.train), self.settings.batch_size)

    def run(self) -> Generator[Event | None, None, None]:
        """Train the unit; yields after every step, and None where there is nothing to tell.

        Closing the generator detaches the adapter and leaves the base as it was.

        Raises:
            UnitStopped: diverged, infeasible or over budget.
            ValueError: settings or rows that this study's model cannot take, or a checkpoint that is not this unit's.
        """
        unit, settings = self.order, self.settings
        self.items = usable_items(self.base, self.rows, unit)
        self.clock.limit(unit.seconds_left)
        saved = self._saved()
        if self.at.epoch == settings.epochs:
            return
        steps = self.epoch_steps * settings.epochs
        with attached(self.base, settings, unit.seed, len(self.rows.task.labels)) as network:
            adamw = optim.build(network.parameters, settings)
            if saved is not None:
                state.restore(saved, network.parameters, adamw)
            self._attached = network, adamw
            for epoch in range(self.at.epoch + 1, settings.epochs + 1):
                batches = self._batches_left(epoch)
                self.clock.begin(self.at.seconds)
                self.clock.demand(self._tokens([row for batch in batches for row in batch]))
                for batch in batches:
                    factor = optim.schedule_factor(settings.lr_schedule, self.at.step, steps, settings.warmup_ratio)
                    self.at.step += 1
                    loss = self._step(network, adamw, batch, settings.learning_rate * factor)
                    yield Progress(unit=unit.unit, epoch=epoch, step=self.at.step, steps=steps, loss=loss)
                done = yield from self._evaluated(network, epoch)
                self.clock.pace = done.seconds / self._tokens(unit.train)
                yield done

    def checkpoint(self) -> Checkpoint | None:
        """Write the last step boundary into the unit's scratch folder: "adapter" after the last epoch, else "resume".

        The end of an epoch has one file with one content, however often it is written. Of an evaluation under way the
        seconds count, though it will be done again.

        Returns:
            What was written; None without a scratch folder, or where it cannot be written, which is said on stderr.
            Of a unit that does not train yet, what it is to go on from.
        """
        unit, at = self.order, self.at
        if self._attached is None:
            return unit.resume
        if unit.scratch is None:
            return None
        network, adamw = self._attached
        path = Path(unit.scratch) / f"u{unit.unit}-l{unit.lease_epoch}-e{at.epoch}-s{at.step}.safetensors"
        kind = "adapter" if at.epoch == self.settings.epochs else "resume"
        at = replace(at, seconds=self.clock.elapsed if at.step > at.epoch * self.epoch_steps else 0.0)
        try:
            return state.write(path, kind, state.identity(unit, self.base.pin), at, network.parameters, adamw)
        except OSError as error:
            print(f"unit {unit.unit}: no checkpoint of step {at.step} could be written: {error}", file=sys.stderr)
            return None

    def _saved(self) -> state.Saved | None:
        """What the unit goes on from, `at` set to its place; None: it begins."""
        if self.order.resume is None:
            return None
        saved = state.read(self.order.resume, state.identity(self.order, self.base.pin))
        at, done = saved.position, saved.position.epoch * self.epoch_steps
        inside = done <= at.step <= done + self.epoch_steps and 0 <= at.epoch < self.settings.epochs
        if not inside and (at.epoch, at.step) != (self.settings.epochs, done):
            raise ValueError(f"checkpoint {saved.path}: {at} is no place of this unit")
        self.at = at
        return saved

    def _batches_left(self, epoch: int) -> list[list[int]]:
        """The rows of each step that this epoch (1-based) still has to do."""
        order = epoch_order(self.order.train, self.order.seed, epoch)
        batches = list(effective_batches(order, self.settings.batch_size))
        return batches[self.at.step - (epoch - 1) * self.epoch_steps :]

    def _tokens(self, rows: Sequence[int]) -> int:
        """Work of training on these rows and evaluating: a backward pass costs twice a forward one."""
        return sum(self.items[row].length * 3 for row in rows) + sum(
            self.items[row].length for row in self.order.validation
        )

    def _step(self, network: Network, adamw: torch.optim.AdamW, batch: Sequence[int], learning_rate: float) -> float:
        """One optimizer step over the effective batch; its training loss in nats.

        Raises:
            UnitStopped: DIVERGED before anything is changed, or INFEASIBLE.
        """
        items = [self.items[row] for row in batch]
        weight = sum(item.weight for item in items)
        nats = self._gradients(network, adamw, batch, items, weight)
        loss = nats / max(weight, 1)
        if not math.isfinite(loss):
            raise UnitStopped(Outcome.DIVERGED, f"loss {loss} at step {self.at.step}")
        norm = optim.gradient_norm(network.parameters)
        if not math.isfinite(norm):
            raise UnitStopped(Outcome.DIVERGED, f"gradient norm {float(norm)} at step {self.at.step}")
        optim.clip(network.parameters, norm, self.settings.max_grad_norm)
        for group in adamw.param_groups:
            group["lr"] = learning_rate
        adamw.step()
        self.at.nats += nats
        self.at.weight += weight
        return loss

    def _gradients(
        self, network: Network, adamw: torch.optim.AdamW, batch: Sequence[int], items: list[Item], weight: int
    ) -> float:
        """Gradients of the effective batch's loss, its nats returned; smaller micro-steps until it fits."""
        while True:
            adamw.zero_grad(set_to_none=True)
            try:
                return sum(
                    self._micro_step(network, [batch[i] for i in group], [items[i] for i in group], weight)
                    for group in self.micro.split(items)
                )
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                note = str(error).splitlines()[0]
            # outside the handler: its traceback would keep the tensors alive that did not fit
            adamw.zero_grad(set_to_none=True)
            self.micro.shrink(items, note)

    def _micro_step(self, network: Network, rows: list[int], items: list[Item], weight: int) -> float:
        """Forward and backward of a few rows; the loss is divided by the weight of the whole effective batch."""
        batch = collate(items, int(self.base.tokenizer.pad_token_id or 0), self.base.device)
        network.draws.keys = network.draws.of(self.at.step, rows, self.base.device)
        nats = target_nats(network.logits(batch), batch).sum()  # float64
        torch.autograd.backward(nats / max(weight, 1))
        return float(nats.detach())

    def _evaluated(self, network: Network, epoch: int) -> Generator[None, None, EpochDone]:
        """The epoch's results on the validation rows, its checkpoint written before anybody hears of it."""
        unit, task = self.order, self.rows.task
        validation = [self.items[row] for row in unit.validation]
        scores = yield from evaluate(network, self.base, validation, self.micro, keep_logits=bool(task.labels))
        if not math.isfinite(scores.nats.sum()):
            raise UnitStopped(Outcome.DIVERGED, f"validation loss {scores.nats.sum()} after epoch {epoch}")
        train_loss, self.at = self.at.train_loss, Position(epoch=epoch, step=self.at.step)
        checkpoint = self.checkpoint()
        return EpochDone(
            unit=unit.unit,
            lease_epoch=unit.lease_epoch,
            epoch=epoch,
            train_loss=train_loss,
            seconds=self.clock.elapsed,
            tallies=task.tallies(validation, scores),
            predictions=pack_predictions(scores, with_logits=epoch == self.settings.epochs),
            checkpoint=checkpoint,
        )


def usable_items(base: Base, rows: Rows, unit: TrainUnit) -> list[Item]:
    """The study's items at this unit's `max_length`.

    Raises:
        ValueError: positions beyond the model's reach, an empty part, or nothing supervised in one.
    """
    limit = unit.settings.max_length
    if limit > base.limit and rows.longest > base.limit:
        raise ValueError(f"max_length must be at most {base.limit} for this model, got {limit}")
    items = rows.items(min(limit, base.limit))
    for part, numbers in (("training", unit.train), ("validation", unit.validation)):
        if not numbers:
            raise ValueError(f"the {part} part has no rows")
        if not any(items[row].weight for row in numbers):
            raise ValueError(f"no {part} row keeps a supervised token within max_length {limit}")
    return items
