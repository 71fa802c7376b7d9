"""`python -m benchmarks.effects STUDY.yaml [NAME...]`: talk on stderr, one JSON object as the last line of stdout."""

from __future__ import annotations

import argparse
import base64
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.effects.compare import by_row, effect
from benchmarks.effects.variations import Variation, units, variations
from benchmarks.sampler_replay import crew
from benchmarks.search_speed import harness
from orchestrator import objective, prepare, statistics, study_file
from orchestrator.contract import EpochDone, OpenStudy, TrainUnit, UnitEnded
from orchestrator.errors import FoldtuneError
from orchestrator.prepare import Prepared


def trained(
    prepared: Prepared, chosen: Sequence[Variation], workers: int, folder: Path
) -> Mapping[int, list[tuple[TrainUnit, EpochDone]]]:
    """variation -> its units, each with its last epoch; without one that diverged on any fold."""
    spec = prepared.loaded.spec
    data, pool = folder / "rows.jsonl", folder / "pool.jsonl"
    data.write_bytes(prepared.snapshot.content)
    if prepared.pool is not None:
        pool.write_bytes(prepared.pool.content)
    study = OpenStudy(
        study=1,
        name=spec.study,
        task=spec.task,
        model=prepared.model,
        data=str(data),
        labels=prepared.snapshot.classes,
        pool=None if prepared.pool is None else str(pool),
        cache=str(folder / "cache"),
        writers=prepared.writers,
    )
    every = list(units(prepared, chosen))
    found: dict[int, list[tuple[TrainUnit, EpochDone]]] = {}
    ended = 0

    def heard(unit: TrainUnit, end: UnitEnded, epochs: Sequence[EpochDone]) -> None:
        nonlocal ended
        ended += 1
        if end.outcome == "done":
            found.setdefault(unit.trial, []).append((unit, epochs[-1]))
        harness.talk(f"{ended}/{len(every)} {chosen[unit.trial].name}, fold {unit.fold}: {end.outcome}")

    crew.train(study, every, workers, heard)
    return {number: each for number, each in found.items() if len(each) == len(prepared.plan.units)}


def measured(path: Path, names: Sequence[str], workers: int) -> dict[str, Any]:
    """Everything, as the JSON object.

    Raises:
        BadInput: what is wrong with the study. ValueError: it has no choices, or the first ones diverged.
    """
    prepared, _ = prepare.prepare(study_file.load(path))
    chosen, described = variations(prepared, names), machine.describe()
    with tempfile.TemporaryDirectory() as folder:
        found = trained(prepared, chosen, workers, Path(folder))
    if 0 not in found:
        raise ValueError("the first choices diverged: there is nothing to compare with")
    sums = {
        number: by_row(prepared.snapshot.rows, (_items(unit, done) for unit, done in each))
        for number, each in found.items()
    }
    clusters = statistics.clusters(prepared.snapshot.parsed)
    return {
        "study": prepared.loaded.spec.study,
        "rows": prepared.snapshot.rows,
        "folds": len(prepared.plan.units),
        "without": asdict(chosen[0].settings),
        "variations": [
            {
                "changed": variation.changed,
                **(asdict(effect(sums[number], sums[0], clusters)) if number in sums else {"diverged": True}),
                "metrics": objective.metrics(objective.add(done.tallies for _, done in found[number]))
                if number in found
                else None,
                "device_seconds": round(sum(done.seconds for _, done in found.get(number, ())), 1),
            }
            for number, variation in enumerate(chosen)
        ],
        "machine": described,
        "versions": machine.versions(),
        "commit": machine.commit(),
    }


def _items(unit: TrainUnit, done: EpochDone) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    nats, counts = (
        np.frombuffer(base64.b64decode(packed), "<f4") for packed in (done.predictions.nats, done.predictions.counts)
    )
    return np.array(unit.validation), nats, counts


def table(result: Mapping[str, Any]) -> str:
    """For people."""
    lines = []
    for each in result["variations"]:
        name = ", ".join(f"{name} {value}" for name, value in each["changed"].items()) or "without"
        if each.get("diverged"):
            lines.append(f"{name:32} diverged")
        else:
            interval = f"{each['difference']:+.3f} [{each['low']:+.3f}, {each['high']:+.3f}]" if each["changed"] else ""
            lines.append(f"{name:32} {each['loss']:.3f}  {interval}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; 1 where something is wrong, 130 where it was broken off."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.effects", description=__doc__)
    parser.add_argument("study", type=Path, help="a study file; the first choice of each list is what is compared with")
    parser.add_argument("names", nargs="*", help="hyperparameters to change; default: all that are searched")
    parser.add_argument("--workers", type=int, default=2, help="single-threaded processes (2)")
    chosen = parser.parse_args(arguments)
    try:
        result = measured(chosen.study, chosen.names, chosen.workers)
    except KeyboardInterrupt:
        return 130
    except (FoldtuneError, ValueError, RuntimeError) as error:
        harness.talk(str(error))
        return 1
    harness.talk(table(result))
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
