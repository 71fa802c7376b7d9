"""When two rows say the same. Pure, standard library only."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator import forms
from orchestrator.contract import canonical, digest


def fingerprint(row: Mapping[str, Any]) -> str:
    """sha256 of what a row says, whatever its label: equal for texts that differ in case, width and white space."""
    return digest({key: folded(value) for key, value in row.items() if key not in forms.TOLD})


def folded(value: Any) -> Any:
    """Text without differences of case, width and white space, at every depth."""
    if isinstance(value, str):
        return " ".join(unicodedata.normalize("NFKC", value).casefold().split())
    if isinstance(value, list):
        return [folded(item) for item in value]
    return {key: folded(item) for key, item in value.items()} if isinstance(value, dict) else value


def together(rows: Mapping[int, Mapping[str, Any]]) -> dict[str, list[int]]:
    """Which of these rows no split may part, by name: those of one group, and without groups those of one text."""
    found: dict[str, list[int]] = {}
    for number, row in rows.items():
        found.setdefault(str(row["group"]) if "group" in row else fingerprint(row), []).append(number)
    return found


def said(row: Mapping[str, Any]) -> str:
    """All that a model is shown of a row, and all it is to write, as one folded text; no labels, no roles."""
    return str(folded(shown(row)))


def shown(row: Mapping[str, Any]) -> str:
    """The same as it was written."""
    return " ".join(part for key, value in row.items() if key not in forms.TOLD for part in _parts(value))


def told(row: Mapping[str, Any]) -> str:
    """What a row is labelled with; empty in tasks that have no labels."""
    values = [value for key, value in sorted(row.items()) if key in forms.TOLD and key != "group"]
    return ", ".join(value if isinstance(value, str) else canonical(value) for value in values)


def _parts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _parts(item)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _parts(inner) if key != "role" else ()
