"""The main thread of a worker: brings units and trainer together, and never waits for the database."""

from __future__ import annotations

import queue
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import foldtune
from orchestrator.contract import (
    DropUnit,
    EpochDone,
    Limit,
    Outcome,
    Progress,
    Ready,
    StudyOpened,
    StudyRefused,
    UnitEnded,
)
from orchestrator.lifecycle import Cause
from orchestrator.records import Lease
from orchestrator.waiting import Opened
from trial_worker import ahead, kernel, suspects
from trial_worker.child import Death, Trainer
from trial_worker.clerk import Clerk, given_back
from trial_worker.desk import AllDone, Desk, Left, Lost, Taken, Trouble, Wanted
from trial_worker.line import GIVE_UP_SECONDS
from trial_worker.renewer import Renewer
from trial_worker.spool import Delivery
from trial_worker.station import Station
from trial_worker.suspects import Suspects, Verdict
from trial_worker.units import Held, intact, open_message, work

OPEN_ATTEMPTS = 3
DROP_SECONDS = 2.0  # for the end of a step, once somebody else may train the unit; then the trainer is killed
CLOSED_SECONDS = 60.0  # the same where nobody may: other units of the pack should not begin their epochs anew for it
SUSPEND_SECONDS = 4.0  # for the last step and its checkpoint, once this worker was asked to leave
LEAVE_SECONDS = 4.8  # until the process is gone
PAUSE_SECONDS = 5.0  # a loop that was away for longer was stopped itself


class Foreman:
    """One worker on one device.

    leaving: set by a signal handler: the signal that asks this worker to leave.
    """

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.say = desk.say
        self.clerk = Clerk(desk)
        self.renewer = Renewer(desk)
        self.station = Station(desk.device.name, lambda trainer, message: desk.inbox.put((trainer, message)))
        self.leaving: int | None = None
        self.asked = 0.0  # when
        self.fault = ""  # why this worker takes itself out
        self.trained = 0
        self.streak: list[Lease] = []  # failures since the last success
        self._held: dict[int, Held] = {}
        self._suspects = Suspects()
        self._dropping: dict[tuple[int, int], float] = {}  # (unit, lease epoch) -> when the trainer is killed for it
        self._deaths: Counter[int] = Counter()  # of trainers that were loading a study
        self._proven = False  # some unit made progress here
        self._all_done = False
        self._failed = False  # a thread of this worker cannot go on

    # --- the loop ---

    def run(self, idle_exit: float | None) -> int:
        """Train until the named studies are done; without names until nothing came for `idle_exit` seconds, if ever.

        Returns the number of units trained.

        Raises:
            FoldtuneError: the database was away for too long, or this worker cannot go on.
        """
        self.clerk.start()
        self.renewer.start()
        last = idle_since = time.monotonic()
        while self.leaving is None and not self.fault and (self._held or not self._all_done):
            self._arrange()
            event = self._next_event(0.2)
            now = time.monotonic()
            if now - last > PAUSE_SECONDS:
                self.station.excuse()
            last = now
            self._handle(event)
            self._watch(now)
            if self._held:
                idle_since = now
            elif idle_exit is not None and now - idle_since > idle_exit:
                break
        return self.trained

    def _next_event(self, seconds: float) -> Any:
        try:
            return self.desk.inbox.get(timeout=seconds)
        except queue.Empty:
            return None

    def _handle(self, event: Any) -> None:
        match event:
            case (Trainer() as trainer, message):
                if trainer is self.station.trainer:
                    self._heard(message)
            case Taken():
                self._take_on(event)
            case Lost():
                self._lose(event)
            case Left():
                if event.unit in self._held:
                    self.station.tell(Limit(unit=event.unit, seconds_left=event.seconds))
            case AllDone():
                self._all_done = True
            case Trouble():
                self._failed, self.asked = True, time.monotonic()
                raise event.error

    def _take_on(self, taken: Taken) -> None:
        lease = taken.lease
        start = f", from epoch {taken.resume.epoch}" if taken.resume else ""
        self.say(
            f"{taken.record.name}: trial {lease.trial} fold {lease.fold} repeat {lease.repeat}, "
            f"attempt {lease.attempt}{start}"
        )
        self._held[lease.unit] = Held(taken, taken.resume)

    def _lose(self, lost: Lost) -> None:
        """Stop what somebody else owns now; nothing more of it is written."""
        held = self._mine(lost.lease.unit, lost.lease.epoch)
        if held is None:
            return
        self.say(lost.message)
        self._forget(held.lease.unit)
        if held.sent and self.station.trainer is not None:
            seconds = CLOSED_SECONDS if lost.closed else DROP_SECONDS
            self._dropping[held.lease.unit, held.lease.epoch] = time.monotonic() + seconds
            self.station.tell(DropUnit(unit=held.lease.unit, reason="the lease is gone"))

    def _arrange(self) -> None:
        """Bring the trainer to what is held: the right study open, every unit that may run handed over."""
        self._look_ahead()
        first = next(iter(self._held.values()), None)
        if first is None or self._dropping or self.station.opening is not None:
            return
        self.station.start()
        if (self.station.opened, self.station.model) != first.base:
            if not self._running():
                self.station.open(open_message(first.taken), first.lease.model)
            return
        room = self.station.slots - len(self._running())
        mine = [unit for unit, held in self._held.items() if held.base == first.base]
        for unit in [unit for unit in self._suspects.may_run(mine) if not self._held[unit].sent][: max(0, room)]:
            self._hand_over(self._held[unit])

    def _look_ahead(self) -> None:
        """Have the clerk take what there is or soon will be a slot for; give back what waits for none."""
        alone = bool(self._suspects) or any(held.lease.charges for held in self._held.values())
        now = time.monotonic()
        to_go = [held.ends - now for held in self._held.values()]
        slots = 0 if alone else ahead.room(self.station.slots, to_go, within=ahead.AHEAD_SECONDS)
        wanted = Wanted(slots, next((held.study for held in self._held.values()), None), self._opened(to_go))
        if wanted != self.desk.wanted:
            self.desk.wanted = wanted
            self.clerk.wake.set()
        surplus = len(self._held) - ahead.room(self.station.slots, to_go, within=ahead.KEEP_SECONDS)
        if surplus > 0 and not alone:
            for held in [held for held in self._held.values() if not held.sent][-surplus:]:
                self._end(held, given_back(held.lease, "no slot is free soon"))

    def _opened(self, to_go: Sequence[float]) -> Opened | None:
        """The model whose units should come first. Those of another come only once all that is held ends soon."""
        first = next(iter(self._held.values()), None)
        model = self.station.model if first is None else first.lease.model
        if model is None:
            return None
        return Opened(model, only=any(seconds > ahead.AHEAD_SECONDS for seconds in to_go))

    def _hand_over(self, held: Held) -> None:
        """Have the trainer begin a unit, or go on with it; what is damaged is fetched anew by its next lease."""
        if held.checkpoint is not None and not intact(held.checkpoint):
            self.say(f"the checkpoint of unit {held.lease.unit} on this machine is damaged")
            self._end(held, given_back(held.lease, "its checkpoint was damaged"))
            return
        self._held[held.lease.unit] = replace(held, sent=True)
        self.station.ask(work(held, str(self.desk.spool.folder)))

    # --- what the trainer says ---

    def _heard(self, message: Any) -> None:
        if message is None:
            self._trainer_fell()
            return
        self.station.heard(message)
        match message:
            case Ready():
                self.say(f"trainer on {message.device}: {self.station.versions}")
            case StudyOpened():
                if self.station.model is not None:
                    self.say(f"model {self.station.model} is open")
                self.desk.slots = message.slots
                self._deaths.pop(message.study, None)
            case StudyRefused():
                self._refuse(message.study, message.reason)
            case Progress():
                if (held := self._held.get(message.unit)) is not None:
                    self._held[message.unit] = replace(held, ends=time.monotonic() + message.to_go)
            case EpochDone():
                self._epoch_done(message)
            case UnitEnded():
                self._dropping.pop((message.unit, message.lease_epoch), None)
                if (held := self._mine(message.unit, message.lease_epoch)) is not None:
                    self._end(held, message)

    def _epoch_done(self, done: EpochDone) -> None:
        held = self._mine(done.unit, done.lease_epoch)
        if held is None:
            return
        checkpoint = done.checkpoint or held.checkpoint
        self._held[done.unit] = replace(held, checkpoint=checkpoint, epoch=done.epoch, chosen=done.chosen, kills=0)
        self._suspects = self._suspects.cleared(done.unit)
        self.streak.clear()
        self._proven = True
        self._deliver(held, done)

    def _end(self, held: Held, ended: UnitEnded) -> None:
        """A unit is over for this worker."""
        self._forget(held.lease.unit)
        if held.complete:
            ended = held.ended(Outcome.DONE, "")
        if ended.outcome == Outcome.FAILED:
            ended = replace(ended, evidence=f"{self._origin()}\n{ended.evidence}".strip())
            self.streak.append(held.lease)
        if ended.outcome != Outcome.DROPPED:
            self.trained += 1
            if ended.reason:
                self.say(f"{held.study}: unit {held.lease.unit} {ended.outcome}: {ended.reason}")
        self._deliver(held, ended)
        trials = [lease.trial for lease in self.streak]
        if suspects.machine_at_fault(trials, proven=self._proven, others=self.desk.others):
            self.fault = (
                f"{len(trials)} units in a row failed here and none succeeded: this machine, or the study, may be at "
                f"fault; the last said: {ended.reason}"
            )

    def _deliver(self, held: Held, message: EpochDone | UnitEnded) -> None:
        self.desk.deliver(Delivery(held.study, held.lease, message))
        self.clerk.wake.set()

    def _origin(self) -> str:
        """Where a failure happened, for its evidence."""
        return f"worker {self.desk.worker} on {self.desk.device.name}: foldtune {foldtune.__version__}, " + (
            self.station.versions
        )

    # --- what is held ---

    def _mine(self, unit: int, lease_epoch: int) -> Held | None:
        """The held unit that a message is about; None for one of an earlier lease."""
        found = self._held.get(unit)
        return found if found is not None and found.lease.epoch == lease_epoch else None

    def _running(self) -> list[int]:
        return [unit for unit, held in self._held.items() if held.sent]

    def _forget(self, unit: int) -> None:
        del self._held[unit]
        self._suspects = self._suspects.cleared(unit)

    # --- when the trainer says nothing any more ---

    def _watch(self, now: float) -> None:
        """Kill a trainer that hangs, or that does not let go of a unit."""
        if self._dropping and now > min(self._dropping.values()):
            self._dropping.clear()
            self.station.end_on_purpose()
        silent = self.station.overdue(now, busy=bool(self._running()))
        if silent is not None:
            self.say(f"no sign of life from the trainer for {silent:.0f} s: it is killed")
            self.station.end_hung()

    def _trainer_fell(self) -> None:
        self._dropping.clear()
        fallen = self.station.fallen()
        for held in [held for held in self._held.values() if held.complete]:
            self._end(held, held.ended(Outcome.DONE, ""))
        running = self._running()
        killed = fallen.cause == Cause.KILLED
        for unit in running:
            held = self._held[unit]
            self._held[unit] = replace(held, sent=False, kills=held.kills + killed)
        if fallen.opening is not None:
            self._fell_while_opening(fallen.opening, fallen.death)
        elif fallen.cause is None or not running or self.leaving is not None:
            self.say(f"{fallen.death.how}; a new one takes its place")
        else:
            kills = max(self._held[unit].kills for unit in running)
            verdict = suspects.verdict(fallen.cause, units=len(running), kills=kills)
            self._judge(fallen.cause, verdict, running, fallen.death)

    def _judge(self, cause: Cause, verdict: Verdict, running: list[int], death: Death) -> None:
        """Do what a trainer's death means for the units that ran in it."""
        match verdict:
            case Verdict.AGAIN:
                self.say(f"{death.how}; its units go on in a new one")
            case Verdict.HALVES:
                self.say(f"{death.how} ({cause}); its {len(running)} units go on by halves, none is charged")
                self._suspects = self._suspects.after_crash(running)
            case Verdict.SMALLER:
                self._shrink(self._held[running[0]], death)
            case Verdict.CHARGED:
                held = self._held[running[0]]
                why = "no step ended for too long: its trainer was killed" if cause == Cause.HANG else death.how
                self._end(held, held.ended(Outcome.FAILED, why, evidence=death.log, cause=cause))

    def _shrink(self, held: Held, death: Death) -> None:
        rows = suspects.fewer_rows(held.most_rows, held.lease.settings.batch_size)
        what = f"killed by the kernel for its memory ({kernel.machine_memory()})"
        if rows is None:
            reason = f"trainer {what} even with one row at a time"
            self._end(held, held.ended(Outcome.INFEASIBLE, reason, evidence=death.log, cause=Cause.MEMORY))
        else:
            self.say(f"trainer {what}; unit {held.lease.unit} goes on with {rows} rows at a time, the numbers stay")
            self._held[held.lease.unit] = replace(held, most_rows=rows)

    def _fell_while_opening(self, study: int, death: Death) -> None:
        """A trainer that died while it loaded a study may only have been killed: try again, but not for ever."""
        self._deaths[study] += 1
        if self._deaths[study] < OPEN_ATTEMPTS:
            self.say(f"{death.how}; trying again")
        else:
            self._refuse(study, f"{death.how}\n{death.log}".strip())

    def _refuse(self, study: int, reason: str) -> None:
        """This machine cannot train a study: give its units back and leave it to others."""
        for held in [held for held in self._held.values() if held.taken.record.id == study]:
            if held.study not in self.desk.refused:
                self.say(f"error: {held.study}: {reason}")
                self.desk.refused |= {held.study}
            self._end(held, given_back(held.lease, "this machine cannot train it"))

    # --- leaving ---

    def leave(self) -> bool:
        """Suspend what trains, deliver what waits; whether all of it was delivered."""
        hurry = self.leaving is not None or self._failed
        self.desk.wanted = Wanted()
        if hurry:
            self._suspend(self.asked + SUSPEND_SECONDS)
        self.station.close(hurry=hurry)
        for held in list(self._held.values()):
            self._end(held, given_back(held.lease, "the worker left"))
        self.renewer.stopped.set()
        until = self.asked + LEAVE_SECONDS if hurry else time.monotonic() + GIVE_UP_SECONDS
        self.clerk.close()
        while self.clerk.is_alive() and (left := until - time.monotonic()) > 0:
            if hurry:
                self.desk.line.closing.set()
            self.clerk.join(min(left, 0.2))
            if self.leaving is not None and not hurry:  # asked to hurry only now
                hurry, until = True, self.asked + LEAVE_SECONDS
        return not self.clerk.is_alive() and len(self.desk.spool) == 0

    def _suspend(self, until: float) -> None:
        """Ask for a checkpoint of every unit at its next step boundary; without one the last epoch's counts."""
        for unit in self._running():
            self.station.tell(DropUnit(unit=unit, reason="the worker leaves", keep=True))
        while self.station.trainer is not None and self._running() and (left := until - time.monotonic()) > 0:
            event = self._next_event(min(left, 0.1))
            match event:
                case (Trainer() as trainer, message) if trainer is self.station.trainer:
                    if message is None:
                        return
                    self._heard(message)
                case Taken():
                    self._held[event.lease.unit] = Held(event, event.resume)
