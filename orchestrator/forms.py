"""What the rows of each task are made of, and which tasks have what (pure)."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any, NamedTuple


class Column(NamedTuple):
    """key: under `data:` in a study file. default: the column's name where the file gives none; None: there is none."""

    key: str
    default: str | None


_TEXT = {"text": Column("text", "text"), "text_pair": Column("text_pair", None)}

_QUESTION = {"context": "context", "question": "question", "answer": "answer", "start": "answer_start"}

_CLASS = {**_TEXT, "label": Column("label", "label")}

# Tasks with one form of rows: name in the snapshot -> the user's column.
FORMS: Mapping[str, Mapping[str, Column]] = {
    "classification": _CLASS,
    "seq2seq_classification": _CLASS,
    "multi_label": {**_TEXT, "labels": Column("label", "label")},
    "regression": {**_TEXT, "number": Column("label", "label")},
    "seq2seq": {"source": Column("source", "source"), "target": Column("target", "target")},
    "question_answering": {name: Column(key, key) for name, key in _QUESTION.items()},
}
# Keys under `data:` that mean something.
KEYS: Mapping[str, tuple[str, ...]] = {
    **{task: tuple(column.key for column in form.values()) for task, form in FORMS.items()},
    "causal_lm": ("text", "prompt", "completion", "messages"),
    "token_classification": ("tokens", "tags", "text", "spans"),
}
TASKS = tuple(KEYS)
POOLED = ("classification", "multi_label", "regression")  # a head reads the whole row
ONE_CLASS = ("classification", "seq2seq_classification")  # each row is of one class
STRATIFIED = (*POOLED, "seq2seq_classification")
HEADLESS = ("causal_lm", "seq2seq", "seq2seq_classification")  # nothing is trained but adapters
TOLD = frozenset({"label", "labels", "number", "tags", "answer", "start", "group"})  # no part of what a model is shown


def columns(task: str, data: Any) -> dict[str, str]:
    """Name in the snapshot -> the user's column, of a task with one form of rows; data: the study file's section."""
    chosen = {name: getattr(data, column.key) or column.default for name, column in FORMS[task].items()}
    return {name: column for name, column in chosen.items() if column}


def tagged(data: Any, there: Container[str]) -> dict[str, str]:
    """The same of token_classification, by what is named and which columns are there."""
    spans = data.text or data.spans or ("tokens" not in there and "spans" in there)
    if spans and not (data.tokens or data.tags):
        return {"text": data.text or "text", "spans": data.spans or "spans"}
    return {"tokens": data.tokens or "tokens", "tags": data.tags or "tags"}


def named(task: str, data: Any) -> dict[str, str]:
    """The same columns by their keys under `data:`."""
    return {FORMS[task][name].key: column for name, column in columns(task, data).items()}


def classes(task: str, rows: Any) -> tuple[str, ...]:
    """Class names in logit order; none of a task that has no classes."""
    if task in ONE_CLASS:
        return tuple(sorted({row["label"] for row in rows}))
    if task == "multi_label":
        return tuple(sorted({label for row in rows for label in row["labels"]}))
    if task == "token_classification":
        return tuple(sorted({tag for row in rows for tag in row["tags"]}))
    return ()


def too_few(task: str, rows: Any) -> str:
    """What is missing in these rows to learn anything from; empty: nothing."""
    found = classes(task, rows)
    if task in ONE_CLASS and len(found) < 2:
        return f"{task} needs at least 2 classes — got only {found[0]!r}"
    if task == "token_classification" and len(found) < 2:
        return f"token_classification needs at least 2 tags — got only {found[0]!r}"
    if task == "multi_label" and not found:
        return "multi_label needs at least 1 class — got only empty lists"
    if task == "regression" and len({row["number"] for row in rows}) < 2:
        return f"regression needs at least 2 different numbers — got only {rows[0]['number']:g}"
    return ""


def are_bio(tags: Sequence[str]) -> bool:
    """Whether tags are O, B-TYPE and I-TYPE, and not all O, so that they make entities (Ramshaw and Marcus 1995)."""
    return any(tag != "O" for tag in tags) and all(
        tag == "O" or (tag[:2] in ("B-", "I-") and len(tag) > 2) for tag in tags
    )
