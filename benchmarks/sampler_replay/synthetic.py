"""A table like a recorded one, made in milliseconds: what tests replay."""

from __future__ import annotations

import math
import random
from array import array
from typing import Any

from benchmarks.sampler_replay.table import Configuration, Place, Table, Unit
from orchestrator.folds import FoldPlan

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)


def table(seed: int = 0, *, folds: int = 5, rows: int = 60, noise: float = 0.3, diverging: bool = True) -> Table:
    """Losses with a valley along the learning rate, folds of unlike difficulty, and noise.

    noise: standard deviation of an item's loss, nats; items share the folds' and the configuration's part of it.
    diverging: whether the largest learning rate with the smallest batch diverges in its second epoch.
    """
    draw = random.Random(seed)
    space: dict[str, Any] = {"learning_rate": list(RATES), "batch_size": [8, 32], "epochs": [1, 2, 3]}
    plan = FoldPlan(folds, (tuple(row % folds for row in range(rows)),))
    hardness = [draw.gauss(0, 0.1) for _ in range(folds)]
    items = {row: draw.gauss(0, noise) for row in range(rows)}
    configurations: list[Configuration] = []
    runs: list[dict[Place, Unit]] = []
    points: list[dict[str, Any]] = [
        {"learning_rate": r, "batch_size": b, "epochs": e} for r in RATES for b in (8, 32) for e in (1, 2, 3)
    ]
    for params in [*points, {"learning_rate": 2e-4, "batch_size": 8, "epochs": 3}]:
        configurations.append(Configuration(params=params, run=len(runs), epochs=params["epochs"]))
        breaks = diverging and params["learning_rate"] == RATES[-1] and params["batch_size"] == 8
        units = {}
        for place in plan.units:
            losses = []
            for epoch in range(1, params["epochs"] + 1):
                valley = (math.log10(params["learning_rate"]) + 2.5) ** 2 * 0.5
                level = 1.0 + valley + 0.2 / epoch + 0.05 * (params["batch_size"] == 32)
                level += hardness[place[1]] + draw.gauss(0, noise / 8)
                own = [level + items[row] + draw.gauss(0, noise / 3) for row in plan.split(*place)[1]]
                losses.append(array("f", [max(0.01, loss) for loss in own]))
            if breaks:
                losses = losses[:1]
            units[place] = Unit(
                ended="diverged" if breaks and params["epochs"] > 1 else "done",
                tallies=tuple({"nats": sum(each), "items": len(each), "correct": 0} for each in losses),
                nats=tuple(losses),
                seconds=(1.0,) * len(losses),
            )
        runs.append(units)
    return Table(
        study="synthetic",
        objective="validation_loss",
        space={name: {"choices": choices} for name, choices in space.items()},
        plan=plan,
        counts={place: array("f", [1.0] * len(plan.split(*place)[1])) for place in plan.units},
        configurations=tuple(configurations),
        points=len(points),
        default=len(points),
        runs=tuple(runs),
    )
