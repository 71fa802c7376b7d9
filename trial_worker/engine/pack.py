"""Units that train together on one frozen base: added, advanced step by step, told about as events."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from time import monotonic

import numpy as np
import torch

from orchestrator import baselines
from orchestrator.contract import Checkpoint, EpochDone, Generation, OpenStudy, Outcome, Progress, TrainUnit, UnitEnded
from trial_worker.augment.made import Made
from trial_worker.baselines import Job
from trial_worker.engine import optimizer
from trial_worker.engine.base import Base
from trial_worker.engine.baseline_slot import BaselineSlot
from trial_worker.engine.capacity import Capacity, Group, free_bytes, slots_within
from trial_worker.engine.errors import UnitStopped, is_out_of_memory, leaves_no_device
from trial_worker.engine.installed import Installed
from trial_worker.engine.losses import Bundle, training_loss
from trial_worker.engine.micro_step import MicroStep, lay_out
from trial_worker.engine.network import Network
from trial_worker.engine.slot import Slot
from trial_worker.engine.stream import computing
from trial_worker.engine.survey import Kind
from trial_worker.engine.whole import WholeNetwork
from trial_worker.tasks import task_named
from trial_worker.tasks.rows import Rows, read_snapshot

PackEvent = Progress | EpochDone | UnitEnded
SLOTS = {"cpu": 1, "cuda": 32}


class Pack:
    """Slots on one base.

    Not for several threads; every method returns within one step, or one evaluation batch. The base is changed only
    while a unit is in a slot.
    """

    def __init__(
        self,
        base: Base,
        rows: Rows,
        slots: int | None = None,
        *,
        shots: int = 4,
        template: str = "{text}\n{label}",
        generation: Generation | None = None,
    ) -> None:
        """shots, template: of baselines that prompt, see `trial_worker.baselines`. generation: of texts; None: none."""
        self.base = base
        self.rows = rows
        self._prompting = {"shots": shots, "template": template}
        self._baselines: list[BaselineSlot] = []
        self._embeddings: dict[int, np.ndarray] = {}
        self.slots = slots or SLOTS.get(base.device.type, 1)
        # where a language model's logits are all there at once, they decide how many tokens fit
        whole = base.family in ("causal", "seq2seq") and not base.plain_head
        vocabulary = int(base.model.config.get_text_config().vocab_size) if whole else 0
        self.capacity = Capacity(base.device, streams=base.streams, vocabulary=vocabulary)
        self._generation = generation
        self._pace: float | None = None
        self._text_seconds: float | None = None
        self._new: list[TrainUnit] = []
        self._given: dict[int, Sequence[Made]] = {}  # of units to come, by their numbers
        self._slots: dict[int, Slot] = {}  # by their place
        self._networks: dict[Kind, Installed] = {}
        self._network: Installed | None = None  # in the model now

    @property
    def free(self) -> int:
        """Slots without a unit."""
        return self.slots - len(self._slots) - len(self._new) - len(self._baselines)

    def add(self, unit: TrainUnit, made: Sequence[Made] = ()) -> None:
        """Give a free slot this unit; nothing is computed yet. made: rows that it trains on beside its own.

        Raises:
            RuntimeError: no slot is free.
        """
        if self.free <= 0:
            raise RuntimeError(f"no free slot: {self.slots} units are training")
        self._new.append(unit)
        self._given[unit.unit] = made

    def advance(self) -> list[PackEvent]:
        """Do one micro-step, one evaluation batch and a few texts' next tokens for the slots; what there is to tell.

        A unit that raises ends as an event with the evidence; the others go on as if it had never been there.
        """
        events = self._admit()
        for baseline in list(self._baselines):
            events += self._advance(baseline)
        for slot in [slot for slot in self._slots.values() if slot.between_epochs]:
            events += self._next_epoch(slot)
        if training := [slot for slot in self._slots.values() if not slot.evaluating]:
            events += self._attempt(training, self._train)
        if evaluating := [slot for slot in self._slots.values() if slot.evaluating and slot.waiting]:
            events += self._attempt(evaluating, self._evaluate)
        for slot in [slot for slot in self._slots.values() if slot.evaluating and not slot.waiting]:
            events += self._attempt([slot], self._write)
        return events

    def drop(self, unit: int, reason: str, keep: bool = False) -> list[PackEvent]:
        """Stop a unit where it is; nothing happens if it is in no slot.

        keep: write a checkpoint first, see `Slot.checkpoint`.
        """
        for new in [new for new in self._new if new.unit == unit]:
            self._new.remove(new)
            return [new.ended(Outcome.DROPPED, reason, checkpoint=new.resume if keep else None)]
        for baseline in [baseline for baseline in self._baselines if baseline.unit.unit == unit]:
            self._baselines.remove(baseline)
            return [baseline.unit.ended(Outcome.DROPPED, reason)]
        for slot in [slot for slot in self._slots.values() if slot.unit.unit == unit]:
            checkpoint = slot.checkpoint() if keep else None
            return [self._end(slot, Outcome.DROPPED, reason, checkpoint=checkpoint)]
        return []

    def limit(self, unit: int, seconds_left: float) -> None:
        """A unit may take this many device seconds beyond its reported epochs; nothing happens if it is in no slot."""
        for slot in self._slots.values():
            if slot.unit.unit == unit:
                slot.clock.limit(seconds_left)

    # --- units come and go --------------------------------------------------------------------------------------

    def _admit(self) -> list[PackEvent]:
        """Give new units their slots, in their order.

        One of another kind waits until the pack is empty, and so does one with whose rank fewer slots would fit.
        """
        events: list[PackEvent] = []
        while self._new:
            unit = self._new[0]
            if baselines.name_of(unit.settings):
                self._new.pop(0)
                job = Job(unit, self.base, self.rows, embeddings=self._embeddings, **self._prompting)
                self._baselines.append(BaselineSlot(job))
                continue
            kind = Kind.of(self.base, unit.settings, self.rows.task.outputs)
            if self._slots and (kind.whole or self._network is not self._networks.get(kind) or self._too_wide(unit)):
                break
            self._new.pop(0)
            events += self._begin(unit, kind)
        return events

    def _advance(self, baseline: BaselineSlot) -> list[PackEvent]:
        try:
            events: list[PackEvent] = [*baseline.advance()]
        except Exception as error:
            if leaves_no_device(error):
                raise
            events = [failed(baseline.unit, error)]
        if any(isinstance(event, UnitEnded) for event in events):
            self._baselines.remove(baseline)
        return events

    def _too_wide(self, unit: TrainUnit) -> bool:
        """Whether the adapters of all slots would not fit with this unit's rank."""
        network = self._network
        return isinstance(network, Network) and self._fitting_slots(network, unit.settings.lora_rank) < network.slots

    def _fitting_slots(self, network: Network, rank: int) -> int:
        """How many of its slots fit with a unit of this rank."""
        if not network.grows(rank):
            return network.slots
        return slots_within(self.slots, network.slot_bytes(rank), free_bytes(self.base.device))

    def _begin(self, unit: TrainUnit, kind: Kind) -> list[PackEvent]:
        try:
            network = self._networks.get(kind) or self._made(kind)
            rank = unit.settings.lora_rank
            if isinstance(network, Network) and (fit := self._fitting_slots(network, rank)) < network.slots:
                self.slots, network = fit, Network(self.base, kind, fit, self.rows.task.answer)
            self._network = self._networks[kind] = network
            place = min(set(range(self.slots)) - self._slots.keys())
            made = self._given.pop(unit.unit, ())
            slot = Slot(place, unit, self.base, self.rows, network, made, self._generation)
            if slot.finished:
                return [unit.ended(Outcome.DONE)]
            network.install()
            self._slots[place] = slot
        except Exception as error:
            return [failed(unit, error)]
        return []

    def _made(self, kind: Kind) -> Installed:
        # its memory is as large as four models: nothing of it stays for the next unit
        self._networks = {known: network for known, network in self._networks.items() if not known.whole}
        if kind.whole:
            return WholeNetwork(self.base, kind, self.rows.task.answer)
        return Network(self.base, kind, self.slots, self.rows.task.answer)

    def _next_epoch(self, slot: Slot) -> list[PackEvent]:
        try:
            slot.begin_epoch(self._pace, self._text_seconds)
        except UnitStopped as stop:
            return [self._end(slot, stop.outcome, str(stop))]
        return []

    def _end(self, slot: Slot, outcome: Outcome, reason: str = "", checkpoint: Checkpoint | None = None) -> UnitEnded:
        self._vacate(slot)
        return slot.unit.ended(outcome, reason, checkpoint=checkpoint)

    def _vacate(self, slot: Slot) -> None:
        assert self._network is not None
        del self._slots[slot.place]
        self._network.close(slot.place)
        if not self._slots:
            self._network.remove()

    # --- what is computed ---------------------------------------------------------------------------------------

    def _attempt(self, slots: Sequence[Slot], compute: Callable[[Sequence[Slot]], list[PackEvent]]) -> list[PackEvent]:
        """Compute for these slots; where that raises, for each alone, to see whose fault it is."""
        try:
            return compute(slots)
        except Exception as error:
            if leaves_no_device(error):
                raise  # the process ends; its supervisor finds out whose fault it was
            for slot in slots:
                slot.restart_batch()
            if len(slots) == 1:
                self._vacate(slots[0])
                return [failed(slots[0].unit, error)]
        return [event for slot in slots for event in self._attempt([slot], compute)]

    def _train(self, slots: Sequence[Slot]) -> list[PackEvent]:
        """A micro-step; an optimizer step of every slot whose effective batch is complete."""
        began = monotonic()
        computed = self._fitting(slots, self._gradients)
        if isinstance(computed, list):
            return computed
        events: list[PackEvent] = []
        complete = [slot for slot in slots if not slot.waiting]
        assert self._network is not None
        norms = optimizer.gradient_norms(self._network.memory, [slot.place for slot in complete]) if complete else []
        for slot, norm in zip(complete, norms, strict=True):
            try:
                events.append(slot.step(norm))
            except UnitStopped as stop:
                events.append(self._end(slot, stop.outcome, str(stop)))
        seconds = monotonic() - began
        self._spend(computed, seconds)
        self.capacity.measured(sum(computed.values()), seconds)
        return events

    def _evaluate(self, slots: Sequence[Slot]) -> list[PackEvent]:
        """A batch of validation rows; the end of the epoch of every slot that has no more of them."""
        began = monotonic()
        computed = self._fitting(slots, self._scores)
        if isinstance(computed, list):
            return computed
        self._spend(computed, monotonic() - began)
        scored = [slot for slot in slots if not slot.waiting and not slot.writes()]
        return [event for slot in scored for event in self._end_epoch(slot)]

    def _write(self, slots: Sequence[Slot]) -> list[PackEvent]:
        """Some tokens of some texts of one slot; the end of its epoch once all are there."""
        (slot,) = slots
        answering = slot.answering
        assert answering is not None
        began, note = monotonic(), None
        most = [self.capacity.most_rows, *([slot.unit.most_rows] if slot.unit.most_rows else [])]
        step = answering.next(self.capacity.most_tokens, min(most))
        try:
            answering.write(step, slot.place)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            note = str(error).splitlines()[0]
        # outside the handler: its traceback would keep the tensors alive that did not fit
        if note is not None:
            tokens = answering.cost(step)
            return [] if self.capacity.shrink(len(step.rows), tokens) else self._too_large(slot, tokens, note)
        seconds = monotonic() - began
        slot.clock.spend(seconds)
        answering.seconds += seconds
        return [] if slot.writes() else self._end_epoch(slot)

    def _end_epoch(self, slot: Slot) -> list[PackEvent]:
        answering = slot.answering
        try:
            done = slot.end_epoch()
        except UnitStopped as stop:
            return [self._end(slot, stop.outcome, str(stop))]
        if answering is not None and answering.written:
            self._text_seconds = answering.seconds / len(answering.written)
        self._pace = (done.seconds - (answering.seconds if answering else 0.0)) / slot.tokens(slot.train)
        return [done, self._end(slot, Outcome.DONE)] if slot.finished else [done]

    def _fitting(
        self, slots: Sequence[Slot], compute: Callable[[MicroStep], None]
    ) -> dict[Slot, int] | list[PackEvent]:
        """Compute rows that the slots wait for, fewer at once until they fit.

        Returns:
            Tokens computed for each slot; or the end of the unit of which a single row does not fit.
        """
        while True:
            lengths = {slot.place: [slot.size(bundle) for bundle in slot.waiting] for slot in slots}
            spent = dict.fromkeys(slots, 0)
            waiting = {slot.place: list(slot.waiting) for slot in slots}
            groups = self.capacity.groups(lengths, {slot.place: slot.unit.most_rows for slot in slots})
            for group in groups:
                try:
                    compute(self._lay_out(group, waiting))
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                    note = str(error).splitlines()[0]
                    break
                for place, chosen in group.items():
                    spent[self._slots[place]] += sum(lengths[place][i] for i in chosen)
            else:
                return spent
            # outside the handler: its traceback would keep the tensors alive that did not fit
            for slot in slots:
                slot.restart_batch()
            tried = [lengths[place][i] for place, chosen in group.items() for i in chosen]
            if not self.capacity.shrink(len(tried), sum(tried)):
                return self._too_large(self._slots[min(group)], tried[0], note)

    def _too_large(self, slot: Slot, tokens: int, note: str) -> list[PackEvent]:
        """A row that does not fit alone: others leave the device to it, and if there are none it cannot be trained."""
        if others := [other for other in self._slots.values() if other is not slot]:
            self.slots = 1
            reason = f"unit {slot.unit.unit} needs the whole device"
            return [self._end(other, Outcome.DROPPED, reason, checkpoint=other.checkpoint()) for other in others]
        reason = f"one row of {tokens} tokens does not fit into the device's memory ({note})"
        return [self._end(slot, Outcome.INFEASIBLE, reason)]

    def _lay_out(self, group: Group, waiting: dict[int, list[Bundle]]) -> MicroStep:
        parts = [(self._slots[place], [waiting[place][i] for i in chosen]) for place, chosen in group.items()]
        assert self._network is not None
        return lay_out(parts, self.base, self._network.reads)

    def _gradients(self, step: MicroStep) -> None:
        """Forward and backward; each slot's loss is divided by the weight of its whole effective batch."""
        assert self._network is not None
        with computing(step.stream):
            said = self._network.read(step.batch)
            losses = step.by_slot(training_loss(said, step.batch, step.compared))
            weights = torch.tensor([slot.batch_weight * slot.copies for slot, _ in step.parts], device=losses.device)
            torch.autograd.backward((losses / weights).sum())
        for (slot, samples), value in zip(step.parts, step.by_slot(said.nats.detach()).tolist(), strict=True):
            slot.computed(samples, value)

    @torch.inference_mode()
    def _scores(self, step: MicroStep) -> None:
        assert self._network is not None
        with computing(step.stream):
            scores = self.rows.task.score(self._network.read(step.batch), step.batch)
        for (slot, samples), part in zip(step.parts, step.split(scores), strict=True):
            slot.scored(samples, part)

    def _spend(self, tokens: dict[Slot, int], seconds: float) -> None:
        """Divide the device's time among those it went into."""
        whole = max(sum(tokens.values()), 1)
        for slot, own in tokens.items():
            slot.clock.spend(seconds * own / whole)


def failed(unit: TrainUnit, error: Exception) -> UnitEnded:
    """With the evidence; a device that was full before any row was computed had no room for the adapter."""
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    evidence = "".join(traceback.format_exception(error))
    return unit.ended(Outcome.INFEASIBLE if is_out_of_memory(error) else Outcome.FAILED, reason, evidence)


def open_study(study: OpenStudy, device: torch.device) -> Pack:
    """A pack without units on the study's model, tokenizer and rows.

    Raises:
        ValueError: no such task, or a model or row that does not fit it.
        OSError: a file cannot be read.
    """
    task = task_named(study.task, study.labels)
    rows, pool = read_snapshot(study.data), read_snapshot(study.pool) if study.pool else []
    base = Base.load(study.model, task.family, task.outputs, device)
    return Pack(
        base,
        Rows(task, rows, base.tokenizer, pool),
        shots=study.shots,
        template=study.template,
        generation=study.generation,
    )
