"""What goes wrong, said once: the rule, what was got, what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

USAGE = 2
BAD_DATA = 65
UNAVAILABLE = 69  # the database is away
BUG = 70
CANNOT_WRITE = 73
TRY_AGAIN = 75  # fenced, or somebody else was faster
NO_PERMISSION = 77


def printable(text: str) -> str:
    """Text that cannot steer a terminal or fake a line: names from users' files may hold escape codes."""
    if text.isprintable():
        return text
    escaped = (mark if mark.isprintable() else mark.encode("unicode_escape").decode("ascii") for mark in text)
    return "".join(escaped)


class FoldtuneError(Exception):
    """A failure with one clear message for the user.

    message: what must hold and what was got. help: one action. code: the process's exit code.
    """

    def __init__(self, message: str, *, help: str = "", code: int = BUG) -> None:
        super().__init__(message)
        self.message = message
        self.help = help
        self.code = code

    def __str__(self) -> str:
        return f"error: {printable(self.message)}" + (f"\nhelp: {printable(self.help)}" if self.help else "")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing wrong in a file the user wrote."""

    code: str  # short and stable, such as "unknown-key"
    message: str  # the rule, then `got ...`
    help: str = ""
    file: str = ""
    line: int = 0  # 1-based; 0: not known
    column: int = 0

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.file, self.line, self.column) if part)
        text = f"{place}: {self.message}" if place else self.message
        lines = [f"error[{self.code}] {printable(text)}"]
        return "\n".join([*lines, f"  help: {printable(self.help)}"] if self.help else lines)


class BadInput(FoldtuneError):
    """A study file or dataset with one or more problems, all of them listed."""

    SHOWN = 20

    def __init__(self, problems: Sequence[Problem], *, code: int = USAGE) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(problem.message for problem in self.problems), code=code)

    def __str__(self) -> str:
        lines = [str(problem) for problem in self.problems[: self.SHOWN]]
        if len(self.problems) > self.SHOWN:
            lines.append(f"... and {len(self.problems) - self.SHOWN} more")
        return "\n".join(lines)
