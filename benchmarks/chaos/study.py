"""The study that is tortured: a grid, three folds, a few epochs; and what it must come to."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from benchmarks.chaos import learner
from benchmarks.chaos.learner import Examples
from benchmarks.chaos.light import LightPack
from orchestrator import objective, space
from orchestrator.contract import EpochDone, Outcome, Settings, TrainUnit, UnitEnded, derive_seed
from orchestrator.folds import FoldPlan
from orchestrator.launch import launch
from orchestrator.prepare import prepare
from orchestrator.spec import StudySpec
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
baselines: []
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


@dataclass(frozen=True)
class Plan:
    """The study as its file says it, without any database."""

    spec: StudySpec
    folds: FoldPlan
    examples: Examples
    pooling: str

    def settings(self, point: Mapping[str, Any]) -> Settings:
        """Every hyperparameter of a point."""
        return space.settings(self.spec.training, point, pooling=self.pooling)

    def points(self, *, default: bool) -> list[dict[str, Any]]:
        """The grid, after the default configuration if that is wanted."""
        first = [space.default_params(self.spec.space)[0]] if default else []
        return [dict(point) for point in (*first, *space.grid(self.spec.space))]

    def loss(self, point: Mapping[str, Any], train: Callable[[TrainUnit], Mapping[str, Any]]) -> float:
        """The value of a point, all its folds trained by `train`, which gives the tallies of a unit."""
        folds = [train(self._unit(point, *unit)) for unit in self.folds.units]
        value = objective.value(self.spec.objective, folds)
        assert value is not None
        return value

    def _unit(self, point: Mapping[str, Any], repeat: int, fold: int) -> TrainUnit:
        """The order that a supervisor gives for this unit."""
        settings = self.settings(point)
        configuration = space.configuration_digest(settings)
        train, validation = self.folds.split(repeat, fold)
        return TrainUnit(
            study=1,
            unit=fold,
            lease_epoch=1,
            trial=1,
            repeat=repeat,
            fold=fold,
            seed=derive_seed(self.spec.seed, configuration, fold, repeat),
            settings=settings,
            train=train,
            validation=validation,
        )


def planned(path: Path) -> Plan:
    """The plan of a study file."""
    prepared = prepare(load(path))[0]
    lines = prepared.snapshot.content.decode().splitlines()
    examples = learner.examples([json.loads(line) for line in lines], prepared.snapshot.classes)
    return Plan(prepared.loaded.spec, prepared.plan, examples, prepared.model.pooling)


def launched(engine: Engine, path: Path) -> None:
    """The study in the database."""
    launch(engine, prepare(load(path))[0])


def expected(plan: Plan) -> dict[str, float]:
    """configuration -> the value it must come to: the same engine with the same seeds, and nothing of the program."""
    return {
        space.configuration_digest(plan.settings(point)): plan.loss(
            point, lambda unit: tallies(LightPack(plan.examples), unit)
        )
        for point in plan.points(default=True)
    }


def tallies(pack: LightPack, unit: TrainUnit) -> Mapping[str, Any]:
    """Train a unit to its end; the tallies of its last epoch."""
    pack.add(unit)
    last: Mapping[str, Any] = {}
    while True:
        for event in pack.advance():
            if isinstance(event, EpochDone):
                last = event.tallies
            elif isinstance(event, UnitEnded):
                assert event.outcome == Outcome.DONE, event.reason
                return last
