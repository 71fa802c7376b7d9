"""Many replays of one form -> its figures (pure)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from statistics import median
from typing import Any

from benchmarks.order import Trial
from benchmarks.sampler_replay.simulate import Outcome
from benchmarks.sampler_replay.table import Table

WITHIN = 0.01  # of the best of the whole grid
BUDGETS = (60, 120, 180, 240, 360, 480)  # unit-epochs; with five folds of three epochs 15 are a trial


class Truth:
    """What the table knows and no replayed study does: every point's objective over all folds."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.values = [table.value(number) for number in range(len(table.configurations))]
        self.costs = [table.cost(number) for number in range(len(table.configurations))]

    @cached_property
    def best(self) -> int:
        """The grid's best point.

        Raises:
            ValueError: every point diverged.
        """
        chosen = self.best_of(range(self.table.points))
        if chosen is None:
            raise ValueError("no point of the grid has a value")
        return chosen

    def best_of(self, configurations: Iterable[int]) -> int | None:
        """The best of these; None: none has a value."""
        known = [number for number in configurations if self.values[number] is not None]
        return min(known, key=lambda number: self.loss(number), default=None)

    def loss(self, configuration: int) -> float:
        """The objective with the sign by which less is better; infinite where it diverged."""
        value = self.values[configuration]
        return math.inf if value is None else self.table.sign * value

    @property
    def good(self) -> float:
        """What is within 1 % of the best, in terms of `loss`."""
        best = self.loss(self.best)
        return best + WITHIN * abs(best)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One replay. to_good_*: until the best trial is within 1 % of the grid's best; infinite: never.

    regret: of the winner against the grid's best; lost: against the best configuration that was tried (both in units of
    the objective). saved: share of the unit-epochs of all folds of the same trials. idle: share of slots and ticks.
    best_tried, best_stopped: the grid's best was tried, was stopped. own_best_stopped: the best of those tried was.
    best_after: the best complete trial's objective after each of BUDGETS.
    """

    to_good_trials: float
    to_good_unit_epochs: float
    to_good_ticks: float
    regret: float
    lost: float
    saved: float
    idle: float
    unit_epochs: int
    ticks: int
    complete: int
    stopped: int
    diverged: int
    repeated: int
    best_tried: bool
    best_stopped: bool
    own_best_stopped: bool
    best_after: tuple[float, ...]


def measure(truth: Truth, outcome: Outcome) -> Measured:
    """The figures of one replay."""
    own = [trial for trial in outcome.trials if trial.duplicate_of is None]
    reached = next((step for step in outcome.steps if truth.table.sign * step.value <= truth.good), None)
    winner = truth.loss(outcome.trials[outcome.steps[-1].trial].configuration) if outcome.steps else math.inf
    tried = truth.best_of(trial.configuration for trial in own)
    searched = truth.best_of(trial.configuration for trial in own if trial.searched)
    stopped = {trial.configuration for trial in own if trial.state == "stopped"}
    full = sum(truth.costs[trial.configuration] for trial in own)
    states = [trial.state for trial in own]
    return Measured(
        to_good_trials=reached.trials if reached else math.inf,
        to_good_unit_epochs=reached.spent if reached else math.inf,
        to_good_ticks=reached.clock if reached else math.inf,
        regret=winner - truth.loss(truth.best),
        lost=0.0 if tried is None else winner - truth.loss(tried),
        saved=1 - outcome.spent / full,
        idle=1 - outcome.spent / (outcome.clock * outcome.form.slots),
        unit_epochs=outcome.spent,
        ticks=outcome.clock,
        complete=states.count("complete"),
        stopped=states.count("stopped"),
        diverged=states.count("diverged"),
        repeated=len(outcome.trials) - len(own),
        best_tried=_has(own, truth.best),
        best_stopped=truth.best in stopped,
        own_best_stopped=searched is not None and searched in stopped,
        best_after=tuple(best_after(outcome, truth.table.sign, budget) for budget in BUDGETS),
    )


def best_after(outcome: Outcome, sign: float, spent: int) -> float:
    """The best complete trial's objective after so many unit-epochs; infinite: none was complete."""
    values = [step.value for step in outcome.steps if step.spent <= spent]
    return min(values, key=lambda value: sign * value, default=math.inf)


def _has(trials: Sequence[Trial], configuration: int) -> bool:
    return any(trial.configuration == configuration for trial in trials)


def cell(measured: Sequence[Measured]) -> dict[str, Any]:
    """Over the replays of one form: median and range of each figure, shares of what is true or false.

    null: infinite, that is, not reached. The median counts replays that did not reach it.
    """
    rows = [asdict(each) for each in measured]
    found: dict[str, Any] = {
        "replays": len(rows),
        "reached": _share(math.isfinite(each.to_good_trials) for each in measured),
    }
    for name, first in rows[0].items():
        values = [row[name] for row in rows]
        if isinstance(first, tuple):
            found[name] = {str(at): spread(each) for at, each in zip(BUDGETS, zip(*values, strict=True), strict=True)}
        else:
            found[name] = _share(values) if isinstance(first, bool) else spread(values)
    return found


def _share(values: Iterable[bool]) -> float:
    counted = list(values)
    return round(sum(counted) / len(counted), 4)


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Median, least and greatest; null: infinite, that is, not reached."""
    return {"median": _plain(median(values)), "least": _plain(min(values)), "greatest": _plain(max(values))}


def _plain(value: float) -> float | None:
    return round(value, 5) if math.isfinite(value) else None


def line(form: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """A cell for people."""
    rule = form["rule"] + ("+hopeless" if form["hopeless"] else "")
    trials, spent = found["to_good_trials"]["median"], found["to_good_unit_epochs"]["median"]
    return (
        f"{form['sampler']:6} {rule:18} {form['slots']:3} {form['cap']:8} "
        f"{_cell(trials):>6} {_cell(spent):>7} {_cell(found['to_good_ticks']['median']):>6} {found['reached']:7.0%} "
        f"{_cell(found['regret']['median'], 4):>8} {_cell(found['regret']['greatest'], 4):>8} "
        f"{found['saved']['median']:6.0%} {found['best_stopped']:6.0%} {found['own_best_stopped']:6.0%} "
        f"{found['idle']['median']:6.0%}"
    )


HEAD = (
    f"{'':6} {'':18} {'':3} {'':8} {'median until within 1 %':^29} {'regret':^17} {'':6} {'stopped':^13}\n"
    f"{'':6} {'rule':18} {'at':>3} {'cap':8} {'trials':>6} {'unit-ep':>7} {'ticks':>6} {'reached':>7} "
    f"{'median':>8} {'greatest':>8} {'saved':>6} {'best':>6} {'own':>6} {'idle':>6}"
)


def _cell(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
