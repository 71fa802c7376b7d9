"""Rows of a user's file -> a frozen snapshot with a sha256, or every problem with its line.

A snapshot is canonical JSONL: one object a row, with only the columns the task needs, under foldtune's names.
Workers train on the snapshot, never on the file.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator import forms, hyperparameters, readers, repeats, row_joins, row_values, strata
from orchestrator.contract import canonical
from orchestrator.errors import BAD_DATA, BadInput, Problem
from orchestrator.findings import Finding
from orchestrator.readers import Row
from orchestrator.spec import AUTO, DataSource

SHOWN = 5  # problems of one kind that are listed one by one
KINDS = {"must": "type", "is": "empty", "holds": "text", "has": "messages"}  # a finding's first word -> its kind
EMBEDDED_BYTES = 64 * 2**20  # a larger snapshot is not stored in the database


@dataclass(frozen=True)
class Snapshot:
    """The study's rows, frozen."""

    content: bytes  # canonical JSONL, UTF-8
    sha256: str
    rows: int
    labels: tuple[str, ...] | None  # of every row; classification only
    classes: tuple[str, ...]  # names in logit order; empty without classes
    strata: tuple[str, ...] | None  # of every row, its kind: each fold gets its share of every kind
    groups: tuple[str, ...] | None  # rows that must stay together; None: every row by itself
    lines: tuple[int, ...]  # where each row stands in the file, see `readers.Row`
    findings: tuple[Finding, ...]  # about rows that repeat others

    @property
    def cautions(self) -> tuple[str, ...]:
        """The findings in words."""
        return tuple(str(finding) for finding in self.findings)

    @property
    def parsed(self) -> list[dict[str, Any]]:
        """The rows themselves."""
        return [json.loads(line) for line in self.content.split(b"\n") if line]


def snapshot(source: DataSource, task: str, folder: Path, seed: int) -> Snapshot:
    """Read, check and freeze the rows.

    Raises:
        BadInput: with the first problems of each kind (exit code 65).
    """
    rows, lines = _read(source, task, folder, seed)
    labels = tuple(row["label"] for row in rows) if task in forms.ONE_CLASS else None
    groups, findings = repeats.find(rows, lines, auto=source.group == AUTO)
    if groups is not None and source.group:
        rows = repeats.named(rows, groups)
    content = _jsonl(rows)
    return Snapshot(
        content=content,
        sha256=hashlib.sha256(content).hexdigest(),
        rows=len(rows),
        labels=labels,
        classes=forms.classes(task, rows),
        strata=strata.strata(task, rows),
        groups=groups,
        lines=tuple(lines),
        findings=findings,
    )


def _read(source: DataSource, task: str, folder: Path, seed: int) -> tuple[list[dict[str, Any]], list[int]]:
    """The rows that the study uses, and where each stands in the file."""
    file = source.path
    raw = readers.read(source, folder)
    if not raw:
        raise BadInput([Problem(code="data", message="no rows", file=file)], code=BAD_DATA)
    rows, problems = _canonical_rows(raw, _columns(source, task, raw, file) | _group(source, raw, file), file)
    if not problems and (wrong := forms.too_few(task, rows)):
        problems = [Problem(code="data-classes", message=wrong, file=file)]
    if problems:
        raise BadInput(_shorten(problems), code=BAD_DATA)
    chosen = _limit(rows, source.limit, seed)
    return [rows[index] for index in chosen], [raw[index].line for index in chosen]


def _jsonl(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(canonical(row) + "\n" for row in rows).encode()


def _group(source: DataSource, raw: Sequence[Row], file: str) -> dict[str, str]:
    """The column of groups, if there is one; `auto` is none."""
    if source.group != AUTO:
        return {"group": source.group} if source.group else {}
    if any(AUTO in row.values for row in raw):
        message = "`data: {group: auto}` keeps nearly equal rows together, and here is a column named 'auto'"
        problem = Problem(code="data-group", message=message, help="give the column another name", file=file)
        raise BadInput([problem], code=BAD_DATA)
    return {}


def texts(source: DataSource, folder: Path) -> tuple[bytes, int]:
    """Rows of which only the text counts: (canonical JSONL, how many).

    Raises:
        BadInput: with the first problems of each kind (exit code 65).
    """
    raw = readers.read(source, folder)
    if not raw:
        raise BadInput([Problem(code="data", message="no rows", file=source.path)], code=BAD_DATA)
    rows, problems = _canonical_rows(raw, {"text": source.text or "text"}, source.path)
    if problems:
        raise BadInput(_shorten(problems), code=BAD_DATA)
    return _jsonl(rows), len(rows)


def _columns(source: DataSource, task: str, raw: Sequence[Row], file: str) -> dict[str, str]:
    """Canonical name -> the user's column."""
    if task in forms.FORMS:
        return forms.columns(task, source)
    if task == "token_classification":
        return forms.tagged(source, raw[0].values)
    if source.messages:
        return {"messages": source.messages}
    if source.prompt or source.completion:
        return {"prompt": source.prompt or "prompt", "completion": source.completion or "completion"}
    if source.text:
        return {"text": source.text}
    names = set(raw[0].values) if raw else set()
    for kind in (("messages",), ("prompt", "completion"), ("text",)):
        if set(kind) <= names:
            return {name: name for name in kind}
    message = "rows must have text, prompt with completion, or messages"
    have = ", ".join(sorted(names))
    help = f"columns are {have}; name yours, for example `data: {{text: {min(names, default='x')}}}`"
    raise BadInput([Problem(code="columns", message=message, help=help, file=file)], code=BAD_DATA)


def _canonical_rows(
    raw: Sequence[Row], columns: Mapping[str, str], file: str
) -> tuple[list[dict[str, Any]], list[Problem]]:
    rows, problems = [], []
    nowhere = [column for column in columns.values() if not any(column in row.values for row in raw)]
    for column in nowhere:
        have = sorted(set().union(*(row.values for row in raw)))
        message = f"no column '{column}' in any row (there is {', '.join(have) or 'nothing'})"
        near = difflib.get_close_matches(column, have, n=1)
        help = f"did you mean '{near[0]}'?" if near else "name yours under `data:`"
        problems.append(Problem(code="data-column", message=message, help=help, file=file, line=raw[0].line))
    for row in raw:
        values: dict[str, Any] = {}
        before = len(problems)
        for name, column in columns.items():
            if column in nowhere:
                continue
            if column not in row.values:
                message = f"no column '{column}' (there is {', '.join(sorted(row.values)) or 'nothing'})"
                problems.append(Problem(code="data-column", message=message, file=file, line=row.line))
                continue
            value, wrong = _value(name, row.values[column])
            if wrong:
                code = f"data-{KINDS[wrong.split()[0]]}"
                problems.append(Problem(code=code, message=f"'{column}' {wrong}", file=file, line=row.line))
            values[name] = value
        if not nowhere and len(problems) == before:
            values, name, wrong = row_joins.joined(values)
            if wrong:
                problems.append(
                    Problem(code="data-fit", message=f"'{columns[name]}' {wrong}", file=file, line=row.line)
                )
        rows.append(values)
    return rows, problems


def _value(name: str, value: Any) -> tuple[Any, str]:
    """(canonical value, "") or (None, what is wrong)."""
    if name in row_values.READERS:
        return row_values.READERS[name](value)
    if name in ("label", "group"):
        if isinstance(value, bool | int | str) and str(value).strip():
            return row_values.clean(str(value).lower() if isinstance(value, bool) else str(value))
        if isinstance(value, float) and value.is_integer():
            return str(int(value)), ""
        return None, f"must be text or a whole number — got {hyperparameters.show(value)}"
    if name == "messages":
        return _messages(value)
    if not isinstance(value, str):
        return None, f"must be text — got {hyperparameters.show(value)}"
    if not value.strip():
        return None, "is empty"
    return row_values.clean(value)


def _messages(value: Any) -> tuple[Any, str]:
    if not isinstance(value, list) or not value:
        return None, "must be a list of {role, content} — got " + hyperparameters.show(value)
    turns = []
    for turn in value:
        if not (isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)):
            return None, "must be a list of {role, content}, both text — got " + hyperparameters.show(turn)
        wrong = row_values.clean(turn["content"])[1] or row_values.clean(turn["role"])[1]
        if wrong:
            return None, wrong
        turns.append({"role": turn["role"], "content": turn["content"]})
    if not any(turn["role"] == "assistant" and turn["content"].strip() for turn in turns):
        return None, "has no assistant turn to learn from"
    return turns, ""


def _shorten(problems: Sequence[Problem]) -> list[Problem]:
    """The first few of every kind, and a count of the rest."""
    by_kind: dict[str, list[Problem]] = {}
    for problem in problems:
        by_kind.setdefault(problem.code, []).append(problem)
    shown = []
    for code, group in by_kind.items():
        shown += group[:SHOWN]
        if len(group) > SHOWN:
            shown.append(Problem(code=code, message=f"and {len(group) - SHOWN} more rows", file=group[0].file))
    return shown


def _limit(rows: list[dict[str, Any]], limit: int | None, seed: int) -> list[int]:
    """Numbers of at most `limit` rows, in their order; with labels, an even share of each class first."""
    if limit is None or limit >= len(rows):
        return list(range(len(rows)))
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    turn: Counter[Any] = Counter()
    ranks = []
    for index in order:
        label = str(rows[index].get("label") or rows[index].get("labels"))
        ranks.append((turn[label], index))
        turn[label] += 1
    return sorted(index for _, index in sorted(ranks, key=lambda rank: rank[0])[:limit])
