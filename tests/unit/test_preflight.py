"""What rows and settings lead to is said before anything is spent, each with a count, a line and what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema

from orchestrator import prepare, study_file
from orchestrator.findings import Finding
from tests.unit.study_text import ROWS, folder, jsonl, study

SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"


def found(where: Path, rows: list[Any], text: str | None = None) -> dict[str, Finding]:
    """kind -> finding, of a study on these rows, with a model that has no tokenizer.json."""
    path = folder(where, text, {"rows.jsonl": jsonl(rows)})
    return {finding.kind: finding for finding in prepare.check(study_file.load(path)).findings}


def test_ordinary_rows_are_no_news(tmp_path: Path) -> None:
    assert found(tmp_path, ROWS) == {}


def test_uneven_classes_are_told_with_what_the_most_frequent_one_reaches(tmp_path: Path) -> None:
    rows = [{"text": f"text number {index}", "label": "common" if index % 5 else "odd"} for index in range(30)]
    finding = found(tmp_path, rows)["class_balance"]
    assert (finding.count, finding.rows) == (24, (1,))
    assert "from 'odd' (6 rows) to 'common' (24): always saying 'common' has accuracy 0.80" in str(finding)
    assert "class_balance" not in found(tmp_path, ROWS)


def test_classes_with_fewer_rows_than_folds_are_told_with_their_lines(tmp_path: Path) -> None:
    rows = [*ROWS, {"text": "new", "label": "rare"}, {"text": "newer", "label": "rare"}]
    finding = found(tmp_path, rows)["rare_classes"]
    assert (finding.count, finding.rows) == (2, (21, 22))
    assert "1 of 3 classes have fewer rows than there are folds: 'rare' (2)" in finding.message
    assert "rare_classes" not in found(tmp_path, rows, study(cross_validation="{folds: 4, stratify: false}"))


def test_texts_ten_times_as_long_or_short_as_the_median_are_told(tmp_path: Path) -> None:
    rows = [*ROWS, {"text": "x", "label": "a"}, {"text": "many words " * 15, "label": "b"}]
    seen = found(tmp_path, rows)
    assert (seen["short_texts"].rows, seen["long_texts"].rows) == ((21,), (22,))
    assert "1 row is extraordinarily short beside a median of 14 characters: line 21 has 1 character, 'x'" in str(
        seen["short_texts"]
    )
    assert "line 22 has 164 characters, 'many words many" in str(seen["long_texts"])


def test_lines_of_a_limited_study_are_those_of_its_file(tmp_path: Path) -> None:
    rows = [{"text": "x" if index == 17 else f"text number {index}", "label": "ab"[index % 2]} for index in range(40)]
    for seed in range(6):
        text = study(data="{path: rows.jsonl, limit: 30}", seed=str(seed))
        seen = found(tmp_path, rows, text)
        assert {finding.rows for finding in seen.values()} <= {(18,)}


def test_without_a_tokenizer_what_is_cut_is_estimated_and_says_about(tmp_path: Path) -> None:
    rows = [*ROWS, {"text": "y" * 399 + " z", "label": "a"}]
    finding = found(tmp_path, rows, study(training="{max_length: 64}"))["truncated"]
    assert (finding.count, finding.rows) == (1, (21,))
    assert finding.message.startswith("about 1 row of 21 is longer than max_length 64 and cut")
    assert "the longest has about 102 tokens" in finding.message


def test_a_cut_answer_and_cut_words_are_said_to_be_lost(tmp_path: Path) -> None:
    rows = [
        {"context": "red " * 300 + str(n), "question": f"which {n}?", "answer": "red", "answer_start": 0}
        for n in range(9)
    ]
    assert "an answer beyond has no loss and counts as wrong" in str(
        found(tmp_path, rows, study(task="question_answering"))["truncated"]
    )


def test_check_json_has_its_schema(tmp_path: Path) -> None:
    rows = [*ROWS, {"text": "x", "label": "a"}, {"text": "x", "label": "b"}]
    checked = prepare.check(study_file.load(folder(tmp_path, None, {"rows.jsonl": jsonl(rows)})))
    schema = json.loads((SCHEMAS / "check.schema.json").read_text(encoding="utf-8"))
    listed = [finding.to_json() for finding in checked.findings]
    assert {each["kind"] for each in listed} == {"repeats", "conflicts", "short_texts"}
    for each in listed:
        jsonschema.Draft202012Validator(schema["properties"]["findings"]["items"]).validate(each)
    assert [str(finding) for finding in checked.findings] == checked.cautions[:3]
