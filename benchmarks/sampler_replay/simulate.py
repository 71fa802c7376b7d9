"""One study replayed: the product's decisions in the product's order, on a clock of unit-epochs for each slot.

At every tick each slot that has a unit trains one epoch of it, however many others train; slots then report one after
the other, and free ones are filled. What a worker takes seconds for (leases, renewals, the stop of a unit that trains)
happens at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from benchmarks.order import Judge, Place, Trial, Trials
from benchmarks.sampler_replay import proposals
from benchmarks.sampler_replay.proposals import Sampler
from benchmarks.sampler_replay.table import Table
from orchestrator import lifecycle, racing
from orchestrator.racing import Fold, Rules
from orchestrator.study import Past

SAMPLERS = ("grid", "random", "tpe", "gp")
CAPS = ("product", "slots", "none")


@dataclass(frozen=True, kw_only=True)
class Form:
    """What is replayed.

    rule: "none", "forgiving" or "paired"; hopeless: with it. slots: units that train at once, on one worker.
    cap: on open trials, `lifecycle.open_cap`: "product" counts the worker once under racing, "slots" always counts its
    slots, "none" has no cap. trials: budget of searched trials; a grid has all its points. ranges: see
    `proposals.asked`. shared: a trial's value is that of its best epoch, one for all folds.
    """

    sampler: str
    rule: str = "none"
    hopeless: bool = False
    slots: int = 1
    cap: str = "product"
    trials: int = 30
    ranges: bool = False
    shared: bool = False

    @property
    def raced(self) -> bool:
        return self.rule != "none"


@dataclass(frozen=True, kw_only=True)
class Step:
    """A trial became the best one. trials: searched ones begun; spent: unit-epochs; clock: ticks."""

    trial: int
    value: float
    trials: int
    spent: int
    clock: int


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One replayed study: `spent` unit-epochs over `clock` ticks. trials: all of them, closed."""

    form: Form
    seed: int
    trials: tuple[Trial, ...]
    steps: tuple[Step, ...]
    spent: int
    clock: int


def simulate(table: Table, form: Form, seed: int, judge: Judge = racing.reason_to_stop) -> Outcome:
    """Replay a study with this seed. judge: whether a trial stops, and why."""
    return _Replay(table, form, seed, judge).run()


class _Replay:
    def __init__(self, table: Table, form: Form, seed: int, judge: Judge) -> None:
        self.table, self.form, self.seed = table, form, seed
        rules = Rules(rule=form.rule, objective=table.objective, folds=table.plan.folds, hopeless=form.hopeless)
        self.trials = Trials(tuple(table.plan.units), rules, judge if form.raced else None, form.shared)
        self.asked = proposals.asked(table, ranges=form.ranges)
        self.budget = table.points if form.sampler == "grid" else form.trials
        self.sampler = Sampler(table=table, asked=self.asked, name=form.sampler, trials=self.budget, seed=seed)
        self.busy: dict[int, tuple[Trial, Place]] = {}
        self.epochs: dict[tuple[int, Place], int] = {}
        self.steps: list[Step] = []
        self.suggestions = self.spent = self.clock = 0
        self._plan()

    def run(self) -> Outcome:
        """From the launch to the study's end."""
        while True:
            self._fill()
            if not self.busy:
                break
            self._tick()
        left = [trial.id for trial in self.trials.open()]
        if left:
            raise RuntimeError(f"the replay ended with open trials: {left}")
        return Outcome(
            form=self.form,
            seed=self.seed,
            trials=tuple(self.trials.all),
            steps=tuple(self.steps),
            spent=self.spent,
            clock=self.clock,
        )

    def _plan(self) -> None:
        points = proposals.order(self.table, self.seed) if self.form.sampler == "grid" else []
        if self.table.default not in points:
            there = proposals.in_space(self.asked, self.table.configurations[self.table.default].params)
            self._insert(self.table.default, searched=False, in_space=there)
        for point in points:
            self._insert(point, duplicate_of=self._known().get(self.table.configurations[point].key))

    def _insert(
        self, configuration: int, *, searched: bool = True, in_space: bool = True, duplicate_of: int | None = None
    ) -> None:
        self.trials.insert(
            configuration,
            searched=searched,
            in_space=in_space,
            is_default=configuration == self.table.default,
            duplicate_of=duplicate_of,
        )

    # --- `trials.take` ----------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        for slot in range(self.form.slots):
            if slot in self.busy:
                continue
            taken = self._take()
            if taken is None:
                return
            trial, place = self.busy[slot] = taken
            self.epochs[trial.id, place] = 0

    def _take(self) -> tuple[Trial, Place] | None:
        while (unit := self.trials.take(self._may_ask)) is None and self._may_ask():
            chosen, duplicate = self.sampler.propose(self.suggestions, self._past(), self._known())
            self._insert(chosen, duplicate_of=duplicate)
            self.suggestions += 1
            if duplicate is not None:
                self.trials.settle(None)
        return unit

    def _may_ask(self) -> bool:
        if self.form.sampler == "grid" or sum(trial.searched for trial in self.trials.all) >= self.budget:
            return False
        if self.form.cap == "none":
            return True
        capable = 1 if self.form.raced and self.form.cap == "product" else self.form.slots
        cap = lifecycle.open_cap(self.form.sampler, self.budget, capable)
        now = sum(trial.searched and trial.state == "running" for trial in self.trials.open())
        return cap is None or now < cap

    def _known(self) -> Mapping[tuple[int, int], int]:
        """Key of a configuration -> the trial that has it."""
        configurations = self.table.configurations
        return {
            configurations[trial.configuration].key: trial.id for trial in self.trials.all if trial.duplicate_of is None
        }

    def _past(self) -> list[Past]:
        """What a sampler may know: every opened trial whose values lie in the space."""
        return [
            Past(
                params=self.table.configurations[trial.configuration].params,
                state=trial.state,
                value=trial.value,
                reports=trial.running,
            )
            for trial in self.trials.all
            if trial.in_space and trial.state != "waiting"
        ]

    # --- training ---------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self.clock += 1
        self.spent += len(self.busy)
        for trial, _ in self.busy.values():
            trial.spent += 1
        for _, (trial, place) in sorted(self.busy.items()):
            if trial.units[place] == "leased":  # else its trial was stopped by a slot before it
                best = self.trials.best
                self._report(trial, place)
                if self.trials.best is not best:
                    self._note()
        self.busy = {
            slot: (trial, place) for slot, (trial, place) in self.busy.items() if trial.units[place] == "leased"
        }

    def _report(self, trial: Trial, place: Place) -> None:
        """The epoch is accepted, and may stop trials; then the unit may end, which may close and stop some."""
        unit = self.table.unit(trial.configuration, place)
        self.epochs[trial.id, place] = epoch = self.epochs[trial.id, place] + 1
        if epoch > len(unit.tallies):
            self.trials.diverge(trial, place)
            return
        fold = Fold(done=False, epochs=dict(enumerate(unit.tallies[:epoch], start=1)))
        self.trials.report(trial, place, fold)
        if epoch == len(unit.tallies) and unit.ended == "done" and trial.units[place] == "leased":
            rows, counts = self.table.plan.split(*place)[1], self.table.counts[place]
            self.trials.report(trial, place, replace(fold, done=True, rows=rows, nats=unit.nats[-1], counts=counts))

    def _note(self) -> None:
        best = self.trials.best
        assert best is not None
        begun = sum(each.searched and each.state != "waiting" for each in self.trials.all)
        value = best.value if best.value is not None else math.nan
        self.steps.append(Step(trial=best.id, value=value, trials=begun, spent=self.spent, clock=self.clock))
