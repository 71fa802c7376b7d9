"""How often 95 % intervals of a mean loss cover it, where it is known.

    python -m benchmarks.coverage [--studies 1000] [--json]

A table on stderr; with --json the last line of stdout is one object.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from benchmarks import machine
from orchestrator import selection, statistics

Draw = Callable[[np.random.Generator, int], np.ndarray]
Interval = tuple[float, float]
ROWS = (50, 100, 300)
DRAWS = 4_000  # of the percentile bootstrap


@dataclass(frozen=True)
class Scenario:
    """Losses of rows. kin: so many of them in a row belong together."""

    draw: Draw
    mean: float
    kin: int = 1


def _kin(draws: np.random.Generator, rows: int) -> np.ndarray:
    return np.repeat(draws.exponential(1.0, -(-rows // 5)), 5)[:rows] + draws.normal(0.0, 0.1, rows)


SCENARIOS: Mapping[str, Scenario] = {
    "normal": Scenario(lambda draws, rows: draws.normal(1.0, 0.5, rows), 1.0),
    "exponential": Scenario(lambda draws, rows: draws.exponential(1.0, rows), 1.0),
    "lognormal": Scenario(lambda draws, rows: draws.lognormal(0.0, 1.0, rows), math.exp(0.5)),
    "groups of five": Scenario(_kin, 1.0, kin=5),
}


def ours(losses: np.ndarray, clusters: np.ndarray, _: np.random.Generator) -> Interval:
    """The product's."""
    found = statistics.mean(losses, np.ones(len(losses)), clusters)
    return found.low, found.high


def percentile(losses: np.ndarray, _: np.ndarray, draws: np.random.Generator) -> Interval:
    """A plain bootstrap over rows."""
    means = losses[draws.integers(0, len(losses), (DRAWS, len(losses)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def student(losses: np.ndarray, _: np.ndarray, __: np.random.Generator) -> Interval:
    """Of the textbook."""
    low, high = stats.t.interval(0.95, len(losses) - 1, losses.mean(), stats.sem(losses))
    return float(low), float(high)


METHODS = {"bootstrap-t by groups": ours, "percentile bootstrap": percentile, "Student": student}


def measured(studies: int, seed: int) -> Iterator[dict[str, Any]]:
    """Of each scenario, number of rows and method: the share covered, and the mean width."""
    for name, scenario in SCENARIOS.items():
        for rows in ROWS:
            draws = np.random.default_rng([seed, rows])
            clusters = np.arange(rows) // scenario.kin
            found: dict[str, list[Interval]] = {method: [] for method in METHODS}
            for _ in range(studies):
                losses = scenario.draw(draws, rows)
                for method, interval in METHODS.items():
                    found[method].append(interval(losses, clusters, draws))
            for method, intervals in found.items():
                low, high = np.array(intervals).T
                covered = float(np.mean((low <= scenario.mean) & (scenario.mean <= high)))
                yield {
                    "scenario": name,
                    "rows": rows,
                    "method": method,
                    "covered": covered,
                    "width": float(np.mean(high - low)),
                }


@dataclass(frozen=True)
class Search:
    """Trials that share rows: how hard a row is, and what each trial does to it, are drawn apart.

    spread: of the trials' true losses. hopeless: trials that are a nat worse. raced: these are stopped after a fifth.
    """

    trials: int
    spread: float = 0.0
    hopeless: int = 0
    raced: bool = False
    heavy: bool = False


SEARCHES: Mapping[str, Search] = {
    "1 trial": Search(1),
    "10 equal": Search(10),
    "50 equal": Search(50),
    "50 equal, heavy tails": Search(50, heavy=True),
    "50 spread by 0.05": Search(50, spread=0.05),
    "50 spread by 0.2": Search(50, spread=0.2),
    "10 equal, 40 hopeless": Search(50, hopeless=40),
    "10 equal, 40 stopped": Search(50, hopeless=40, raced=True),
}


def _search(search: Search, rows: int, draws: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """((trials, rows, 2) sums and items, (trials,) true losses)."""
    shape = (search.trials, rows)
    if search.heavy:
        common, own = draws.lognormal(0.0, 1.0, rows) - math.exp(0.5), draws.standard_t(3, shape) * 0.4
    else:
        common, own = draws.normal(0.0, 0.7, rows), draws.normal(0.0, 0.5, shape)
    truth = draws.normal(1.0, search.spread, search.trials) if search.spread else np.ones(search.trials)
    truth[search.trials - search.hopeless :] += 1.0
    sums = np.stack([truth[:, None] + common + own, np.ones(shape)], -1)
    if search.raced:
        sums[search.trials - search.hopeless :, rows // 5 :] = 0
    return sums, truth


def measured_winners(studies: int, seed: int) -> Iterator[dict[str, Any]]:
    """Of each search: the share of studies whose winner's true loss is covered, and the mean error of its loss."""
    for name, search in SEARCHES.items():
        for rows in ROWS:
            draws = np.random.default_rng([seed, rows])
            found: dict[str, list[tuple[float, float, float]]] = {"selection bootstrap": [], "as if alone": []}
            for _ in range(studies):
                sums, truth = _search(search, rows, draws)
                best = selection.winner(sums, np.arange(rows), (sums[..., 1] > 0).all(1))
                alone = statistics.mean(*sums[best.trial].T, np.arange(rows))
                for method, estimate in (("selection bootstrap", best.loss), ("as if alone", alone)):
                    found[method].append(tuple(each - truth[best.trial] for each in dataclasses.astuple(estimate)))
            for method, errors in found.items():
                value, low, high = np.array(errors).T
                yield {
                    "scenario": name,
                    "rows": rows,
                    "method": method,
                    "covered": float(np.mean((low <= 0) & (high >= 0))),
                    "bias": float(np.mean(value)),
                    "width": float(np.mean(high - low)),
                }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; 130 where it was broken off."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.add_argument("--studies", type=int, default=1000, help="draws of each scenario (1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--winners", action="store_true", help="only the best of several trials")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    chosen = parser.parse_args(arguments)
    described, found = machine.describe(), []
    try:
        chain = itertools.chain(
            measured(chosen.studies, chosen.seed) if not chosen.winners else (),
            measured_winners(chosen.studies, chosen.seed),
        )
        for each in chain:
            found.append(each)
            line = f"{each['scenario']:22} {each['rows']:4} rows  {each['method']:22} {each['covered']:.3f}"
            bias = f"  bias {each['bias']:+.3f}" if "bias" in each else ""
            print(f"{line}  width {each['width']:.3f}{bias}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    if chosen.json:
        result = {"studies": chosen.studies, "seed": chosen.seed, "level": 0.95, "intervals": found}
        versions = machine.versions(("numpy", "scipy"))
        print(json.dumps({**result, "machine": described, "versions": versions, "commit": machine.commit()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
