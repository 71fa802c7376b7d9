"""Each complete trial of a study against its default configuration, paired over validation items.

    python -m benchmarks.paired STUDY [--storage URL]

For every trial: the mean difference of its stored out-of-fold nats to the default's on the same items (negative is
better), with a 95 % percentile bootstrap interval over items. The items are the only chance in it: seeds of the units,
and that the best of several trials is looked at, are not in the interval.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import numpy as np
from sqlalchemy import Engine, text

from orchestrator import reading
from orchestrator.database.engine import connect, storage_url, transaction

DRAWS = 10_000
LAST_EPOCH = """
    SELECT DISTINCT ON (unit.trial, unit.repeat, unit.fold) unit.trial, unit.repeat, unit.fold, nats, counts
    FROM result JOIN unit ON unit.id = result.unit WHERE unit.study = :study
    ORDER BY unit.trial, unit.repeat, unit.fold, result.epoch DESC
"""


def items(engine: Engine, study: int) -> Mapping[int, np.ndarray]:
    """trial -> (2, items) nats, and labels or tokens that they cover, of all validation items in the plan's order."""
    with transaction(engine) as connection:
        rows = connection.execute(text(LAST_EPOCH), {"study": study}).all()
    found: dict[int, list[np.ndarray]] = {}
    for row in rows:
        found.setdefault(row.trial, []).append(np.stack([np.frombuffer(one, "<f4") for one in (row.nats, row.counts)]))
    return {trial: np.concatenate(parts, 1) for trial, parts in found.items()}


def interval(differences: np.ndarray, counts: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 %, of the sum of (items,) differences divided by that of the counts."""
    draws = np.random.default_rng(seed).integers(0, len(counts), (DRAWS, len(counts)))
    low, high = np.quantile(differences[draws].sum(1) / counts[draws].sum(1), [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("--storage")
    options = parser.parse_args()
    engine = connect(storage_url(options.storage))
    view = reading.view(engine, options.study)
    nats = items(engine, view.record.id)
    (default,) = (trial.id for trial in view.trials if trial.is_default)
    before, counts = nats[default]
    for trial in view.trials:
        if trial.id not in nats or nats[trial.id].shape != nats[default].shape:
            continue
        own, _ = nats[trial.id]
        low, high = interval(own - before, counts)
        mean, gap = own.sum() / counts.sum(), (own - before).sum() / counts.sum()
        print(f"{trial.name:>8}  {mean:.4f}  {gap:+.4f} [{low:+.4f}, {high:+.4f}]  {dict(trial.shown)}")


if __name__ == "__main__":
    main()
