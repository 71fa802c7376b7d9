"""A replayed study's trials: what they have shown, and which unit is next, as `orchestrator.waiting` has it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.sampler_replay.table import Place, Table
from orchestrator import objective
from orchestrator.racing import Fold
from orchestrator.study import Past


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
        """Whether racing may stop it, see `rungs.is_raced`."""
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
    """All trials of a replay, by id."""

    table: Table
    all: list[Trial] = field(default_factory=list)
    best: Trial | None = None  # the complete trial with the best value, the default included; of equals the first
    _open: dict[int, Trial] = field(default_factory=dict)
    _copies: list[Trial] = field(default_factory=list)

    def insert(self, configuration: int, *, searched: bool, in_space: bool, duplicate_of: int | None = None) -> Trial:
        """A waiting trial with one unit for each fold; none if it repeats another trial."""
        trial = Trial(
            id=len(self.all),
            configuration=configuration,
            searched=searched,
            is_default=configuration == self.table.default,
            in_space=in_space,
            duplicate_of=duplicate_of,
            units=dict.fromkeys(self.table.plan.units, "waiting") if duplicate_of is None else {},
        )
        self.all.append(trial)
        self._open[trial.id] = trial
        if duplicate_of is not None:
            self._copies.append(trial)
        return trial

    def finish_fold(self, trial: Trial, place: Place, fold: Fold) -> None:
        """A unit is done."""
        trial.folds[place], trial.units[place] = fold, "done"
        trial.standing = objective.value(self.table.objective, (fold.last for fold in trial.done()))

    def close(self, trial: Trial, state: str) -> None:
        """End a trial, and with it what it still has to train; a complete one without a finite value has diverged."""
        value = trial.standing if state == "complete" else None
        trial.state, trial.value = ("diverged" if state == "complete" and value is None else state), value
        trial.units.update({place: "cancelled" for place, unit in trial.units.items() if unit in ("waiting", "leased")})
        sums = itertools.accumulate((fold.last for fold in trial.done()), lambda a, b: objective.add([a, b]))
        trial.running = [float(objective.metrics(tallies)[self.table.objective]) for tallies in sums]
        if value is not None and (self.best is None or self._rank(trial) < self._rank(self.best)):
            self.best = trial

    def close_copies(self) -> None:
        """A suggestion that repeats a trial gets that trial's end, without training."""
        for copy in self._copies:
            original = self.all[copy.duplicate_of or 0]
            copy.state, copy.value, copy.running = "running", original.value, original.running
            if not original.open:
                copy.state = original.state
        self._copies = [copy for copy in self._copies if copy.open]

    def _rank(self, trial: Trial) -> tuple[float, int]:
        return self.table.sign * (trial.value or 0.0), trial.id

    def open(self) -> Iterator[Trial]:
        """In the order of their ids."""
        for trial in list(self._open.values()):
            if trial.open:
                yield trial
            else:
                del self._open[trial.id]

    def known(self) -> Mapping[tuple[int, int], int]:
        """Key of a configuration -> the trial that has it."""
        configurations = self.table.configurations
        return {configurations[trial.configuration].key: trial.id for trial in self.all if trial.duplicate_of is None}

    def past(self) -> list[Past]:
        """What a sampler may know: every opened trial whose values lie in the space."""
        return [
            Past(
                params=self.table.configurations[trial.configuration].params,
                state=trial.state,
                value=trial.value,
                reports=trial.running,
            )
            for trial in self.all
            if trial.in_space and trial.state != "waiting"
        ]

    # --- the order of `orchestrator.waiting` ------------------------------------------------------------------------

    def next_unit(self) -> tuple[Trial, Place] | None:
        """Further folds of open trials first, then planned trials."""
        found = [trial for trial in self.open() if trial.next_place is not None]
        return _first(min(found, key=lambda trial: (trial.state != "running", trial.id), default=None))

    def first_rung_unit(self, first_folds: int) -> tuple[Trial, Place] | None:
        """Under racing: what comes before any further fold of a raced trial."""
        pace = None
        if not any(trial.state == "complete" for trial in self.all):
            running = (trial for trial in self.open() if trial.state == "running" and trial.duplicate_of is None)
            pace = next((trial.id for trial in running), None)
        chosen: tuple[Any, Trial] | None = None
        for trial in self.open():
            place = trial.next_place
            always = trial.is_default or not trial.searched
            if place is None or not (always or trial.id == pace or self._rung(place) < first_folds):
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
        return trial.standing is None, self.table.sign * (trial.standing or 0.0)

    def _rung(self, place: Place) -> int:
        return place[0] * self.table.plan.folds + place[1]


def _first(trial: Trial | None) -> tuple[Trial, Place] | None:
    place = trial.next_place if trial is not None else None
    return None if trial is None or place is None else (trial, place)
