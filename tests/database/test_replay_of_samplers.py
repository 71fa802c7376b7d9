"""The replay of recorded runs hands out folds and closes trials as the product does with the same numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from benchmarks.sampler_replay import simulate, synthetic
from benchmarks.sampler_replay.simulate import Form
from benchmarks.sampler_replay.table import Table
from orchestrator import trials
from orchestrator.contract import EpochDone, Outcome, Predictions, pack_floats
from orchestrator.launch import launch
from orchestrator.leases import Fenced
from orchestrator.records import Lease
from tests.database import studies

STUDY = """
study: s
model: {{path: ./model}}
task: classification
data: {{path: rows.jsonl}}
cross_validation: {{folds: 5}}
baselines: []
seed: {seed}
search:
  sampler: {sampler}
  space:
    learning_rate: [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2]
    batch_size: [8, 32]
    epochs: [1, 2, 3]
racing: {racing}
budget: {{trials: 10}}
"""
SEARCHED = ("learning_rate", "batch_size", "epochs")
Order = list[tuple[int, tuple[int, int]]]  # (configuration, (repeat, fold)) as they were handed out


@pytest.mark.parametrize(
    ("sampler", "rule", "hopeless", "slots"),
    [
        ("tpe", "none", False, 1),
        ("tpe", "paired", True, 4),
        ("random", "paired", True, 7),
        ("tpe", "forgiving", True, 3),
    ],
)
def test_a_replay_does_what_the_product_does(
    sampler: str, rule: str, hopeless: bool, slots: int, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studies.write(tmp_path, texts=60)
    racing = "{rule: none}" if rule == "none" else f"{{rule: {rule}, hopeless: {str(hopeless).lower()}}}"
    path = tmp_path / "s.yaml"
    path.write_text(STUDY.format(seed=1, sampler=sampler, racing=racing), encoding="utf-8")
    prepared = studies.prepared(path)
    table = classified(replace(synthetic.table(1, noise=0.9), plan=prepared.plan))
    launch(engine, prepared)
    ordered = work(engine, table, slots)
    handed_out: Order = []
    take = simulate._Replay._take

    def watched(replay: Any) -> Any:
        taken = take(replay)
        if taken is not None:
            handed_out.append((taken[0].configuration, taken[1]))
        return taken

    monkeypatch.setattr(simulate._Replay, "_take", watched)
    form = Form(sampler=sampler, rule=rule, hopeless=hopeless, slots=slots, trials=10)
    replayed = simulate.simulate(table, form, 1)
    assert handed_out == ordered
    rows = studies.rows(engine, "SELECT state::text, value FROM trial ORDER BY id")
    assert [(trial.state, trial.value) for trial in replayed.trials] == rows


def classified(table: Table) -> Table:
    """The table with all tallies that a classifier reports."""
    more = {"tp": [1, 1], "fp": [0, 0], "fn": [0, 0], "bins": [[0, 0.0, 0]] * 15}
    return replace(
        table,
        runs=tuple(
            {
                place: replace(unit, tallies=tuple({**tallies, **more} for tallies in unit.tallies))
                for place, unit in run.items()
            }
            for run in table.runs
        ),
    )


def work(engine: Engine, table: Table, slots: int) -> Order:
    """One worker that trains an epoch of each of its units at every tick, until nothing is left."""
    worker, order = studies.worker(engine), []
    numbers = {tuple(one.params[name] for name in SEARCHED): i for i, one in enumerate(table.configurations)}
    busy: dict[int, tuple[Lease, int]] = {}  # slot -> unit, epochs done
    while True:
        for slot in sorted(set(range(slots)) - busy.keys()):
            taken = trials.take(engine, worker, ["s"])
            if taken is None:
                break
            lease = taken[1]
            busy[slot] = lease, 0
            order.append((number(numbers, lease), (lease.repeat, lease.fold)))
        if not busy:
            return order
        for slot, (lease, done) in sorted(busy.items()):
            busy[slot] = lease, done + 1
            if epoch(engine, table.unit(number(numbers, lease), (lease.repeat, lease.fold)), lease, done + 1):
                del busy[slot]
        for slot, (lease, _) in list(busy.items()):
            if studies.rows(engine, f"SELECT state::text FROM unit WHERE id = {lease.unit}") != [("leased",)]:
                del busy[slot]


def number(numbers: dict[tuple[Any, ...], int], lease: Lease) -> int:
    return numbers[tuple(getattr(lease.settings, name) for name in SEARCHED)]


def epoch(engine: Engine, unit: Any, lease: Lease, number: int) -> bool:
    """Report one epoch as it was recorded; whether the unit has ended."""
    try:
        if number > len(unit.tallies):
            trials.finish(engine, "s", lease, studies.end(lease, Outcome.DIVERGED, "as recorded"))
            return True
        nats = unit.nats[number - 1]
        said = Predictions(nats=pack_floats(nats), counts=pack_floats([1.0] * len(nats)))
        done = EpochDone(
            unit=lease.unit,
            lease_epoch=lease.epoch,
            epoch=number,
            train_loss=1.0,
            seconds=1.0,
            tallies=unit.tallies[number - 1],
            predictions=said,
        )
        trials.report(engine, lease, [done])
        if number == lease.settings.epochs:
            trials.finish(engine, "s", lease, studies.end(lease))
            return True
    except Fenced:
        return True
    return False
