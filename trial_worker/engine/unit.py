"""One unit, told from start to end: attach, train its epochs, evaluate each."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from time import monotonic

import torch

from orchestrator.contract import EpochDone, Outcome, Progress, Settings, TrainUnit
from trial_worker.engine import optimizer as optim
from trial_worker.engine.adapter import Network, attached
from trial_worker.engine.base import Base
from trial_worker.engine.batches import effective_batches, epoch_order, steps_per_epoch
from trial_worker.engine.errors import UnitStopped, is_out_of_memory
from trial_worker.engine.evaluate import evaluate, pack_predictions
from trial_worker.engine.memory import MicroSteps
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

    def begin(self) -> None:
        """An epoch starts now."""
        self._began = monotonic()

    def demand(self, tokens: int) -> None:
        """Raises UnitStopped (OVER_BUDGET) where an epoch over so many tokens would not end in time."""
        forecast, left = (self.pace or 0.0) * tokens, self._until - monotonic()
        if left <= 0 or forecast > left:
            raise UnitStopped(
                Outcome.OVER_BUDGET, f"an epoch takes about {forecast:.0f} s, and {max(left, 0):.0f} s are left"
            )


@dataclass
class _Sums:
    """Training nats of an epoch, each row under the weights before its own step."""

    nats: float = 0.0
    weight: int = 0

    @property
    def mean(self) -> float:
        return self.nats / max(self.weight, 1)


@dataclass
class Work:
    """A unit on its way: what it was given, and where it is."""

    base: Base
    rows: Rows
    order: TrainUnit
    micro: MicroSteps
    clock: Clock
    step: int = 0
    items: list[Item] = field(default_factory=list)

    @property
    def settings(self) -> Settings:
        return self.order.settings

    def run(self) -> Generator[Event | None, None, None]:
        """Train the unit; yields after every step, and None where there is nothing to tell.

        Closing the generator detaches the adapter and leaves the base as it was.

        Raises:
            UnitStopped: diverged, infeasible or over budget.
            ValueError: settings or rows that this study's model cannot take.
        """
        unit, settings = self.order, self.settings
        self.items = usable_items(self.base, self.rows, unit)
        validation = [self.items[row] for row in unit.validation]
        steps = steps_per_epoch(len(unit.train), settings.batch_size) * settings.epochs
        tokens = sum(self.items[row].length * 3 for row in unit.train) + sum(item.length for item in validation)
        self.clock.limit(unit.seconds_left)
        with attached(self.base, settings, unit.seed, len(self.rows.task.labels)) as network:
            adamw = optim.build(network.parameters, settings)
            for epoch in range(1, settings.epochs + 1):
                self.clock.demand(tokens)
                self.clock.begin()
                started, sums = monotonic(), _Sums()
                for batch in effective_batches(epoch_order(unit.train, unit.seed, epoch), settings.batch_size):
                    factor = optim.schedule_factor(settings.lr_schedule, self.step, steps, settings.warmup_ratio)
                    self.step += 1
                    loss = self._step(network, adamw, batch, settings.learning_rate * factor, sums)
                    yield Progress(unit=unit.unit, epoch=epoch, step=self.step, steps=steps, loss=loss)
                done = yield from self._evaluated(network, validation, epoch, sums, started)
                self.clock.pace = done.seconds / tokens
                yield done

    def _step(
        self, network: Network, adamw: torch.optim.AdamW, batch: Sequence[int], learning_rate: float, sums: _Sums
    ) -> float:
        """One optimizer step over the effective batch; its training loss in nats.

        Raises:
            UnitStopped: DIVERGED before anything is changed, or INFEASIBLE.
        """
        items = [self.items[row] for row in batch]
        weight = sum(item.weight for item in items)
        nats = self._gradients(network, adamw, batch, items, weight)
        loss = nats / max(weight, 1)
        if not math.isfinite(loss):
            raise UnitStopped(Outcome.DIVERGED, f"loss {loss} at step {self.step}")
        norm = optim.gradient_norm(network.parameters)
        if not math.isfinite(norm):
            raise UnitStopped(Outcome.DIVERGED, f"gradient norm {float(norm)} at step {self.step}")
        optim.clip(network.parameters, norm, self.settings.max_grad_norm)
        for group in adamw.param_groups:
            group["lr"] = learning_rate
        adamw.step()
        sums.nats += nats
        sums.weight += weight
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
        network.draws.keys = network.draws.of(self.step, rows, self.base.device)
        nats = target_nats(network.logits(batch), batch).sum()  # float64
        torch.autograd.backward(nats / max(weight, 1))
        return float(nats.detach())

    def _evaluated(
        self, network: Network, validation: list[Item], epoch: int, sums: _Sums, started: float
    ) -> Generator[None, None, EpochDone]:
        """The epoch's results on the validation rows."""
        unit, task = self.order, self.rows.task
        last = epoch == self.settings.epochs
        scores = yield from evaluate(network, self.base, validation, self.micro, keep_logits=bool(task.labels))
        if not math.isfinite(scores.nats.sum()):
            raise UnitStopped(Outcome.DIVERGED, f"validation loss {scores.nats.sum()} after epoch {epoch}")
        return EpochDone(
            unit=unit.unit,
            lease_epoch=unit.lease_epoch,
            epoch=epoch,
            train_loss=sums.mean,
            seconds=monotonic() - started,
            tallies=task.tallies(validation, scores),
            predictions=pack_predictions(scores, with_logits=last),
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
