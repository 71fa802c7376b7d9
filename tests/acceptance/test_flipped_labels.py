"""Labels that were flipped on purpose are found by the program itself, with a real model in real processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import tiny_models
from tests.acceptance.commands import foldtune

STUDY = """
study: flipped
model: {path: ./model}
task: classification
data: {path: rows.jsonl}
cross_validation: {folds: 3}
training: {pooling: mean, target_modules: [query, value], learning_rate: 0.02, epochs: 8}
search: {sampler: grid, space: {batch_size: [8]}}
racing: {rule: none}
baselines: []
"""
WORDS = {
    "tool": ["tool", "sharp", "cutting", "wood", "stone", "small"],
    "feeling": ["feeling", "deep", "joy", "anger", "strong", "lasting"],
    "food": ["bread", "fruit", "baked", "flour", "salt", "sweet"],
}


@pytest.mark.slow  # tests/database/test_suspecting.py and tests/unit/test_suspects.py have the parts
def test_most_of_five_percent_flipped_labels_are_suspects(tmp_path: Path, storage: str) -> None:
    tiny_models.save_bert(tmp_path / "model")
    names = list(WORDS)
    rows, planted = [], set()
    for number in range(120):
        label = names[number % 3]
        own = WORDS[label]
        text = " ".join(own[(number // 3 * step + step) % 6] for step in (1, 2, 3, 5)) + f" {number}"
        if number % 20 == 7:
            planted.add(number + 1)
            label = names[(number + 1) % 3]
        rows.append({"text": text, "label": label})
    tiny_models.write_rows(tmp_path / "rows.jsonl", rows)
    path = tmp_path / "flipped.yaml"
    path.write_text(STUDY, encoding="utf-8")
    done = foldtune("run", str(path), "--workers", "1", OPTUNA_STORAGE=storage, FOLDTUNE_HOME=str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    assert "\nforecast: about " in done.stderr
    shown = foldtune("suspects", "flipped", "--json", OPTUNA_STORAGE=storage)
    assert shown.returncode == 0, shown.stderr
    found = json.loads(shown.stdout)
    assert len(planted) == 6
    assert len(planted & {each["row"] for each in found["suspects"][:8]}) >= 5
    assert all(each["label"] == rows[each["row"] - 1]["label"] for each in found["suspects"])
    table = foldtune("suspects", "flipped", "--n", "2", OPTUNA_STORAGE=storage)
    first = found["suspects"][0]
    assert f"flipped: {found['count']} of 120 rows are suspect" in table.stdout
    assert first["text"] in table.stdout
    assert f"{first['label']} {first['probability']:.0%}" in table.stdout
