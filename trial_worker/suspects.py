"""Who may train together after a trainer died, and what its death means for whom (pure).

A process that trained several units and died charges nobody: one of them may have killed it, or none. They run again
from their checkpoints by halves until the guilty one is alone; each that reports an epoch is no suspect any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.lifecycle import PATIENCE, Cause


@dataclass(frozen=True)
class Suspects:
    """Groups of units that must train by themselves, the first one now."""

    groups: tuple[tuple[int, ...], ...] = ()

    def after_crash(self, running: Sequence[int]) -> Suspects:
        """These units trained when their process died: both halves are suspect, one after the other."""
        rest = self._without(running).groups
        middle = (len(running) + 1) // 2
        halves = [half for half in (tuple(running[:middle]), tuple(running[middle:])) if half]
        return Suspects((*halves, *rest))

    def cleared(self, unit: int) -> Suspects:
        """This unit made progress, or ended."""
        return self._without([unit])

    def may_run(self, held: Iterable[int]) -> list[int]:
        """Which of these units may train now."""
        if not self.groups:
            return list(held)
        return [unit for unit in held if unit in self.groups[0]]

    def __bool__(self) -> bool:
        return bool(self.groups)

    def _without(self, units: Iterable[int]) -> Suspects:
        gone = set(units)
        left = (tuple(unit for unit in group if unit not in gone) for group in self.groups)
        return Suspects(tuple(group for group in left if group))


class Verdict(StrEnum):
    """What becomes of the units of a trainer that died."""

    AGAIN = "again"  # at once, from their checkpoints
    HALVES = "halves"  # from their checkpoints, by halves
    SMALLER = "smaller"  # from its checkpoint, with fewer rows at a time
    CHARGED = "charged"  # the unit failed


def verdict(cause: Cause, *, units: int, kills: int) -> Verdict:
    """What a death means for the units that trained when it came.

    kills: how often in a row, this time included, one of them was killed from outside without an epoch in between.
    """
    if units > 1:
        return Verdict.AGAIN if cause == Cause.KILLED and kills < PATIENCE else Verdict.HALVES
    if cause == Cause.MEMORY:
        return Verdict.SMALLER
    if cause == Cause.KILLED and kills < PATIENCE:
        return Verdict.AGAIN
    return Verdict.CHARGED


def fewer_rows(most: int | None, batch_size: int) -> int | None:
    """Rows of a micro-step after the kernel killed the trainer for its memory; None: one was too many already."""
    now = batch_size if most is None else min(most, batch_size)
    return None if now <= 1 else max(1, now // 4)


FAULTY_TRIALS = 3


def machine_at_fault(streak: Sequence[int], *, proven: bool, others: int) -> bool:
    """Whether failures without any success between them speak against this machine rather than against the trials.

    streak: the trial of each failure, oldest first. proven: some unit had made progress here before. others: living
    workers beside this one.
    """
    if len(set(streak)) >= FAULTY_TRIALS:
        return True
    return not proven and others > 0 and len(streak) >= FAULTY_TRIALS
