"""The study that is tortured: a grid, three folds, a few epochs; and what it must come to."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from benchmarks.chaos import learner
from benchmarks.chaos.light import LightPack
from orchestrator import objective, queries, space
from orchestrator.contract import EpochDone, Outcome, TrainUnit, UnitEnded, derive_seed
from orchestrator.database.engine import transaction
from orchestrator.launch import launch
from orchestrator.prepare import prepare
from orchestrator.records import StudyRecord
from orchestrator.study_file import load

NAME = "chaos"
EPOCHS = 3
ROWS = 60
FOLDS = 3
LABELS = ("amber", "birch", "cedar")
TEXT = """
study: {name}
model: {{path: ./model}}
task: classification
data: {{path: rows.jsonl}}
cross_validation: {{folds: {folds}}}
seed: {seed}
training: {{epochs: {epochs}, lora_dropout: 0.1}}
search:
  sampler: grid
  space:
    learning_rate: {rates}
    batch_size: [8, 16, 32]
    lora_rank: [2, 4]
racing: {{rule: none}}
"""


@dataclass(frozen=True)
class Expected:
    """What the undisturbed study comes to."""

    table: Mapping[str, float]  # configuration -> value
    params: Mapping[str, str]  # configuration -> what people would call it


def rates(trials: int) -> list[float]:
    """Learning rates for a grid of about so many points (a multiple of 6)."""
    count = max(1, -(-trials // 6))
    return [float(f"{10 ** (-2.5 + 2.5 * index / count):.4g}") for index in range(count)]


def write(folder: Path, *, trials: int, seed: int, name: str = NAME) -> Path:
    """The study file with its rows and a model folder that has the right files and no content."""
    model = folder / "model"
    model.mkdir(parents=True, exist_ok=True)
    (model / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    (model / "model.safetensors").write_bytes(b"weights")
    lines = "".join(json.dumps(row) + "\n" for row in rows(seed))
    (folder / "rows.jsonl").write_text(lines, encoding="utf-8")
    path = folder / f"{name}.yaml"
    text = TEXT.format(name=name, folds=FOLDS, seed=seed, epochs=EPOCHS, rates=rates(trials))
    path.write_text(text, encoding="utf-8")
    return path


def rows(seed: int) -> list[dict[str, str]]:
    """Texts whose words hint at their label."""
    draw = random.Random(seed)
    words = {label: [f"{label}{number}" for number in range(12)] for label in LABELS}
    noise = [f"word{number}" for number in range(30)]
    found = []
    for number in range(ROWS):
        label = LABELS[number % len(LABELS)]
        text = draw.sample(words[label], 3) + draw.sample(noise, 6) + draw.sample(words[draw.choice(LABELS)], 1)
        found.append({"text": " ".join([*text, f"row{number}"]), "label": label})
    return found


def launched(engine: Engine, path: Path, name: str = NAME) -> StudyRecord:
    """The study in the database."""
    launch(engine, prepare(load(path))[0])
    with transaction(engine) as connection:
        return queries.study(connection, name)


def expected(record: StudyRecord, path: Path) -> Expected:
    """What every planned point must come to: the same engine with the same seeds, and nothing else of the program."""
    lines = (path.parent / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    examples = learner.examples([json.loads(line) for line in lines], record.labels)
    default, _ = space.default_params(record.spec.space)
    values: dict[str, float] = {}
    params: dict[str, str] = {}
    for point in [default, *space.grid(record.spec.space)]:
        configuration = space.configuration_digest(record.settings(point))
        folds = [
            tallies(LightPack(examples), unit_of(record, point, repeat, fold)) for repeat, fold in record.plan.units
        ]
        value = objective.value(record.spec.objective, folds)
        assert value is not None
        values[configuration] = value
        params[configuration] = " ".join(f"{name}={point[name]}" for name in sorted(point))
    return Expected(values, params)


def unit_of(record: StudyRecord, point: Mapping[str, object], repeat: int, fold: int) -> TrainUnit:
    """The order that a supervisor gives for this unit."""
    settings = record.settings(point)
    configuration = space.configuration_digest(settings)
    train, validation = record.plan.split(repeat, fold)
    return TrainUnit(
        study=record.id,
        unit=0,
        lease_epoch=0,
        trial=0,
        repeat=repeat,
        fold=fold,
        seed=derive_seed(record.spec.seed, configuration, fold, repeat),
        settings=settings,
        train=train,
        validation=validation,
    )


def tallies(pack: LightPack, unit: TrainUnit) -> Mapping[str, object]:
    """Train a unit to its end; the tallies of its last epoch."""
    pack.add(unit)
    last: Mapping[str, object] = {}
    while True:
        for event in pack.advance():
            if isinstance(event, EpochDone):
                last = event.tallies
            elif isinstance(event, UnitEnded):
                assert event.outcome == Outcome.DONE, event.reason
                return last
