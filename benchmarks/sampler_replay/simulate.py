"""One study replayed: the product's decisions in the product's order, on a clock of unit-epochs for each slot.

At every tick each slot that has a unit trains one epoch of it, however many others train; slots then report one after
the other, and free ones are filled. What a worker takes seconds for (leases, renewals, the stop of a unit that trains)
happens at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from benchmarks.sampler_replay import proposals
from benchmarks.sampler_replay.proposals import Sampler
from benchmarks.sampler_replay.state import Trial, Trials
from benchmarks.sampler_replay.table import Place, Table
from orchestrator import lifecycle, racing
from orchestrator.racing import Fold, Folds, Incumbent, Rules

SAMPLERS = ("grid", "random", "tpe", "gp")
CAPS = ("product", "slots", "none")
Judge = Callable[[Rules, Folds, Incumbent], str | None]


@dataclass(frozen=True, kw_only=True)
class Form:
    """What is replayed.

    rule: "none", "forgiving" or "paired"; hopeless: with it. slots: units that train at once, on one worker.
    cap: on open trials, `lifecycle.open_cap`: "product" counts the worker once under racing, "slots" always counts its
    slots, "none" has no cap. trials: budget of searched trials; a grid has all its points. ranges: see
    `proposals.asked`.
    """

    sampler: str
    rule: str = "none"
    hopeless: bool = False
    slots: int = 1
    cap: str = "product"
    trials: int = 30
    ranges: bool = False

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
        self.table, self.form, self.seed, self.judge = table, form, seed, judge
        self.trials = Trials(table)
        self.rules = Rules(rule=form.rule, objective=table.objective, folds=table.plan.folds, hopeless=form.hopeless)
        self.asked = proposals.asked(table, ranges=form.ranges)
        self.budget = table.points if form.sampler == "grid" else form.trials
        self.sampler = Sampler(table=table, asked=self.asked, name=form.sampler, trials=self.budget, seed=seed)
        self.busy: dict[int, tuple[Trial, Place]] = {}
        self.epochs: dict[tuple[int, Place], int] = {}
        self.changed: set[int] = set()  # trials to judge anew: a verdict depends on trial and incumbent alone
        self.judged_by: int | None = None
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
        left = [trial.id for trial in self.trials.all if trial.open]
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
            self.trials.insert(self.table.default, searched=False, in_space=there)
        for point in points:
            same = self.trials.known().get(self.table.configurations[point].key)
            self.trials.insert(point, searched=True, in_space=True, duplicate_of=same)

    # --- `trials.take` ----------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        for slot in range(self.form.slots):
            if slot in self.busy:
                continue
            taken = self._take()
            if taken is None:
                return
            trial, place = taken
            trial.state, trial.units[place] = "running", "leased"
            self.busy[slot], self.epochs[trial.id, place] = taken, 0

    def _take(self) -> tuple[Trial, Place] | None:
        while True:
            raced = self.form.raced
            unit = self.trials.first_rung_unit(self.rules.first_folds) if raced else self.trials.next_unit()
            asked = unit is None and self._may_ask()
            if unit is None and not asked and raced:
                unit = self.trials.further_unit()
            if not asked:
                return unit
            chosen, duplicate = self.sampler.propose(self.suggestions, self.trials.past(), self.trials.known())
            self.trials.insert(chosen, searched=True, in_space=True, duplicate_of=duplicate)
            self.suggestions += 1
            if duplicate is not None:
                self._settle(None)

    def _may_ask(self) -> bool:
        if self.form.sampler == "grid" or sum(trial.searched for trial in self.trials.all) >= self.budget:
            return False
        if self.form.cap == "none":
            return True
        capable = 1 if self.form.raced and self.form.cap == "product" else self.form.slots
        cap = lifecycle.open_cap(self.form.sampler, self.budget, capable)
        now = sum(trial.searched and trial.state == "running" for trial in self.trials.open())
        return cap is None or now < cap

    # --- training ---------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self.clock += 1
        self.spent += len(self.busy)
        for trial, _ in self.busy.values():
            trial.spent += 1
        for _, (trial, place) in sorted(self.busy.items()):
            if trial.units[place] == "leased":  # else its trial was stopped by a slot before it
                self._report(trial, place)
        self.busy = {
            slot: (trial, place) for slot, (trial, place) in self.busy.items() if trial.units[place] == "leased"
        }

    def _report(self, trial: Trial, place: Place) -> None:
        """The epoch is accepted, and may stop trials; then the unit may end, which may close and stop some."""
        unit = self.table.unit(trial.configuration, place)
        self.epochs[trial.id, place] = epoch = self.epochs[trial.id, place] + 1
        if epoch > len(unit.tallies):
            trial.units[place] = "diverged"
            self._settle(trial)
            return
        trial.folds[place] = Fold(done=False, epochs=dict(enumerate(unit.tallies[:epoch], start=1)))
        self._settle(trial)
        if epoch == len(unit.tallies) and unit.ended == "done" and trial.units[place] == "leased":
            fold = replace(
                trial.folds[place],
                done=True,
                rows=self.table.plan.split(*place)[1],
                nats=unit.nats[-1],
                counts=self.table.counts[place],
            )
            self.trials.finish_fold(trial, place, fold)
            self._settle(trial)

    # --- `reconcile.settle` -----------------------------------------------------------------------------------------

    def _settle(self, changed: Trial | None) -> None:
        """Close the trial that changed if its units decide it; stop whom racing stops; close repetitions."""
        if changed is not None:
            self.changed.add(changed.id)
            state = lifecycle.trial_end(list(changed.units.values()))
            if state is not None:
                self.trials.close(changed, state)
                if changed is self.trials.best:
                    self._note(changed)
        if self.form.raced and self.trials.best is not None:
            self._race(self.trials.best)
        self.trials.close_copies()

    def _note(self, best: Trial) -> None:
        begun = sum(each.searched and each.state != "waiting" for each in self.trials.all)
        value = best.value if best.value is not None else math.nan
        self.steps.append(Step(trial=best.id, value=value, trials=begun, spent=self.spent, clock=self.clock))

    def _race(self, best: Trial) -> None:
        """`rungs.verdicts`, for the trials whose verdict may have changed."""
        if best.id != self.judged_by:
            self.changed = {trial.id for trial in self.trials.open()}
            self.judged_by = best.id
        incumbent = Incumbent(name="the best trial", folds=best.folds)
        for trial in [self.trials.all[number] for number in sorted(self.changed)]:
            if not trial.raced or trial.state != "running" or not trial.folds:
                continue
            if self.judge(self.rules, trial.folds, incumbent) is not None:
                self.trials.close(trial, "stopped")
        self.changed.clear()
