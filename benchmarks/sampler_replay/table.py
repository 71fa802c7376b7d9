"""Recorded runs of a whole grid: every configuration on every fold, with every epoch. Pure, but for its two files."""

from __future__ import annotations

import base64
import gzip
import json
import os
import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.order import Place
from orchestrator import objective
from orchestrator.contract import pack_floats
from orchestrator.folds import FoldPlan
from orchestrator.objective import MAXIMIZE, Tallies

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One run on one fold.

    ended: "done", or "diverged" in the epoch after the last one here. For each epoch: tallies; nats, the float32 losses
    of the validation items, each summed over its labels or tokens; seconds of the device (on a CPU: CPU seconds).
    """

    ended: str
    tallies: tuple[Tallies, ...]
    nats: tuple[Sequence[float], ...]
    seconds: tuple[float, ...]

    def until(self, epochs: int) -> Unit:
        """The same unit with so many epochs at most."""
        if len(self.tallies) < epochs:
            return self
        return Unit(ended="done", tallies=self.tallies[:epochs], nats=self.nats[:epochs], seconds=self.seconds[:epochs])

    @property
    def cost(self) -> int:
        """Epochs that were trained, the one in which it diverged included."""
        return len(self.tallies) + (self.ended == "diverged")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; the losses of all epochs in one base64."""
        return {
            "ended": self.ended,
            "tallies": [dict(each) for each in self.tallies],
            "nats": pack_floats([nats for epoch in self.nats for nats in epoch]),
            "seconds": list(self.seconds),
        }


def unit_from_json(raw: Mapping[str, Any]) -> Unit:
    """The unit that `to_json` wrote."""
    nats, epochs = floats(raw["nats"]), len(raw["tallies"])
    items = len(nats) // max(epochs, 1)
    return Unit(
        ended=raw["ended"],
        tallies=tuple(raw["tallies"]),
        nats=tuple(nats[epoch * items : (epoch + 1) * items] for epoch in range(epochs)),
        seconds=tuple(raw["seconds"]),
    )


def floats(packed: str) -> array[float]:
    """float32, little-endian, base64."""
    values = array("f", base64.b64decode(packed))
    if sys.byteorder == "big":
        values.byteswap()
    return values


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """A point of the grid, or the default configuration: so many epochs of a run."""

    params: Mapping[str, Any]
    run: int
    epochs: int

    @property
    def key(self) -> tuple[int, int]:
        """Equal for configurations that train the same."""
        return self.run, self.epochs


@dataclass(frozen=True, kw_only=True)
class Table:
    """Everything that was recorded.

    space: entries as JSON, each a list of choices. configurations: the grid's points, `points` of them, and behind them
    the default configuration unless it is a point. counts: (repeat, fold) -> labels or tokens of each validation item,
    in the order of `plan.split`. about: machine, versions, digests of what was trained.
    """

    study: str
    objective: str
    space: Mapping[str, Mapping[str, Any]]
    plan: FoldPlan
    counts: Mapping[Place, Sequence[float]]
    configurations: tuple[Configuration, ...]
    points: int
    default: int
    runs: tuple[Mapping[Place, Unit], ...]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sign(self) -> float:
        """What an objective is multiplied by so that less is better."""
        return -1.0 if MAXIMIZE[self.objective] else 1.0

    def unit(self, configuration: int, place: Place) -> Unit:
        """What a configuration showed on a fold."""
        chosen = self.configurations[configuration]
        return self.runs[chosen.run][place].until(chosen.epochs)

    def value(self, configuration: int) -> float | None:
        """The objective over all folds; None: it diverged on one."""
        units = [self.unit(configuration, place) for place in self.plan.units]
        if any(unit.ended != "done" for unit in units):
            return None
        return objective.value(self.objective, (unit.tallies[-1] for unit in units))

    def where(self, name: str, value: Any) -> Table:
        """The part of the grid with this value, which is then no longer searched; the default configuration stays."""
        kept = [each for each in self.configurations[: self.points] if each.params[name] == value]
        default = self.configurations[self.default]
        there = next((number for number, each in enumerate(kept) if each.key == default.key), None)
        parts = tuple(
            replace(each, params={one: found for one, found in each.params.items() if one != name})
            for each in (*kept, *([] if there is not None else [default]))
        )
        space = {one: entry for one, entry in self.space.items() if one != name}
        return replace(
            self,
            space=space,
            configurations=parts,
            points=len(kept),
            default=len(kept) if there is None else there,
        )

    def cost(self, configuration: int) -> int:
        """Unit-epochs of all its folds, one after the other; of one that diverges until it does."""
        spent = 0
        for place in self.plan.units:
            unit = self.unit(configuration, place)
            spent += unit.cost
            if unit.ended != "done":
                break
        return spent


def save(table: Table, path: Path) -> None:
    """Write the file whole or not at all; compressed where its name ends in .gz."""
    plan = {"folds": table.plan.folds, "assignment": table.plan.assignment}
    raw = {
        "format": FORMAT,
        "study": table.study,
        "objective": table.objective,
        "space": table.space,
        "plan": plan,
        "about": table.about,
        "counts": {_name(place): pack_floats(counts) for place, counts in table.counts.items()},
        "points": table.points,
        "default": table.default,
        "configurations": [
            {"params": dict(each.params), "run": each.run, "epochs": each.epochs} for each in table.configurations
        ],
        "runs": [{_name(place): unit.to_json() for place, unit in run.items()} for run in table.runs],
    }
    content = (json.dumps(raw, separators=(",", ":"), allow_nan=False) + "\n").encode()
    if path.suffix == ".gz":
        content = gzip.compress(content, mtime=0)
    beside = path.with_name(f"{path.name}.tmp")
    beside.write_bytes(content)
    os.replace(beside, path)


def load(path: Path) -> Table:
    """Read what `save` wrote.

    Raises:
        ValueError: the file is of another format or contradicts itself. OSError: it cannot be read. KeyError: something
            is missing.
    """
    content = path.read_bytes()
    raw = json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)
    if raw["format"] != FORMAT:
        raise ValueError(f"{path.name} has format {raw['format']}, not {FORMAT}")
    plan = FoldPlan(raw["plan"]["folds"], tuple(tuple(repeat) for repeat in raw["plan"]["assignment"]))
    table = Table(
        study=raw["study"],
        objective=raw["objective"],
        space=raw["space"],
        plan=plan,
        counts={_place(name): floats(counts) for name, counts in raw["counts"].items()},
        configurations=tuple(Configuration(**each) for each in raw["configurations"]),
        points=raw["points"],
        default=raw["default"],
        runs=tuple({_place(name): unit_from_json(unit) for name, unit in run.items()} for run in raw["runs"]),
        about=raw["about"],
    )
    if wrong := problems(table):
        raise ValueError(f"{path.name}: {'; '.join(wrong[:5])}")
    return table


def problems(table: Table) -> list[str]:
    """What is missing or contradicts itself."""
    found = []
    if not 0 < table.points <= len(table.configurations) or not 0 <= table.default < len(table.configurations):
        found.append("no points, or no default configuration")
    for number, run in enumerate(table.runs):
        epochs = max((each.epochs for each in table.configurations if each.run == number), default=0)
        for place in table.plan.units:
            unit = run.get(place)
            if unit is None:
                found.append(f"run {number} lacks {place}")
            elif unit.ended not in ("done", "diverged") or (unit.ended == "done" and len(unit.tallies) != epochs):
                found.append(f"run {number} has {len(unit.tallies)} of {epochs} epochs at {place}")
            elif any(len(nats) != len(table.counts[place]) for nats in unit.nats):
                found.append(f"run {number} has a loss too many or too few at {place}")
    return found


def _name(place: Place) -> str:
    return f"{place[0]}/{place[1]}"


def _place(name: str) -> Place:
    repeat, _, fold = name.partition("/")
    return int(repeat), int(fold)
