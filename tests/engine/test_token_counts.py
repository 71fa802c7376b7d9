"""Tokens that are counted without torch are those that the engine trains on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator import prepare, study_file, tokens
from orchestrator.findings import Finding
from tests import tiny_models
from tests.unit.study_text import folder, jsonl, study
from trial_worker.engine import Base, Rows
from trial_worker.tasks import task_named

ROWS = {
    "classification": (tiny_models.classification_rows, ""),
    "causal_lm": (tiny_models.causal_rows, "prompt: prompt"),
    "seq2seq": (tiny_models.rewriting_rows, ""),
    "token_classification": (tiny_models.tagged_rows, "tokens: w, tags: t"),
    "question_answering": (tiny_models.question_rows, "answer_start: start"),
}
CHAT = [{"role": "user", "content": "w " * 200}, {"role": "assistant", "content": "yes"}]


def checked(where: Path, kind: str, rows: list[Any], text: str) -> prepare.Checked:
    """A study on these rows, with a tiny model that has its tokenizer."""
    path = folder(where, text, {"rows.jsonl": jsonl(rows)})
    getattr(tiny_models, f"save_{kind}")(where / "model")
    return prepare.check(study_file.load(path))


def found(where: Path, kind: str, rows: list[Any], text: str) -> dict[str, Finding]:
    return {finding.kind: finding for finding in checked(where, kind, rows, text).findings}


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        ("classification", "bert"),
        ("classification", "roberta"),
        ("classification", "llama"),
        ("token_classification", "bert"),
        ("question_answering", "roberta"),
        ("causal_lm", "gpt2"),
        ("causal_lm", "llama"),
        ("seq2seq", "t5"),
    ],
)
def test_the_counts_are_the_engines(task: str, kind: str, tmp_path: Path) -> None:
    make, columns = ROWS[task]
    rows: list[Any] = make()
    raw = rows
    if task == "token_classification":
        raw = [{"w": row["text"].split(), "t": row["tags"]} for row in rows]
    seen = checked(tmp_path, kind, raw, study(task=task, data=f"{{path: rows.jsonl{columns and ', ' + columns}}}"))
    [own] = seen.tokens
    assert own.exact
    labels = seen.snapshot.classes if seen.snapshot else ()
    named = task_named(task, labels)
    base = Base.load(tiny_models.pin(tmp_path / "model"), family=named.family, outputs=named.outputs)
    items = Rows(named, rows, base.tokenizer).items(10**6)
    assert list(own.whole) == [len(item.ids) for item in items]
    if task == "seq2seq":
        assert list(own.target) == [len(item.targets) for item in items]
    if task == "causal_lm":
        assert list(own.first) == [int(item.positions[0]) + 1 for item in items if item.positions is not None]


def test_what_is_cut_is_counted(tmp_path: Path) -> None:
    texts = ["a small sharp tool " * (1 + index % 3) + f"w{index}" for index in range(20)]
    rows = [{"text": text, "label": "ab"[index % 2]} for index, text in enumerate(texts)]
    finding = found(tmp_path, "bert", rows, study(training="{max_length: 12}"))["truncated"]
    # [CLS], 4 words for each repetition, one unknown word, [SEP]: 7, 11, 15
    assert (finding.count, finding.rows[0]) == (6, 3)
    lost, total = 6 * 3, 7 * 7 + 7 * 11 + 6 * 15
    assert finding.message.startswith(f"6 rows of 20 are longer than max_length 12 and cut, {lost / total:.1%} of all")
    assert "the longest has 15 tokens" in finding.message


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_rows_of_which_no_learnt_token_is_left_are_told(kind: str, tmp_path: Path) -> None:
    rows = [{"prompt": "bread" + " bread" * (9 * (index == 4)), "completion": f" {index}"} for index in range(12)]
    text = study(task="causal_lm", data="{path: rows.jsonl, prompt: prompt}", training="{max_length: 8}")
    finding = found(tmp_path, kind, rows, text)["nothing_left"]
    assert (finding.count, finding.rows) == (1, (5,))
    assert finding.message.startswith("of 1 row nothing is left to learn: what comes before the answer has 8 tokens")


def test_of_chats_the_template_is_estimated(tmp_path: Path) -> None:
    chats = [[{"role": "user", "content": f"{index}"}, CHAT[1]] for index in range(9)] + [CHAT]
    text = study(task="causal_lm", data="{path: rows.jsonl, messages: messages}", training="{max_length: 100}")
    seen = found(tmp_path, "llama", [{"messages": each} for each in chats], text)
    assert seen["nothing_left"].message.startswith("of about 1 row nothing")
    assert seen["truncated"].rows == (10,)


def test_of_much_text_every_nth_row_stands_for_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"text": "a small sharp tool " * (1 + index % 2 * 2) + str(index), "label": "ab"[index % 2]}
        for index in range(90)
    ]
    text = study(training="{max_length: 12}")
    whole = found(tmp_path, "bert", rows, text)["truncated"]
    monkeypatch.setattr(tokens, "MOST_BYTES", -(-sum(len(row["text"]) for row in rows) // 3))
    seen = checked(tmp_path, "bert", rows, text)
    [own] = seen.tokens
    assert own.number == tuple(range(0, 90, 3))
    (part,) = [finding for finding in seen.findings if finding.kind == "truncated"]
    assert (whole.count, part.count) == (45, 45)
    assert part.message.startswith("about 45 rows of 90")


WITHOUT_UNKNOWN = {"model": {"type": "WordLevel", "vocab": {"text": 0}, "unk_token": "[UNK]"}}


@pytest.mark.parametrize("broken", [{"model": 3}, WITHOUT_UNKNOWN], ids=str)
def test_a_damaged_tokenizer_is_left_to_the_worker(broken: dict[str, object], tmp_path: Path) -> None:
    rows = [{"text": f"text {index}", "label": "ab"[index % 2]} for index in range(20)]
    path = folder(tmp_path, None, {"rows.jsonl": jsonl(rows), "model/tokenizer.json": json.dumps(broken)})
    seen = prepare.check(study_file.load(path))
    [own] = seen.tokens
    assert not own.exact


def test_each_of_several_models_counts_with_its_own_tokenizer(tmp_path: Path) -> None:
    """Only one of them cuts; the order in which they are named changes nothing."""
    rows = [{"text": "zyxwv " * (5 + index % 3) + str(index), "label": "ab"[index % 2]} for index in range(20)]
    said = []
    for order in ("[./words, ./bytes]", "[./bytes, ./words]"):
        path = folder(tmp_path, study(model=order, training="{max_length: 16}"), {"rows.jsonl": jsonl(rows)})
        tiny_models.save_bert(tmp_path / "words")
        tiny_models.save_gpt2(tmp_path / "bytes")
        seen = prepare.check(study_file.load(path))
        assert len(seen.tokens) == 2
        cut = [finding for finding in seen.findings if finding.kind == "truncated"]
        said.append((sorted(finding.message.partition(":")[0] for finding in cut), seen.forecast))
    assert said[0] == said[1]
    assert said[0][0] == ["model ./bytes"]
