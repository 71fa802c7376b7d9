"""Folds that stop early, and DoRA beside LoRA, with the real program in real processes."""

from __future__ import annotations

import json
from pathlib import Path

from sqlalchemy import Engine

from tests import tiny_models
from tests.acceptance.commands import foldtune
from tests.database.studies import rows

STUDY = """
study: stops
model: {path: ./model}
task: classification
data: {path: rows.jsonl}
cross_validation: {folds: 2}
training: {epochs: 9, stopping_share: 0.25, learning_rate: 0.2, lr_schedule: constant, lora_rank: 4}
search: {sampler: grid, space: {patience: [0, 1], method: [lora, dora]}}
racing: {rule: none}
baselines: []
"""


def test_a_study_whose_folds_stop_early_goes_from_a_file_to_a_winner(
    tmp_path: Path, storage: str, engine: Engine
) -> None:
    tiny_models.save_bert(tmp_path / "model")
    tiny_models.write_rows(tmp_path / "rows.jsonl", tiny_models.uneven_rows(48))
    path = tmp_path / "stops.yaml"
    path.write_text(STUDY, encoding="utf-8")
    done = foldtune("run", str(path), "--workers", "1", "--json", OPTUNA_STORAGE=storage)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert rows(engine, "SELECT DISTINCT state::text FROM trial") == [("complete",)]
    ended = rows(
        engine,
        "SELECT t.settings->>'patience', u.epoch, count(r.epoch), count(r.logits), max(u.attempts), "
        "max(a.epoch) FILTER (WHERE a.kind = 'adapter') FROM trial t JOIN unit u ON u.trial = t.id "
        "JOIN result r ON r.unit = u.id LEFT JOIN artifact a ON a.unit = u.id AND NOT a.doomed "
        "GROUP BY t.id, u.id, u.epoch",
    )
    plain = [row[1:] for row in ended if row[0] == "0"]
    stopped = [row[1:] for row in ended if row[0] == "1"]
    assert (len(plain), len(stopped)) == (4, 4)  # the default configuration is a point of the grid
    assert all((epoch, epochs, logits) == (None, 9, 1) for epoch, epochs, logits, *_ in plain)
    assert all(epoch < epochs == logits for epoch, epochs, logits, *_ in stopped if epochs < 9)
    assert any(epochs < 9 for _, epochs, *_ in stopped)
    assert {row[-2] for row in ended} == {1}
    kept = [(row[2], row[-1]) for row in ended if row[-1] is not None]
    assert kept
    assert all(epochs == written for epochs, written in kept)  # the last epoch's file, with the weights that count
    best = json.loads(done.stdout)
    assert {fold["epoch"] for fold in best["folds"]} <= set(range(1, 10))
