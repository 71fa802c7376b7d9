"""A study's trials without its database: which unit is next, which trials stop, as the product has it.

`orchestrator.waiting`, `orchestrator.rungs` and `reconcile.settle` once more, on objects in memory; a test holds them
against each other.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from orchestrator import epochs, lifecycle, objective, racing
from orchestrator.objective import MAXIMIZE
from orchestrator.racing import Fold, Folds, Incumbent, Rules

Place = tuple[int, int]  # (repeat, fold)
Judge = Callable[[Rules, Folds, Incumbent], str | None]


@dataclass
class Trial:
    """One trial. id: as in the product, planned ones first. units: place -> state. folds: what it has reported."""

    id: int
    configuration: int
    searched: bool
    is_default: bool
    in_space: bool
    duplicate_of: int | None = None
    state: str = "waiting"
    value: float | None = None
    units: dict[Place, str] = field(default_factory=dict)
    folds: dict[Place, Fold] = field(default_factory=dict)
    running: list[float] = field(default_factory=list)  # objective pooled over the finished folds, once it is closed
    standing: float | None = None  # that over those finished so far
    spent: int = 0  # unit-epochs

    @property
    def raced(self) -> bool:
        """Whether racing may stop it, as `orchestrator.rungs` has it."""
        return self.searched and not self.is_default and self.duplicate_of is None

    @property
    def open(self) -> bool:
        return self.state in ("waiting", "running")

    @property
    def next_place(self) -> Place | None:
        """Its first waiting unit."""
        return next((place for place, state in self.units.items() if state == "waiting"), None)

    def done(self) -> list[Fold]:
        """Finished folds, in their order."""
        return [self.folds[place] for place, state in self.units.items() if state == "done"]


@dataclass
class Trials:
    """All trials of a study, by id.

    units: of every trial, in their order. rules: what is compared, and how; judge: by which a trial stops, and why;
    None: nothing is raced. shared: a trial's value is that of its best epoch, one for all folds (not with racing).
    """

    units: tuple[Place, ...]
    rules: Rules
    judge: Judge | None = racing.reason_to_stop
    shared: bool = False
    all: list[Trial] = field(default_factory=list)
    best: Trial | None = None  # the complete trial with the best value, the default included; of equals the first
    _open: dict[int, Trial] = field(default_factory=dict)
    _copies: list[Trial] = field(default_factory=list)
    _changed: set[int] = field(default_factory=set)  # to judge anew: a verdict depends on trial and incumbent alone
    _judged_by: int | None = None

    def insert(
        self,
        configuration: int,
        *,
        searched: bool = True,
        in_space: bool = True,
        is_default: bool = False,
        duplicate_of: int | None = None,
    ) -> Trial:
        """A waiting trial with one unit for each fold; none if it repeats another trial."""
        trial = Trial(
            id=len(self.all),
            configuration=configuration,
            searched=searched,
            is_default=is_default,
            in_space=in_space,
            duplicate_of=duplicate_of,
            units=dict.fromkeys(self.units, "waiting") if duplicate_of is None else {},
        )
        self.all.append(trial)
        self._open[trial.id] = trial
        if duplicate_of is not None:
            self._copies.append(trial)
        return trial

    def open(self) -> Iterator[Trial]:
        """In the order of their ids."""
        for trial in list(self._open.values()):
            if trial.open:
                yield trial
            else:
                del self._open[trial.id]

    # --- what units report ------------------------------------------------------------------------------------------

    def report(self, trial: Trial, place: Place, fold: Fold) -> None:
        """A leased unit has reported this much; of the same unit once `done`, it has ended."""
        trial.folds[place] = fold
        if fold.done:
            trial.units[place] = "done"
            trial.standing = self._pooled(trial.done())
        self.settle(trial)

    def diverge(self, trial: Trial, place: Place) -> None:
        """A leased unit has diverged, and its trial with it."""
        trial.units[place] = "diverged"
        self.settle(trial)

    def settle(self, changed: Trial | None) -> None:
        """Close the trial that changed if its units decide it; stop whom racing stops; close repetitions."""
        if changed is not None:
            self._changed.add(changed.id)
            state = lifecycle.trial_end(list(changed.units.values()))
            if state is not None and changed.open:
                self._close(changed, state)
        if self.judge is not None and self.best is not None:
            self._race(self.best, self.judge)
        self._close_copies()

    def _race(self, best: Trial, judge: Judge) -> None:
        """`rungs.verdicts`, for the trials whose verdict may have changed."""
        if best.id != self._judged_by:
            self._changed = {trial.id for trial in self.open()}
            self._judged_by = best.id
        incumbent = Incumbent(name="the best trial", folds=best.folds)
        for trial in [self.all[number] for number in sorted(self._changed)]:
            if not trial.raced or trial.state != "running" or not trial.folds:
                continue
            if judge(self.rules, trial.folds, incumbent) is not None:
                self._close(trial, "stopped")
        self._changed.clear()

    def _close(self, trial: Trial, state: str) -> None:
        """End a trial, and with it what it still has to train; a complete one without a finite value has diverged."""
        value = trial.standing if state == "complete" else None
        trial.state, trial.value = ("diverged" if state == "complete" and value is None else state), value
        trial.units.update({place: "cancelled" for place, unit in trial.units.items() if unit in ("waiting", "leased")})
        sums = itertools.accumulate((fold.last for fold in trial.done()), lambda a, b: objective.add([a, b]))
        trial.running = [float(objective.metrics(tallies)[self.rules.objective]) for tallies in sums]
        if value is not None and (self.best is None or self._rank(trial) < self._rank(self.best)):
            self.best = trial

    def _close_copies(self) -> None:
        """A suggestion that repeats a trial gets that trial's end, without training."""
        for copy in self._copies:
            original = self.all[copy.duplicate_of or 0]
            copy.state, copy.value, copy.running = "running", original.value, original.running
            if not original.open:
                copy.state = original.state
        self._copies = [copy for copy in self._copies if copy.open]

    def _pooled(self, folds: list[Fold]) -> float | None:
        if not self.shared:
            return objective.value(self.rules.objective, (fold.last for fold in folds))
        curve = epochs.pooled_curve(self.rules.objective, [fold.epochs for fold in folds])
        best = epochs.best_epoch(self.rules.objective, [fold.epochs for fold in folds], curve)
        return None if best is None else curve[best]

    def _rank(self, trial: Trial) -> tuple[float, int]:
        return self._sign * (trial.value or 0.0), trial.id

    @property
    def _sign(self) -> int:
        return -1 if MAXIMIZE[self.rules.objective] else 1

    # --- the order of `orchestrator.waiting` ------------------------------------------------------------------------

    def take(self, may_ask: Callable[[], bool] = lambda: False) -> tuple[Trial, Place] | None:
        """Lease the next unit; None: there is none, or a new trial comes first, as far as `may_ask` says so."""
        raced = self.judge is not None
        found = self.first_rung_unit() if raced else self.next_unit()
        if found is None and raced and not may_ask():
            found = self.further_unit()
        if found is not None:
            trial, place = found
            trial.state, trial.units[place] = "running", "leased"
        return found

    def next_unit(self) -> tuple[Trial, Place] | None:
        """Further folds of open trials first, then planned trials."""
        found = [trial for trial in self.open() if trial.next_place is not None]
        return _first(min(found, key=lambda trial: (trial.state != "running", trial.id), default=None))

    def first_rung_unit(self) -> tuple[Trial, Place] | None:
        """Under racing: what comes before any further fold of a raced trial."""
        pace = None
        if not any(trial.state == "complete" for trial in self.all):
            running = (trial for trial in self.open() if trial.state == "running" and trial.duplicate_of is None)
            pace = next((trial.id for trial in running), None)
        chosen: tuple[Any, Trial] | None = None
        for trial in self.open():
            place = trial.next_place
            always = trial.is_default or not trial.searched
            if place is None or not (always or trial.id == pace or self._rung(place) < self.rules.first_folds):
                continue
            rank = (not always, trial.id != pace, trial.state != "running", trial.id)
            if chosen is None or rank < chosen[0]:
                chosen = rank, trial
        return _first(chosen[1] if chosen else None)

    def further_unit(self) -> tuple[Trial, Place] | None:
        """Under racing: a further fold of an open trial, of the best one by its finished folds."""
        found = [trial for trial in self.open() if trial.state == "running" and trial.next_place is not None]
        return _first(min(found, key=lambda trial: (*self._standing(trial), trial.id), default=None))

    def _standing(self, trial: Trial) -> tuple[bool, float]:
        return trial.standing is None, self._sign * (trial.standing or 0.0)

    def _rung(self, place: Place) -> int:
        return place[0] * self.rules.folds + place[1]


def _first(trial: Trial | None) -> tuple[Trial, Place] | None:
    place = trial.next_place if trial is not None else None
    return None if trial is None or place is None else (trial, place)
