"""Columns of a row that must fit together, and the one form in which the snapshot has them (pure)."""

from __future__ import annotations

import re
from typing import Any

from orchestrator.hyperparameters import show

WORD = re.compile(r"\w+|[^\w\s]")
Joined = tuple[dict[str, Any], str, str]  # the row, and what is wrong with which column; empty: nothing


def joined(row: dict[str, Any]) -> Joined:
    """A row of valid values as the snapshot has it."""
    if "tokens" in row and "tags" in row:
        return _of_tokens(row)
    if "spans" in row and "text" in row:
        return _of_spans(row)
    if "start" in row and not row["context"].startswith(row["answer"], row["start"]):
        there = row["context"][row["start"] : row["start"] + len(row["answer"])]
        wrong = f"must be where the answer stands: there is {show(there)}, and the answer is {show(row['answer'])}"
        return row, "start", wrong
    return row, "", ""


def _of_tokens(row: dict[str, Any]) -> Joined:
    tokens, tags = row.pop("tokens"), row["tags"]
    if len(tokens) != len(tags):
        return row, "tags", f"must have one tag for each of {len(tokens)} tokens — got {len(tags)}"
    words, at = [], 0
    for token in tokens:
        words.append([at, at + len(token)])
        at += len(token) + 1
    return {**row, "text": " ".join(tokens), "words": words}, "", ""


def _of_spans(row: dict[str, Any]) -> Joined:
    """Words and single marks of the text; the first of a span gets B-, the others I-."""
    spans, text = row.pop("spans"), row["text"]
    words = [list(word.span()) for word in WORD.finditer(text)]
    tags = ["O"] * len(words)
    for span in spans:
        if not span["start"] < span["end"] <= len(text):
            return row, "spans", f"must lie within a text of {len(text)} characters — got {show(span)}"
        own = [n for n, (start, end) in enumerate(words) if start < span["end"] and end > span["start"]]
        if not own:
            return row, "spans", f"must cover a word — got {show(span)}"
        if any(tags[n] != "O" for n in own):
            return row, "spans", f"must not share a word with another span — got {show(span)}"
        for n in own:
            tags[n] = ("B-" if n == own[0] else "I-") + span["label"]
    return {**row, "words": words, "tags": tags}, "", ""
