"""What an artifact store may be, which adapters stay, how large a checkpoint is: all without a database."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import document, prepare, retention, sizes, space, stores, study_file
from orchestrator.errors import BadInput
from orchestrator.records import TrialRecord
from orchestrator.spec import Artifacts
from tests.unit import study_text


def trial(id: int, value: float | None = None, **more: Any) -> TrialRecord:
    values: dict[str, Any] = {
        "id": id,
        "number": id,
        "searched": True,
        "is_default": False,
        "in_space": True,
        "origin": "model",
        "params": {},
        "settings": space.settings({}, {}),
        "state": "failed" if value is None else "complete",
        "value": value,
        "reason": "",
        "duplicate_of": None,
        "run": None,
        "epoch": None,
        "generation": 0,
        "told": True,
    }
    return TrialRecord(**{**values, **more})


TRIALS = [trial(1, 0.5, is_default=True), trial(2, 0.3), trial(3, 0.1), trial(4, 0.1, duplicate_of=3, run=3), trial(5)]


@pytest.mark.parametrize(
    ("keep", "maximize", "kept"),
    [
        (0, False, {1}),
        (1, False, {1, 3}),
        (2, False, {1, 2, 3}),
        (9, False, {1, 2, 3}),
        (1, True, {1}),
        (2, True, {1, 2}),
    ],
)
def test_the_best_and_the_default_stay(keep: int, maximize: bool, kept: set[int]) -> None:
    assert retention.kept(TRIALS, keep=keep, maximize=maximize) == kept


def test_of_equals_the_earlier_stays() -> None:
    assert retention.kept([trial(2, 0.1), trial(1, 0.1)], keep=1, maximize=True) == {1}


@given(values=st.lists(st.floats(-1, 1) | st.none()), keep=st.integers(0, 5), maximize=st.booleans())
def test_nobody_who_goes_is_better_than_one_who_stays(values: list[float | None], keep: int, maximize: bool) -> None:
    trials = [trial(index, value) for index, value in enumerate(values)]
    kept = retention.kept(trials, keep=keep, maximize=maximize)
    stay = [value for index, value in enumerate(values) if value is not None and index in kept]
    go = [value for index, value in enumerate(values) if value is not None and index not in kept]
    assert len(kept) == len(stay) == min(keep, len(stay) + len(go))
    if stay and go:
        assert min(stay) >= max(go) if maximize else max(stay) <= min(go)


def loaded(folder: Path, artifacts: str | None = None, **sections: str) -> study_file.LoadedStudy:
    return study_file.load(study_text.folder(folder, study_text.study(artifacts=artifacts, **sections)))


def test_the_default_is_the_database_and_three_trials(tmp_path: Path) -> None:
    assert loaded(tmp_path).spec.artifacts == Artifacts(store="database", keep=3)


def test_the_key_is_no_part_of_the_digest_and_shows_where_it_comes_from(tmp_path: Path) -> None:
    plain = loaded(tmp_path)
    other = loaded(tmp_path, "{store: s3://bucket/x, keep: 0}")
    assert plain.spec.digest() == other.spec.digest()
    assert other.origins["artifacts.keep"] == "line 7"
    assert plain.origins["artifacts.store"] == "default"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{keep: -1}", r"'artifacts\.keep' must be .* — got -1"),
        ("{keep: 1.5}", r"'artifacts\.keep' must be a whole number"),
        ("{store: ''}", r"'artifacts\.store' must have at least 1 character"),
        ("{stor: database}", r"unknown key 'artifacts\.stor'"),
        ("database", r"'artifacts' must be a map of keys"),
    ],
)
def test_a_wrong_value_is_refused_at_its_place(text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message) as raised:
        study_file.resolve(document.parse(study_text.study(artifacts=text), "study.yaml"), Path())
    assert raised.value.problems[0].line == 7


@pytest.mark.parametrize(
    ("store", "wrong"),
    [
        ("./none", "no such folder"),
        ("rows.jsonl", "is a file, expected a folder"),
        ("file:///nowhere/at/all", "no such folder /nowhere/at/all"),
        ("nothing://bucket", "cannot be used: Protocol not known: nothing"),
        ("${WORD}", "credentials do not belong in a study file"),
    ],
)
def test_a_store_that_cannot_be_used_is_found_by_check(
    tmp_path: Path, store: str, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORD", "s3://me:secret@bucket/x")
    study = loaded(tmp_path, f"{{store: '{store}'}}")
    with pytest.raises(BadInput, match=wrong) as raised:
        prepare.check(study)
    (problem,) = raised.value.problems
    assert (problem.code, problem.line) == ("store", 7)
    assert "secret" not in str(raised.value)


def test_a_store_that_does_not_answer_is_found_at_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("403 forbidden")

    study = loaded(tmp_path, "{store: 'memory://here'}")
    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.pipe_file", refuse)
    prepare.check(study)
    with pytest.raises(BadInput, match="memory://here cannot be used: RuntimeError: 403 forbidden"):
        prepare.prepare(study)


def test_a_driver_that_is_not_installed_is_named(tmp_path: Path) -> None:
    fsspec.register_implementation("undriven", "no_such_module.Drive", clobber=True, errtxt="Install no_such_module")
    with pytest.raises(BadInput, match="undriven://host/x cannot be used: Install no_such_module"):
        prepare.check(loaded(tmp_path, "{store: 'undriven://host/x'}"))


@pytest.mark.parametrize("store", ["./shared", "memory://bucket", "file://{folder}/shared", "local://{folder}/shared"])
def test_probing_leaves_nothing_behind(tmp_path: Path, store: str) -> None:
    (tmp_path / "shared").mkdir()
    prepare.prepare(loaded(tmp_path, f"{{store: '{store.format(folder=tmp_path)}'}}"))
    assert list((tmp_path / "shared").iterdir()) == []
    assert stores.inside("memory://bucket", "").entries() == []


def test_a_folder_is_resolved_against_the_study_file(tmp_path: Path) -> None:
    assert stores.resolved("../x", tmp_path) == str(tmp_path.parent / "x")
    assert stores.resolved("/x", tmp_path) == "/x"
    assert stores.resolved("s3://bucket/x", tmp_path) == "s3://bucket/x"
    assert stores.resolved("database", tmp_path) == "database"


def test_a_message_shows_no_credentials() -> None:
    assert stores.shown("sftp://me:secret@host/x@y") == "sftp://host/x@y"
    assert stores.shown("/shared/a@b") == "/shared/a@b"


def model(shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    header = {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    return len(text).to_bytes(8, "little") + text


LAYERS = {
    "embeddings.word_embeddings.weight": (30000, 64),
    "encoder.0.query.weight": (64, 64),
    "encoder.0.dense.weight": (256, 64),
    "encoder.0.norm.weight": (64,),
    "encoder.0.dense.bias": (256,),
}


@pytest.mark.parametrize(
    ("sections", "weights"),
    [
        ({}, 16 * (128 + 320) + 64 * 64),
        ({"training": "{lora_rank: 4}"}, 4 * (128 + 320) + 64 * 64),
        ({"training": "{target_modules: [query]}"}, 16 * 128 + 64 * 64),
        ({"search": "{space: {lora_rank: [4, 32]}}"}, 32 * (128 + 320) + 64 * 64),
        ({"search": "{space: {r: {low: 1, high: 8}}}"}, 16 * (128 + 320) + 64 * 64),  # the default configuration's
        ({"task": "causal_lm"}, 16 * (128 + 320)),
    ],
)
def test_the_size_of_a_checkpoint_is_that_of_the_largest_rank(
    tmp_path: Path, sections: dict[str, str], weights: int
) -> None:
    study = loaded(tmp_path, **sections)
    (tmp_path / "model/model.safetensors").write_bytes(model(LAYERS))
    assert sizes.resume_state(study.spec, study.folder) == weights * 3 * 4


@pytest.mark.parametrize("content", [b"", b"weights", b"\xff" * 40, (2).to_bytes(8, "little") + b"[]", model({})])
def test_a_size_that_cannot_be_told_is_not_guessed(tmp_path: Path, content: bytes) -> None:
    study = loaded(tmp_path)
    (tmp_path / "model/model.safetensors").write_bytes(content)
    assert sizes.resume_state(study.spec, study.folder) is None


@pytest.mark.parametrize("text", ["model: org/name", "training: {target_modules: auto}"])
def test_what_only_the_hub_or_peft_knows_has_no_size(tmp_path: Path, text: str) -> None:
    key, _, value = text.partition(": ")
    study = loaded(tmp_path, **{key: value})
    (tmp_path / "model/model.safetensors").write_bytes(model(LAYERS))
    assert sizes.resume_state(study.spec, study.folder) is None


def test_only_a_large_checkpoint_without_a_shared_store_is_warned_about(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()

    def cautions(artifacts: str, rank: int) -> list[str]:
        study = loaded(tmp_path, artifacts, training=f"{{lora_rank: {rank}}}")
        (tmp_path / "model/model.safetensors").write_bytes(model({"layer.weight": (2048, 2048)}))
        return prepare.prepare(study)[1]

    (line,) = cautions("{store: database}", 1024)
    assert "about 48 MiB" in line
    assert "starts its fold anew on another machine" in line
    assert "artifacts: {store: /shared/folder}" in line
    assert cautions("{store: ./shared}", 1024) == cautions("{store: database}", 64) == []
