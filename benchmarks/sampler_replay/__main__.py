"""`python -m benchmarks.sampler_replay FILE`: talk on stderr, one JSON object as the last line of stdout."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.sampler_replay import figures, replays
from benchmarks.sampler_replay.simulate import CAPS, SAMPLERS, Form
from benchmarks.search_speed import harness

RULES = ("none", "forgiving", "forgiving+hopeless", "paired", "paired+hopeless")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sampler_replay", description=__doc__)
    parser.add_argument("file", type=Path, help="what benchmarks.sampler_replay.record wrote")
    parser.add_argument("--seeds", type=int, default=20, help="replays of each form (20)")
    parser.add_argument("--trials", type=int, default=30, help="budget of random, tpe and gp (30)")
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--slots", nargs="+", type=int, default=[1, 4, 8, 16], help="units that train at once")
    parser.add_argument("--caps", nargs="+", choices=CAPS, default=["product", "none"], help="on open trials")
    parser.add_argument("--ranges", action="store_true", help="search by ranges where a study would have them")
    parser.add_argument("--jobs", type=int, default=1, help="processes (1)")
    parser.add_argument("--json", action="store_true", help="nothing but the JSON object; no talk")
    chosen = parser.parse_args(arguments)
    if min(chosen.seeds, chosen.trials, chosen.jobs, *chosen.slots) < 1:
        parser.error("--seeds, --trials, --slots and --jobs must be at least 1")
    return chosen


def forms(chosen: argparse.Namespace) -> Iterator[Form]:
    """Every combination that is one: gp is never raced, grid and random have no cap."""
    for sampler, rule, slots, cap in itertools.product(chosen.samplers, chosen.rules, chosen.slots, chosen.caps):
        name, _, hopeless = rule.partition("+")
        form = Form(sampler=sampler, rule=name, hopeless=bool(hopeless), slots=slots, trials=chosen.trials)
        if sampler == "gp" and form.raced:
            continue
        if sampler in ("grid", "random"):
            if cap == chosen.caps[0]:
                yield replace(form, cap="none", ranges=chosen.ranges)
        elif form.raced or cap != "slots" or "product" not in chosen.caps:  # unraced, product counts slots too
            yield replace(form, cap=cap, ranges=chosen.ranges)


def measured(chosen: argparse.Namespace) -> dict[str, Any]:
    """Everything, as the JSON object."""
    truth = replays.truth(chosen.file)
    recorded = truth.table
    best = recorded.configurations[truth.best]
    around = {"machine": machine.describe(), "versions": machine.versions(), "commit": machine.commit()}
    todo = list(forms(chosen))
    tasks = [(chosen.file, form, chosen.seeds) for form in todo]
    _say(chosen, f"{recorded.points} points, best {truth.values[truth.best]:.4f} with {dict(best.params)}")
    _say(chosen, f"{len(todo)} forms x {chosen.seeds} seeds\n{figures.HEAD}")
    cells, began = [], time.monotonic()
    for form, found in zip(todo, replays.each(tasks, chosen.jobs), strict=True):
        cells.append({**asdict(form), **figures.cell(found)})
        _say(chosen, figures.line(cells[-1], cells[-1]))
    _say(chosen, f"{time.monotonic() - began:.0f} s")
    return {
        "benchmark": "sampler_replay",
        "file": chosen.file.name,
        "study": recorded.study,
        "objective": recorded.objective,
        "points": recorded.points,
        "folds": len(recorded.plan.units),
        "grid_unit_epochs": sum(truth.costs[: recorded.points]),
        "best": {"value": truth.values[truth.best], "params": dict(best.params)},
        "default": {
            "value": truth.values[recorded.default],
            "params": dict(recorded.configurations[recorded.default].params),
        },
        "within_1_percent": sum(truth.loss(number) <= truth.good for number in range(recorded.points)),
        "diverged": sum(value is None for value in truth.values[: recorded.points]),
        "seeds": chosen.seeds,
        "trials": chosen.trials,
        "ranges": chosen.ranges,
        "forms": cells,
        "recorded": recorded.about,
        **around,
    }


def _say(chosen: argparse.Namespace, line: str) -> None:
    if not chosen.json:
        harness.talk(line)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 1 where the file cannot be replayed."""
    chosen = parse(arguments)
    try:
        found = measured(chosen)
    except KeyboardInterrupt:
        return 130
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(found, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
