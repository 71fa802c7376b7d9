"""The two consoles, and a study file's values on them. Needs no database."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.errors import printable


def talk(*, colour: bool | None = None) -> Console:
    """The console for talk: stderr."""
    return Console(stderr=True, highlight=False, soft_wrap=False, no_color=None if colour is None else not colour)


def data() -> Console:
    """The console for data: stdout, never wrapped when it is a file."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)


def resolved(spec: dict[str, Any], origins: dict[str, str]) -> Table:
    """`foldtune check`: every value of the study and where it came from."""
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for heading in ("key", "value", "from"):
        table.add_column(heading, overflow="fold")
    for key, value in _flat(spec):
        if value is None:
            continue
        origin = origins.get(key, "default")
        table.add_row(escape(key), escape(short(value)), escape(origin), style="dim" if origin == "default" else "")
    return table


def _flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, child in value.items():
        nested = isinstance(child, dict) and prefix != "search.space."
        rows += _flat(child, f"{prefix}{key}.") if nested else [(f"{prefix}{key}", child)]
    return rows


def short(value: Any) -> str:
    """A value in a table's cell."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {short(child)}" for key, child in value.items())
    if isinstance(value, list | tuple):
        return "[" + ", ".join(short(item) for item in value) + "]"
    return "" if value is None else printable(str(value))
