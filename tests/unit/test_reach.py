"""A `max_length` beyond the model is told before anything is spent, from the model's JSON files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator import prepare, reach, study_file
from tests.unit import study_text

BERT = {"model_type": "bert", "max_position_embeddings": 64}
ROBERTA = {"model_type": "roberta", "max_position_embeddings": 514}


@pytest.mark.parametrize(
    ("config", "tokenizer", "tokens"),
    [
        (BERT, {}, 64),
        (BERT, {"model_max_length": 32}, 32),
        (BERT, {"model_max_length": 1e30}, 64),
        (BERT, {"model_max_length": None}, 64),
        (ROBERTA, {}, 512),
        ({**ROBERTA, "pad_token_id": 3}, {}, 510),
        ({"model_type": "gpt2", "n_positions": 1024}, {}, 1024),
        ({"model_type": "t5", "n_positions": 512}, {}, None),
        ({"model_type": "gemma3", "text_config": {"max_position_embeddings": 99}}, {}, 99),
        ({"max_position_embeddings": "many"}, {"model_max_length": "more"}, None),
        ({}, {"model_max_length": float("inf")}, None),
    ],
)
def test_the_reach_is_what_the_files_say(
    tmp_path: Path, config: dict[str, Any], tokenizer: dict[str, Any], tokens: int | None
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    assert reach.tokens(tmp_path) == tokens


def test_only_a_max_length_beyond_the_model_is_warned_about(tmp_path: Path) -> None:
    def cautions(length: int, **sections: str) -> list[str]:
        text = study_text.study(training=f"{{max_length: {length}}}", **sections)
        loaded = study_file.load(study_text.folder(tmp_path, text, {"model/config.json": json.dumps(BERT)}))
        checked, launched = prepare.check(loaded).cautions, prepare.prepare(loaded)[1]
        assert checked == launched
        return launched

    assert cautions(64) == []
    assert cautions(65) == [
        "max_length must be at most 64 for './model' if any row is longer than that, got 65: one such row fails every "
        "unit; write `training: {max_length: 64}` to have rows cut there"
    ]


def test_a_model_of_the_hub_is_asked_at_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def downloaded(name: str, *, revision: str, allow_patterns: list[str] | None = None, **_: Any) -> str:
        assert (name, revision) == ("org/name", "c0ffee")
        assert "*.safetensors" not in (allow_patterns or ())
        return str(tmp_path / "model")

    class Hub:
        def model_info(self, name: str, revision: str | None) -> Any:
            return type("Info", (), {"sha": "c0ffee"})

    monkeypatch.setattr(huggingface_hub, "snapshot_download", downloaded)
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    text = study_text.study(model="org/name", training="{max_length: 65}")
    loaded = study_file.load(study_text.folder(tmp_path, text, {"model/config.json": json.dumps(BERT)}))
    assert prepare.check(loaded).cautions == []
    (line,) = prepare.prepare(loaded)[1]
    assert "at most 64 for 'org/name'" in line
