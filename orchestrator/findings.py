"""What is worth knowing about a study's rows before anything is spent (pure)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

LISTED = 100  # rows of one finding, at most; `count` has them all
QUOTED = 48  # characters of a text


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing about the rows, and what to do.

    kind: short and stable. rows: where the rows in question stand in the file (its lines; of Parquet and the hub row
    numbers), the first ones.
    """

    kind: str
    count: int
    rows: tuple[int, ...]
    message: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.message}; {self.advice}" if self.advice else self.message

    def to_json(self) -> dict[str, Any]:
        """For `check --json`."""
        plain = {"kind": self.kind, "count": self.count, "rows": list(self.rows)}
        return plain | {"message": self.message, "advice": self.advice}


def listed(rows: Iterable[int]) -> tuple[int, ...]:
    """The first rows, in the order of the file."""
    return tuple(sorted(rows)[:LISTED])


def quoted(text: str) -> str:
    """A text's beginning, on one line."""
    line = " ".join(text.split())
    return repr(line if len(line) <= QUOTED else line[: QUOTED - 3] + "...")


def counted(count: int, what: str = "row") -> str:
    """`1 row`, `2 rows`."""
    return f"{count:,} {what}" + "s" * (count != 1)


def are(count: int) -> str:
    """`is`, `are`."""
    return "is" if count == 1 else "are"
