"""A study without a model: what the database tests launch, and a stand-in for training that reports real tallies."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, text

from orchestrator import trials, workers
from orchestrator.contract import EpochDone, Outcome, Predictions, UnitEnded, pack_floats
from orchestrator.devices import Device
from orchestrator.launch import Launched, launch
from orchestrator.prepare import Prepared, prepare
from orchestrator.records import Lease, StudyRecord
from orchestrator.study_file import load

STUDY = """
study: {name}
model: {{path: ./model}}
task: classification
data: {{path: rows.jsonl}}
cross_validation: {{folds: {folds}}}
baselines: [{baselines}]
search:
  sampler: {sampler}
  space:
    learning_rate: {rates}
    batch_size: [4, 8]
{also}budget: {budget}
{more}
"""
GRID = "[1e-3, 1e-2]"
RANGE = "{low: 1e-5, high: 1e-1, log: true}"


def write(
    folder: Path,
    *,
    name: str = "s",
    sampler: str = "grid",
    rates: str = GRID,
    folds: int = 2,
    budget: str = "{}",
    texts: int = 12,
    also: str = "",
    more: str = "",
    baselines: str = "",
) -> Path:
    """A study file with its data and a model folder that has the right files and no content.

    also: a further line of the search space. more: further keys; without `racing` among them all trials get all folds.
    """
    model = folder / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    (model / "model.safetensors").write_bytes(b"weights")
    rows = [{"text": f"text {index}", "label": "ab"[index % 2]} for index in range(texts)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    path = folder / f"{name}.yaml"
    also = also and f"    {also}\n"
    text = STUDY.format(
        name=name, sampler=sampler, rates=rates, folds=folds, budget=budget, also=also, more=more, baselines=baselines
    )
    if "racing:" not in more:
        text += "racing: {rule: none}\n"
    path.write_text(text, encoding="utf-8")
    return path


def prepared(path: Path) -> Prepared:
    """What `launch` will write."""
    return prepare(load(path))[0]


def launched(engine: Engine, folder: Path, **options: Any) -> Launched:
    """A launched study."""
    return launch(engine, prepared(write(folder, **options)))


def worker(engine: Engine) -> int:
    """A registered worker."""
    return workers.register(engine, [Device("cpu")])[0]


def epoch_done(lease: Lease, *, epoch: int, loss: float = 0.5, items: int = 6, seconds: float = 1.0) -> EpochDone:
    """One epoch's report; `loss` is the mean over its items."""
    tallies = {
        "nats": loss * items,
        "items": items,
        "correct": items // 2,
        "tp": [2, 1],
        "fp": [2, 1],
        "fn": [1, 2],
        "bins": [[0, 0.0, 0]] * 14 + [[items, 0.9 * items, items // 2]],
    }
    return EpochDone(
        unit=lease.unit,
        lease_epoch=lease.epoch,
        epoch=epoch,
        train_loss=loss,
        seconds=seconds,
        tallies=tallies,
        predictions=Predictions(nats=pack_floats([loss] * items), counts=pack_floats([1.0] * items)),
    )


def all_up_to(done: EpochDone) -> list[EpochDone]:
    """The same report of every epoch up to this one."""
    return [replace(done, epoch=epoch) for epoch in range(1, done.epoch + 1)]


def end(lease: Lease, outcome: Outcome = Outcome.DONE, reason: str = "") -> UnitEnded:
    """The end of a unit."""
    return UnitEnded(unit=lease.unit, lease_epoch=lease.epoch, outcome=outcome, reason=reason)


def loss_of(lease: Lease) -> float:
    """A loss that depends on the configuration and the fold alone."""
    return abs(lease.settings.learning_rate - 5e-3) * 10 + lease.settings.batch_size / 100 + lease.fold / 1000


def train(engine: Engine, record: StudyRecord, lease: Lease, *, seconds: float = 1.0) -> None:
    """Report every epoch and finish."""
    for epoch in range(1, lease.settings.epochs + 1):
        trials.report(engine, lease, [epoch_done(lease, epoch=epoch, loss=loss_of(lease) / epoch, seconds=seconds)])
    trials.finish(engine, record.name, lease, end(lease))


def train_all(engine: Engine, who: int, name: str) -> list[Lease]:
    """Take and train until nothing is left; the leases in order."""
    done = []
    while (taken := trials.take(engine, who, [name])) is not None:
        record, lease = taken
        train(engine, record, lease)
        done.append(lease)
    return done


def rows(engine: Engine, query: str) -> list[tuple[Any, ...]]:
    """What the database says."""
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


def expire(engine: Engine, lease: Lease) -> None:
    """Let the lease run out now."""
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE unit SET expires_at = now() - interval '1 s' WHERE id = :id"), {"id": lease.unit}
        )


def expire_all(engine: Engine) -> None:
    """Let every lease run out now."""
    with engine.begin() as connection:
        connection.execute(text("UPDATE unit SET expires_at = now() - interval '1 s' WHERE state = 'leased'"))
