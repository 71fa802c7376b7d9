"""Rows that were made, where they come from, and the door through which they become training rows. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from orchestrator.contract import Settings, derive_seed
from orchestrator.texts import fingerprint
from trial_worker.tasks.interface import Row


class Leak(ValueError):
    """A made row descends from rows that its unit is not trained on. The unit ends: none of its scores would count."""


@dataclass(frozen=True)
class Fold:
    """All that an augmenter knows of a unit.

    rows: its training rows, by their numbers in the snapshot.
    """

    seed: int
    settings: Settings
    rows: Mapping[int, Row]

    def draws(self, technique: str, row: int, copy: int = 0) -> random.Random:
        """A stream of its own for each technique, source row and copy, whatever else is made."""
        return random.Random(derive_seed(self.seed, technique, row, copy))


@dataclass(frozen=True, slots=True)
class Made:
    """One row, and the numbers of all rows that had a part in it, by whatever way."""

    row: Row
    sources: tuple[int, ...]
    technique: str


def admitted(made: Iterable[Made], training: Iterable[int], validation: Iterable[Row]) -> Iterator[Made]:
    """What of these rows may be trained on.

    training: row numbers of the unit. validation: its validation rows, whose labels are not looked at; a made row that
    says what one of them says is left out.

    Raises:
        Leak: a row without sources, or with one that is no training row.
    """
    own = frozenset(training)
    said = {fingerprint(row) for row in validation}
    for one in made:
        if not one.sources or not own.issuperset(one.sources):
            foreign = sorted(set(one.sources) - own)
            raise Leak(f"a row made by {one.technique} descends from rows {foreign}, which are not trained on")
        if fingerprint(one.row) not in said:
            yield one
