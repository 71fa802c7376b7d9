"""Train a whole grid and record it: every configuration on every fold, every epoch. The engine alone, no database.

    nice python -m benchmarks.sampler_replay.record STUDY.yaml OUT.json.gz --workers 2

It may be broken off: what is trained lies in OUT.json.gz.units.jsonl, and the same command goes on from there.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import machine
from benchmarks.sampler_replay import crew, plan, table
from benchmarks.sampler_replay.journal import Journal
from benchmarks.sampler_replay.plan import Plan
from benchmarks.sampler_replay.table import Table, Unit, floats
from benchmarks.search_speed import harness
from orchestrator.contract import EpochDone, TrainUnit, UnitEnded
from orchestrator.errors import FoldtuneError

EVERY = 10.0  # seconds between two lines of talk


@dataclass
class Progress:
    """Talk. left, total: unit-epochs, of which some were there at the start."""

    left: int
    total: int
    began: float | None = None  # from the first unit's end on: loading the model is no forecast of training
    paced: int = 0  # unit-epochs since then
    trained: int = 0
    cpu: float = 0.0
    ends: Counter[str] = field(default_factory=Counter)
    told: float = 0.0

    def ended(self, planned: int, unit: Unit) -> None:
        """A unit of so many planned epochs."""
        self.left -= planned
        self.trained += planned
        self.cpu += sum(unit.seconds)
        self.ends[unit.ended] += 1
        now = time.monotonic()
        if self.began is None:
            self.began = now
        else:
            self.paced += planned
        if now - self.told >= EVERY or not self.left:
            self.told = now
            ahead = f"about {(now - self.began) / self.paced * self.left / 60:.1f} min to go" if self.paced else "…"
            harness.talk(
                f"{self.total - self.left}/{self.total} unit-epochs, {self.ends['diverged']} units diverged, "
                f"{self.cpu / self.trained:.2f} device s each, {ahead}"
            )


def record(path: Path, out: Path, workers: int) -> Table:
    """Train what is missing, write the table."""
    planned = plan.load(path)
    with closing(Journal(out.with_name(f"{out.name}.units.jsonl"), planned.identity())) as journal:
        _train(planned, journal, workers)
        made = compose(planned, journal)
    table.save(made, out)
    return made


def _train(planned: Plan, journal: Journal, workers: int) -> None:
    todo = [(run, unit) for run, unit in planned.units() if (run.digest, (unit.repeat, unit.fold)) not in journal.units]
    random.Random(0).shuffle(todo)  # cheap and dear ones mixed, or the forecast would be of one kind
    total = planned.points.epochs * len(planned.places)
    progress = Progress(left=sum(run.settings.epochs for run, _ in todo), total=total)
    harness.talk(
        f"{planned.points.points} points, {len(planned.points.runs)} runs x {len(planned.places)} folds, "
        f"{progress.left} of {total} unit-epochs to train"
    )
    digests = {unit.unit: run.digest for run, unit in todo}

    def heard(unit: TrainUnit, ended: UnitEnded, epochs: Sequence[EpochDone]) -> None:
        done = Unit(
            ended=ended.outcome.value,
            tallies=tuple(each.tallies for each in epochs),
            nats=tuple(floats(each.predictions.nats) for each in epochs),
            seconds=tuple(round(each.seconds, 3) for each in epochs),
        )
        counts = epochs[-1].predictions.counts if epochs else ""
        journal.add(digests[unit.unit], (unit.repeat, unit.fold), done, counts)
        progress.ended(unit.settings.epochs, done)

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "rows.jsonl"
        data.write_bytes(planned.prepared.snapshot.content)
        crew.train(planned.open_study(data), [unit for _, unit in todo], workers, heard)


def compose(planned: Plan, journal: Journal) -> Table:
    """The table of a journal that is complete.

    Raises:
        ValueError: on a fold everything diverged in the first epoch.
    """
    spec, points = planned.prepared.loaded.spec, planned.points
    if missing := set(planned.places) - set(journal.counts):
        raise ValueError(f"nothing was ever evaluated on {sorted(missing)}")
    return Table(
        study=spec.study,
        objective=spec.objective,
        space=spec.search.space,
        plan=planned.prepared.plan,
        counts={place: floats(journal.counts[place]) for place in planned.places},
        configurations=points.configurations,
        points=points.points,
        default=points.default,
        runs=tuple({place: journal.units[run.digest, place] for place in planned.places} for run in points.runs),
        about={
            **planned.identity(),
            "device_seconds": round(sum(sum(unit.seconds) for unit in journal.units.values()), 1),
            "recorded": datetime.now(UTC).strftime("%Y-%m-%d"),
            "machine": machine.describe(),
            "versions": machine.versions(),
        },
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Record; 130 where it was broken off, 1 where something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sampler_replay.record", description=__doc__)
    parser.add_argument("study", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--workers", type=int, default=1, help="single-threaded processes (1)")
    chosen = parser.parse_args(arguments)
    if chosen.workers < 1:
        parser.error("--workers must be at least 1")
    try:
        made = record(chosen.study, chosen.out, chosen.workers)
    except KeyboardInterrupt:
        harness.talk("broken off; the same command goes on from here")
        return 130
    except FoldtuneError as error:
        harness.talk(str(error))
        return error.code
    except (OSError, ValueError, RuntimeError) as error:
        harness.talk(f"error: {error}")
        return 1
    harness.talk(f"{chosen.out}: {made.points} points, {made.about['device_seconds']:.0f} device s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
