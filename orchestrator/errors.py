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
        return f"error: {self.message}" + (f"\nhelp: {self.help}" if self.help else "")


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
        text = f"error[{self.code}] {place}: {self.message}" if place else f"error[{self.code}] {self.message}"
        return f"{text}\n  help: {self.help}" if self.help else text


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
