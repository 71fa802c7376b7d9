"""A study that has rows written and a pool labelled, with the real program in real processes."""

from __future__ import annotations

import json
from pathlib import Path

from sqlalchemy import Engine

from tests import tiny_models
from tests.acceptance.commands import foldtune
from tests.database.studies import rows

STUDY = """
study: made
model: {path: ./model}
task: classification
data: {path: rows.jsonl, pool: pool.jsonl}
augmentation:
  paraphraser: {path: ./t5, max_new_tokens: 6}
  generator: {path: ./llama, max_new_tokens: 6, prompt: "$label\\n$examples"}
cross_validation: {folds: 2}
training: {target_modules: [query, value], epochs: 2, paraphrases: 1, synthetic: 2, pseudo_threshold: 0.1}
search: {sampler: grid, space: {pseudo_rounds: [0, 1], char_noise: [0, 0.1]}}
racing: {rule: none}
baselines: []
"""


def test_every_way_to_more_rows_goes_from_a_file_to_a_winner(tmp_path: Path, storage: str, engine: Engine) -> None:
    for name, kind in (("model", "bert"), ("t5", "t5"), ("llama", "llama")):
        getattr(tiny_models, f"save_{kind}")(tmp_path / name)
    tiny_models.write_rows(tmp_path / "rows.jsonl", tiny_models.classification_rows(24))
    pool = [{"text": row["text"] + " and wood"} for row in tiny_models.classification_rows(9)]
    tiny_models.write_rows(tmp_path / "pool.jsonl", pool)
    path = tmp_path / "made.yaml"
    path.write_text(STUDY, encoding="utf-8")
    home = tmp_path / "home"
    done = foldtune("run", str(path), "--workers", "1", OPTUNA_STORAGE=storage, FOLDTUNE_HOME=str(home))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    # the default configuration is a point of the grid
    assert rows(engine, "SELECT state::text, count(*) FROM trial GROUP BY 1") == [("complete", 4)]
    assert rows(engine, "SELECT max(attempts) FROM unit") == [(1,)]
    folder = home / "cache" / "augmentation"
    # each row of 24 is in one training fold; 2 rows of each of 3 classes in each fold; 3 models for each of 4 units
    assert len(list((folder / "texts").iterdir())) == 24 + 2 * 3 * 2
    assert len(list((folder / "stages").iterdir())) == 2 * 2 * 3
    assert set(json.loads(next((folder / "texts").iterdir()).read_text())) == {"text"}
