"""The study whose trials are simulated: real rows, real folds, a model folder without weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from orchestrator.launch import launch
from orchestrator.prepare import prepare
from orchestrator.study_file import load

FOLDS = 5
EPOCHS = 2
ROWS = 240
MINUTE = 60.0  # device seconds of a trial
# How many units an average trial trains: all its folds, or under racing hardly more than the first.
UNITS: Mapping[str, int] = {"none": FOLDS, "forgiving": 1}

STUDY = """
study: {name}
model: {{path: ./model}}
task: classification
data: {{path: rows.jsonl}}
cross_validation: {{folds: 5}}
baselines: []
training: {{epochs: 2}}
search:
  sampler: {sampler}
  space:
{space}
{racing}
{budget}
"""
SEARCHED = """
    learning_rate: {low: 1e-5, high: 1e-1, log: true}
    batch_size: [8, 16, 32]
    lora_rank: [4, 8, 16]
    lora_dropout: {low: 0.0, high: 0.5}
"""
POINTS = """
    learning_rate: [1e-4, 1e-3]
    batch_size: [8, 16, 32]
    lora_rank: [4, 8, 16]
    lora_dropout: [0.0, 0.1]
"""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of study."""

    sampler: str
    racing: str = "none"
    hours: bool = False  # with a budget of device hours, which nothing comes near

    @property
    def name(self) -> str:
        """As it stands in the figures."""
        parts = [self.sampler, *([self.racing] if self.racing != "none" else []), *(["hours"] if self.hours else [])]
        return "_".join(parts)

    @property
    def unit_seconds(self) -> float:
        """So that an average trial takes a minute."""
        return MINUTE / UNITS[self.racing]


def begin(engine: Engine, folder: Path, kind: Kind, trials: int) -> None:
    """Launch it, with a budget of so many trials (a grid has its own)."""
    model = folder / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    (model / "model.safetensors").write_bytes(b"weights")
    rows = [{"text": f"text {index}", "label": "ab"[index % 2]} for index in range(ROWS)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    grid = kind.sampler == "grid"
    limits = ([] if grid else [f"trials: {trials}"]) + (["hours: 100000"] if kind.hours else [])
    text = STUDY.format(
        name=kind.name,
        sampler=kind.sampler,
        space=(POINTS if grid else SEARCHED).strip("\n"),
        racing=f"racing: {{rule: {kind.racing}}}",
        budget=f"budget: {{{', '.join(limits)}}}" if limits else "",
    )
    path = folder / f"{kind.name}.yaml"
    path.write_text(text, encoding="utf-8")
    launch(engine, prepare(load(path))[0])
