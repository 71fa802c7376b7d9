"""A small valid study and its data, for tests that break one thing of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROWS = [{"text": f"text number {index}", "label": "ab"[index % 2]} for index in range(20)]


def study(**sections: str | None) -> str:
    """The text of a valid study; a section given as text replaces its line, None removes it, others are added."""
    lines = {
        "study": "q1",
        "model": "{path: ./model}",
        "task": "classification",
        "data": "{path: rows.jsonl}",
        "cross_validation": "{folds: 4}",
        "search": "{sampler: random, space: {batch_size: [4, 8]}}",
        **sections,
    }
    return "".join(f"{key}: {value}\n" for key, value in lines.items() if value is not None)


def space(entries: str, sampler: str = "tpe") -> str:
    """A valid study that searches these entries."""
    return study(search=f"{{sampler: {sampler}, space: {{{entries}}}}}")


def jsonl(rows: list[Any] | None = None) -> str:
    """Rows as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in (ROWS if rows is None else rows))


def folder(where: Path, text: str | bytes | None = None, files: dict[str, str | bytes] | None = None) -> Path:
    """A study file with its data and a model folder that `check` accepts; the path of the study file."""
    contents: dict[str, str | bytes] = {
        "study.yaml": study() if text is None else text,
        "rows.jsonl": jsonl(),
        "model/config.json": '{"model_type": "bert"}',
        "model/model.safetensors": b"",
        **(files or {}),
    }
    for name, content in contents.items():
        path = where / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return where / "study.yaml"
