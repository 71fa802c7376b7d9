"""Where the next configuration comes from: the grid's own list, or foldtune's samplers, snapped to the grid."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.sampler_replay.table import Table
from orchestrator import space, study
from orchestrator.study import Past, Question

REDRAWS = 10  # as the product's: orchestrator.trials.REDRAWS, whose module brings the database
FINE = 2.0  # a range whose ends differ by a larger factor, in values that are no whole numbers, is searched by its log


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the sampler is told of the space. ranges: names that it searches as ranges; the rest are choices."""

    entries: Mapping[str, Mapping[str, Any]]
    ranges: frozenset[str]


def asked(table: Table, *, ranges: bool) -> Asked:
    """The space as recorded, all choices; or with ranges where a study would have them.

    A list of choices has no order for a sampler. With `ranges` fractions and runs of whole numbers are searched between
    their ends, and the answer is moved to the nearest point, which is what the sampler is told of.
    """
    entries = dict(table.space)
    chosen = set()
    for name, entry in table.space.items():
        values = entry["choices"]
        if not ranges or len(values) < 3 or any(isinstance(each, bool | str | None) for each in values):
            continue
        low, high = min(values), max(values)
        if sorted(values) == list(range(int(low), int(high) + 1)):
            entries[name] = {"low": int(low), "high": int(high)}
        elif any(isinstance(each, float) for each in values):
            entries[name] = {"low": low, "high": high, "log": bool(low > 0 and high / low > FINE)}
        else:
            continue
        chosen.add(name)
    return Asked(entries=entries, ranges=frozenset(chosen))


def snapped(table: Table, asked_of: Asked, params: Mapping[str, Any]) -> int:
    """The point nearest to an answer, each name for itself."""
    near = {
        name: min(table.space[name]["choices"], key=lambda choice: _apart(choice, value, asked_of.entries[name]))
        if name in asked_of.ranges
        else value
        for name, value in params.items()
    }
    return next(number for number, each in enumerate(table.configurations[: table.points]) if dict(each.params) == near)


def _apart(choice: float, value: float, entry: Mapping[str, Any]) -> float:
    return abs(math.log(choice / value)) if entry.get("log") else abs(choice - value)


def in_space(asked_of: Asked, params: Mapping[str, Any]) -> bool:
    """Whether the sampler may be told of it."""
    entries = {name: space.entry_from_json(name, raw) for name, raw in asked_of.entries.items()}
    return all(params[name] in entry for name, entry in entries.items())


def order(table: Table, seed: int) -> list[int]:
    """The grid's points in an order of this seed.

    The product goes through a grid as it is listed; what one listing happens to have first says nothing of grids.
    """
    points = list(range(table.points))
    random.Random(seed).shuffle(points)
    return points


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """foldtune's random, tpe or gp, on a table. trials: the study's budget."""

    table: Table
    asked: Asked
    name: str
    trials: int
    seed: int

    def propose(
        self, number: int, past: Sequence[Past], known: Mapping[tuple[int, int], int]
    ) -> tuple[int, int | None]:
        """(configuration, the trial that has it already) of suggestion `number`, drawn again as the product does.

        known: `Configuration.key` -> trial.
        """
        question = Question(
            sampler=self.name,
            space=self.asked.entries,
            maximize=self.table.sign < 0,
            trials=self.trials,
            seed=0,
            past=tuple(past),
        )
        for redraw in range(REDRAWS + 1):
            seed = study.suggestion_seed(self.seed, number, redraw)
            chosen = snapped(self.table, self.asked, _suggest(replace(question, seed=seed)))
            duplicate = known.get(self.table.configurations[chosen].key)
            if duplicate is None:
                break
        return chosen, duplicate


def _suggest(question: Question) -> Mapping[str, Any]:
    """`study.suggest`, the Gaussian process without its child process: a program that measures may load torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental, says Optuna of GPSampler each time
        return (study.answer if question.sampler == "gp" else study.suggest)(question)[0]
