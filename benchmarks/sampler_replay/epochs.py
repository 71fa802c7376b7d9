"""Is one long run with a constant learning rate, of which every epoch counts, better than searching epochs?

`python -m benchmarks.sampler_replay.epochs FILE`: talk on stderr, one JSON object as the last line of stdout. The
recorded grid needs `epochs` and the schedules "linear" and "constant". About 9 CPU minutes, nearly all of them tpe's.

decaying: a linear schedule; each trial trains the number of epochs that it is asked for.
constant: the same with a constant schedule.
shared: a constant schedule, always the most epochs; a trial counts with its best one (`share_epochs` of a study).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.sampler_replay import figures, table
from benchmarks.sampler_replay.figures import BUDGETS
from benchmarks.sampler_replay.simulate import Form, simulate
from benchmarks.sampler_replay.table import Table
from benchmarks.search_speed import harness


def ways(recorded: Table) -> Mapping[str, tuple[Table, bool]]:
    """name -> (what is searched, whether trials share their epochs)."""
    decaying, constant = (recorded.where("lr_schedule", schedule) for schedule in ("linear", "constant"))
    most = max(recorded.space["epochs"]["choices"])
    return {
        "decaying": (decaying, False),
        "constant": (constant, False),
        "shared": (constant.where("epochs", most), True),
    }


def measured(recorded: Table, sampler: str, seeds: int) -> dict[str, Any]:
    """For each way the best value after each budget: median and range over the seeds."""
    found: dict[str, Any] = {}
    for name, (part, shared) in ways(recorded).items():
        form = Form(sampler=sampler, trials=min(part.points, max(BUDGETS) // len(part.plan.units)), shared=shared)
        outcomes = [simulate(part, form, seed) for seed in range(seeds)]
        found[name] = {
            str(budget): figures.spread([figures.best_after(one, part.sign, budget) for one in outcomes])
            for budget in BUDGETS
        }
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 1 where the file cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sampler_replay.epochs")
    parser.add_argument("file", type=Path, help="what benchmarks.sampler_replay.record wrote")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--samplers", nargs="+", choices=("random", "tpe"), default=["random", "tpe"])
    chosen = parser.parse_args(arguments)
    try:
        recorded = table.load(chosen.file)
        found = {sampler: measured(recorded, sampler, chosen.seeds) for sampler in chosen.samplers}
    except (OSError, ValueError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for sampler, each in found.items():
        for name, after in each.items():
            harness.talk(f"{sampler:7} {name:9} " + "  ".join(f"{at}: {one['median']}" for at, one in after.items()))
    around = {"machine": machine.describe(), "versions": machine.versions(), "commit": machine.commit()}
    print(json.dumps({"benchmark": "sampler_replay.epochs", "seeds": chosen.seeds, "best": found, **around}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
