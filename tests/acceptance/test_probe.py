"""`check --probe` loads the model in a trainer of its own, measures, and says in one message what cannot be trained."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from orchestrator import sizes
from tests import tiny_models
from tests.acceptance.commands import ROOT, foldtune
from tests.unit.study_text import folder, jsonl, study

SCHEMA = json.loads((ROOT / "docs" / "schemas" / "check.schema.json").read_text(encoding="utf-8"))
SEARCH = "{sampler: grid, space: {batch_size: [4, 16], lora_rank: [2, 8], epochs: [1, 2]}}"


def prepared(where: Path, kind: str, rows: list[dict[str, str]], **sections: str) -> Path:
    path = folder(where, study(search=SEARCH, **sections), {"rows.jsonl": jsonl(rows)})
    getattr(tiny_models, f"save_{kind}")(where / "model")
    return path


def test_a_probe_measures_the_largest_batch_and_rank_and_touches_no_database(tmp_path: Path) -> None:
    path = prepared(tmp_path, "bert", tiny_models.classification_rows(60))
    done = foldtune("check", str(path), "--probe", "--json", FOLDTUNE_HOME=str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    jsonschema.Draft202012Validator(SCHEMA).validate(report)
    [measured], expected = report["probes"], report["forecast"]
    assert (measured["device"], measured["slots"]) == ("cpu", 1)
    assert (measured["step_rows"], measured["lora_rank"]) == (16, 16)  # the default configuration's rank counts too
    assert measured["row_seconds"] > 0
    assert 2**28 < measured["peak_bytes"] < 2**33
    assert expected["basis"] == "probe"
    assert expected["memory_bytes"] == measured["peak_bytes"]
    assert 0 < expected["trial_seconds"]["low"] < expected["trial_seconds"]["high"] < expected["seconds"]["high"]
    assert not (tmp_path / "home").exists()


def test_without_a_probe_check_json_has_its_schema_too(tmp_path: Path) -> None:
    path = prepared(tmp_path, "bert", [*tiny_models.classification_rows(20), {"text": "x", "label": "food"}])
    report = json.loads(foldtune("check", str(path), "--json").stdout)
    jsonschema.Draft202012Validator(SCHEMA).validate(report)
    assert report["probes"] is None
    assert report["forecast"]["basis"] == "formula"
    assert sizes.model_size(tmp_path / "model") == sizes.ModelSize(
        layers=2 * (4 * 16 * 16 + 2 * 16 * 32) + 16 * 16,
        embeddings=16 * (tiny_models.word_tokenizer().vocab_size + 64 + 2),
        bytes=(tmp_path / "model" / "model.safetensors").stat().st_size,
        count=2,
        hidden=16,
    )


CHATS = [{"messages": [{"role": "user", "content": str(n)}, {"role": "assistant", "content": "a"}]} for n in range(20)]


@pytest.mark.parametrize(
    ("kind", "rows", "sections", "expected"),
    [
        (
            "bert",
            tiny_models.classification_rows(24),
            {"training": "{target_modules: [q_proj]}"},
            "target_modules: BertForSequenceClassification has no layer named 'q_proj'",
        ),
        pytest.param(
            "gpt2",
            CHATS,
            {"task": "causal_lm", "data": "{path: rows.jsonl, messages: messages}"},
            "row 0: messages need a chat template, and this tokenizer has none",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_cannot_be_trained_is_one_message(
    kind: str, rows: list[dict[str, str]], sections: dict[str, str], expected: str, tmp_path: Path
) -> None:
    done = foldtune("check", str(prepared(tmp_path, kind, rows, **sections)), "--probe")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: model './model' cannot be trained as this study says: ")
    assert expected in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow  # the message is that of what cannot be trained, above
def test_a_model_of_an_unknown_wrong_family_surfaces(tmp_path: Path) -> None:
    """Its config.json names no architecture, so that only loading it tells."""
    path = prepared(
        tmp_path, "bert", [{"text": f"wood {n}"} for n in range(20)], task="causal_lm", data="{path: rows.jsonl}"
    )
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "architectures"}))
    assert foldtune("check", str(path)).returncode == 0
    done = foldtune("check", str(path), "--probe")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "cannot be trained as this study says" in done.stderr


def test_a_trainer_that_is_killed_is_told_of(tmp_path: Path) -> None:
    path = prepared(tmp_path, "bert", tiny_models.classification_rows(24))
    engine = "tests.acceptance.killed_engine"
    done = foldtune("check", str(path), "--probe", FOLDTUNE_ENGINE=engine)
    assert done.returncode == 2
    assert "the trainer was killed by SIGKILL\nhelp: the kernel does that where memory runs out" in done.stderr


def test_no_storage_reaches_the_probe(tmp_path: Path) -> None:
    path = prepared(tmp_path, "bert", tiny_models.classification_rows(24))
    storage = {"OPTUNA_STORAGE": "postgresql://u:hunter2@h/d", "PGPASSWORD": "hunter2"}
    done = foldtune("check", str(path), "--probe", FOLDTUNE_ENGINE="tests.acceptance.curious_engine", **storage)
    assert done.returncode == 2
    assert done.stderr.endswith("cannot be trained as this study says: it sees []\n")
