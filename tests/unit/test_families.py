"""A model of the hub is held against its task at launch, when its configuration has come."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator import prepare, study_file
from orchestrator.errors import BadInput
from tests.unit import study_text

BERT = {"model_type": "bert", "architectures": ["BertForMaskedLM"], "max_position_embeddings": 512}


@pytest.mark.parametrize("task", ["classification", "causal_lm"])
def test_a_model_of_the_hub_and_of_the_wrong_family_is_refused_at_launch(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    class Hub:
        def model_info(self, name: str, revision: str | None) -> Any:
            return type("Info", (), {"sha": "c0ffee"})

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path / "model"))
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    files = {"model/config.json": json.dumps(BERT)}
    text = study_text.study(model="org/name", task=task, data="{path: rows.jsonl, text: text}")
    loaded = study_file.load(study_text.folder(tmp_path, text, {**files}))
    assert prepare.check(loaded).cautions == []
    if task == "classification":
        assert prepare.prepare(loaded)[0].model.pin == "c0ffee"
        return
    with pytest.raises(BadInput, match=r"model 'org/name': task causal_lm needs a model .* got an encoder"):
        prepare.prepare(loaded)
