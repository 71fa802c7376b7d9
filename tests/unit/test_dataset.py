"""Rows of a file -> a frozen snapshot."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator import dataset, models, readers
from orchestrator.dataset import Snapshot
from orchestrator.errors import BAD_DATA, BadInput, FoldtuneError
from orchestrator.spec import DataSource, ModelSource
from tests.unit.study_text import ROWS, jsonl

WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=6).filter(
    str.strip
)


def frozen(
    folder: Path, content: str | bytes, name: str = "rows.jsonl", task: str = "classification", **source: Any
) -> Snapshot:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return dataset.snapshot(DataSource(path=name, **source), task, folder, seed=1)


def rows_of(found: Snapshot) -> list[dict[str, Any]]:
    return [json.loads(line) for line in found.content.split(b"\n") if line]  # str.splitlines also splits at U+2028


@given(texts=st.lists(WORDS, min_size=2, max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_format_gives_the_same_snapshot(texts: list[str], tmp_path: Path) -> None:
    import csv
    import io

    import pyarrow
    from pyarrow import parquet

    rows = [{"text": text, "label": f"c{index % 2}"} for index, text in enumerate(texts)]
    table, sheet = io.BytesIO(), io.StringIO(newline="")
    parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    writer = csv.DictWriter(sheet, ["text", "label"])
    writer.writeheader()
    writer.writerows(rows)
    wanted = frozen(tmp_path, jsonl(rows))
    assert rows_of(wanted) == rows
    assert frozen(tmp_path, table.getvalue(), "rows.parquet").sha256 == wanted.sha256
    assert frozen(tmp_path, gzip.compress(jsonl(rows).encode()), "rows.jsonl.gz").sha256 == wanted.sha256
    assert frozen(tmp_path, sheet.getvalue(), "rows.csv").sha256 == wanted.sha256


def test_numbers_of_a_csv_file_are_numbers_and_folds_have_each_range(tmp_path: Path) -> None:
    sheet = "text,height\n" + "".join(f"t{i},{i / 2}\n" for i in range(40))
    found = frozen(tmp_path, sheet, "rows.csv", task="regression", label="height")
    assert rows_of(found)[3] == {"text": "t3", "number": 1.5}
    assert (found.labels, found.classes) == (None, ())
    assert found.strata is not None
    assert [found.strata.count(kind) for kind in sorted(set(found.strata))] == [10] * 4
    assert found.strata[0] != found.strata[39]


def test_both_forms_of_tagged_rows_become_words_of_a_text(tmp_path: Path) -> None:
    spans = [{"start": 10, "end": 19, "label": "place"}, {"start": 0, "end": 3, "label": "who"}]
    rows = [{"text": "Ann likes New York.", "spans": spans[1:]}, {"text": "Ann sees  New York.", "spans": spans}]
    found = rows_of(frozen(tmp_path, jsonl(rows), task="token_classification"))
    assert found[0]["words"] == [[0, 3], [4, 9], [10, 13], [14, 18], [18, 19]]
    assert found[0]["tags"] == ["B-who", "O", "O", "O", "O"]
    assert found[1]["tags"] == ["B-who", "O", "B-place", "I-place", "I-place"]  # the span takes the full stop along
    tokens = [{"w": ["Ann", "likes", "it"], "t": ["B-who", "O", "O"]}] * 2
    one, _ = rows_of(frozen(tmp_path, jsonl(tokens), task="token_classification", tokens="w", tags="t"))
    assert one == {"text": "Ann likes it", "words": [[0, 3], [4, 9], [10, 12]], "tags": ["B-who", "O", "O"]}
    snapshot = frozen(tmp_path, jsonl(tokens), task="token_classification", tokens="w", tags="t")
    assert (snapshot.classes, snapshot.labels, snapshot.strata) == (("B-who", "O"), None, None)


def test_questions_on_equal_texts_are_rows_of_their_own(tmp_path: Path) -> None:
    row = {"context": "a red fruit", "question": "which?", "answer": "red", "answer_start": 2}
    rows = [row, {**row, "question": "what?"}, {**row, "answer": "a", "answer_start": 0}]
    found = frozen(tmp_path, jsonl(rows), task="question_answering")
    assert rows_of(found)[0] == {"answer": "red", "context": "a red fruit", "question": "which?", "start": 2}
    assert found.groups is not None
    assert found.groups[0] == found.groups[2] != found.groups[1]


def test_rows_with_few_of_their_kind_are_stratified_by_their_rarest_label(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "label": ["b", "a"]} for i in range(10)] + [{"text": "x", "label": ["a", "c"]}]
    rows += [{"text": f"n{i}", "label": []} for i in range(3)]
    found = frozen(tmp_path, jsonl(rows), task="multi_label")
    assert found.classes == ("a", "b", "c")
    assert rows_of(found)[0]["labels"] == ["a", "b"]
    assert found.strata is not None
    assert found.strata == ("all of ['a', 'b']",) * 10 + ("has c",) + ("all of []",) * 3


def test_only_the_tasks_columns_are_kept_under_foldtunes_names(tmp_path: Path) -> None:
    rows = [{"body": f"t{i}", "kind": i % 2, "secret": "x", "by": i % 5} for i in range(10)]
    found = frozen(tmp_path, jsonl(rows), text="body", label="kind", group="by")
    assert rows_of(found)[3] == {"text": "t3", "label": "1", "group": "3"}
    assert found.classes == ("0", "1")
    assert b"secret" not in found.content


def test_labels_are_text_whatever_the_format_had(tmp_path: Path) -> None:
    labels: list[Any] = [1, "1", 1.0, True, "true", "x"]
    found = frozen(tmp_path, jsonl([{"text": f"t{i}", "label": label} for i, label in enumerate(labels)]))
    assert found.labels == ("1", "1", "1", "true", "true", "x")


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"text": "a", "prompt": "p"}, {"text"}),
        ({"prompt": "p", "completion": "c", "text": "x"}, {"prompt", "completion"}),
        ({"messages": [{"role": "assistant", "content": "c", "more": 1}], "text": "x"}, {"messages"}),
    ],
)
def test_a_language_models_rows_are_recognised_by_their_columns(
    row: dict[str, Any], columns: set[str], tmp_path: Path
) -> None:
    found = frozen(tmp_path, jsonl([row] * 4), task="causal_lm")
    assert set(rows_of(found)[0]) == columns
    assert found.labels is None
    assert found.classes == ()
    assert b"more" not in found.content


def test_equal_texts_stay_together_and_are_said(tmp_path: Path) -> None:
    rows = [*ROWS, {"text": "  Text NUMBER\n0 ", "label": "b"}]
    found = frozen(tmp_path, jsonl(rows))
    assert found.groups is not None
    assert found.groups[0] == found.groups[20]
    assert len(set(found.groups)) == 20
    assert "2 rows repeat" in found.cautions[0]
    assert "different labels" in found.cautions[1]


def test_groups_that_share_a_text_become_one(tmp_path: Path) -> None:
    rows = [
        {"text": text, "label": text, "g": group} for text, group in [("a", 1), ("b", 1), ("b", 2), ("c", 2), ("d", 3)]
    ]
    groups = frozen(tmp_path, jsonl(rows), group="g").groups
    assert groups is not None
    assert len(set(groups[:4])) == 1
    assert groups[4] != groups[0]


def test_without_repetition_or_groups_every_row_stands_alone(tmp_path: Path) -> None:
    found = frozen(tmp_path, jsonl())
    assert (found.groups, found.cautions, found.rows) == (None, (), 20)


def test_a_limit_draws_an_even_share_of_each_class_by_the_seed(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "label": "rare" if i < 5 else "common"} for i in range(100)]
    found = frozen(tmp_path, jsonl(rows), limit=10)
    assert sorted(found.labels or ()) == ["common"] * 5 + ["rare"] * 5
    assert found.sha256 == frozen(tmp_path, jsonl(rows), limit=10).sha256
    other = dataset.snapshot(DataSource(path="rows.jsonl", limit=10), "classification", tmp_path, seed=2)
    assert other.sha256 != found.sha256


def test_the_hash_is_of_the_rows_and_not_of_the_files_layout(tmp_path: Path) -> None:
    spaced = "\ufeff\r\n\n" + "\r\n".join(json.dumps(dict(reversed(row.items())), indent=None) + "  " for row in ROWS)
    assert frozen(tmp_path, spaced).sha256 == frozen(tmp_path, jsonl()).sha256


def test_a_name_without_suffix_that_is_no_file_means_the_hub(tmp_path: Path) -> None:
    (tmp_path / "here").write_text("")
    assert readers.is_hub("user/set", None, tmp_path)
    assert readers.is_hub("rows.jsonl", "hub", tmp_path)
    assert not readers.is_hub("here", None, tmp_path)
    assert not readers.is_hub("none.jsonl", None, tmp_path)
    assert not readers.is_hub("none", "csv", tmp_path)


def test_without_the_hub_extra_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(FoldtuneError, match="needs the package datasets") as raised:
        readers.read(DataSource(path="user/set"), tmp_path)
    assert raised.value.code == BAD_DATA


def test_problems_of_every_kind_are_said_a_few_of_each(tmp_path: Path) -> None:
    rows = [{"text": 1, "label": "a"}] * 7 + [{"text": " ", "label": None}] * 2
    with pytest.raises(BadInput) as raised:
        frozen(tmp_path, jsonl(rows))
    assert raised.value.code == BAD_DATA
    codes = [problem.code for problem in raised.value.problems]
    assert codes.count("data-type") == 6  # five and "and 4 more rows"
    assert codes.count("data-empty") == 2


def test_a_local_models_pin_is_of_its_content_wherever_it_lies(tmp_path: Path) -> None:
    pins = []
    for place, weights in [("a", b"1"), (".cache/b", b"1"), (".cache/c", b"2")]:
        folder = tmp_path / place
        folder.mkdir(parents=True)
        (folder / "config.json").write_text('{"model_type": "bert"}')
        (folder / "model.safetensors").write_bytes(weights)
        pins.append(models.pin(ModelSource(path=f"./{place}"), tmp_path))
    assert pins[0].pin == pins[1].pin != pins[2].pin
    assert (pins[0].origin, pins[0].root, pins[0].pooling, pins[0].normalize) == (
        "local",
        str(tmp_path),
        "first",
        False,
    )
    (tmp_path / "a" / ".cache").mkdir()
    (tmp_path / "a" / ".cache" / "lock").write_text("x")
    assert models.pin(ModelSource(path="./a"), tmp_path).pin == pins[0].pin


def test_a_pin_says_how_the_weights_are_held(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    plain = models.pin(ModelSource(path="."), tmp_path)
    assert (plain.precision, plain.gradient_checkpointing, plain.quantization) == ("auto", False, "none")
    source = ModelSource(path=".", precision="bfloat16", gradient_checkpointing=True, quantization="nf4")
    held = models.pin(source, tmp_path)
    assert (held.precision, held.gradient_checkpointing, held.quantization) == ("bfloat16", True, "nf4")
    assert held.pin == plain.pin


@pytest.mark.parametrize(
    ("modules", "pooling", "expected"),
    [
        (
            [{"type": "x.Pooling", "path": "1_Pooling"}, {"type": "x.Normalize"}],
            {"pooling_mode_mean_tokens": True},
            ("mean", True),
        ),
        ([{"type": "x.Pooling", "path": "1_Pooling"}], {"pooling_mode_mean_tokens": True}, ("mean", False)),
        (
            [{"type": "x.Pooling", "path": "1_Pooling"}, {"type": "x.Normalize"}],
            {"pooling_mode_cls_token": True},
            ("first", False),
        ),
        ([{"type": "x.Transformer"}], {}, ("first", False)),
        ({"no": "list"}, {}, ("first", False)),
        ([7, None], [], ("first", False)),
    ],
)
def test_pooling_auto_reads_the_models_own_files(
    modules: Any, pooling: Any, expected: tuple[str, bool], tmp_path: Path
) -> None:
    (tmp_path / "1_Pooling").mkdir()
    for name, content in {"config.json": {"a": 1}, "modules.json": modules, "1_Pooling/config.json": pooling}.items():
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "model.safetensors").write_bytes(b"")
    found = models.pin(ModelSource(path="."), tmp_path)
    assert (found.pooling, found.normalize) == expected
