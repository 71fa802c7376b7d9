"""What a unit trains on: its rows of the snapshot, and behind them those that are made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from orchestrator.contract import TrainUnit
from trial_worker.augment.copies import copies
from trial_worker.augment.made import Fold, Made, admitted
from trial_worker.engine.base import Base
from trial_worker.tasks.interface import Item
from trial_worker.tasks.rows import Rows

AUGMENTERS: tuple[Callable[[Fold], Iterator[Made]], ...] = (copies,)


def training_part(
    base: Base, rows: Rows, unit: TrainUnit, given: Sequence[Made] = ()
) -> tuple[Sequence[Item], tuple[int, ...]]:
    """(items at this unit's `max_length` by row number, numbers of those to train on).

    Made rows follow the snapshot's, numbered on. given: rows that were made before, see `courses`.

    Raises:
        ValueError: as `usable_items`; or a row that cannot be augmented. Leak: one descends from other rows.
    """
    items, made = usable_items(base, rows, unit), made_rows(rows, unit, given)
    if not made:
        return items, unit.train
    limit = min(unit.settings.max_length, base.limit)
    more = rows.further([one.row for one in made], limit)
    return [*items, *more], (*unit.train, *range(len(items), len(items) + len(more)))


def made_rows(rows: Rows, unit: TrainUnit, given: Sequence[Made] = ()) -> list[Made]:
    """What is made of a unit's training rows, a function of its seed, settings and rows; the given ones first.

    Rows of the pool are not held against them: what was labelled in one round is scored again in the next.
    """
    fold = Fold(unit.seed, unit.settings, {number: rows.raw[number] for number in unit.train})
    made = [*given, *(one for augment in AUGMENTERS for one in augment(fold))]
    held = (rows.raw[number] for number in unit.validation if number not in rows.pool)
    return list(admitted(made, unit.train, held)) if made else []


def usable_items(base: Base, rows: Rows, unit: TrainUnit) -> Sequence[Item]:
    """The study's items at this unit's `max_length`.

    Raises:
        ValueError: positions beyond the model's reach, an empty part, or nothing supervised in one.
    """
    limit = unit.settings.max_length
    if limit > base.limit and rows.longest > base.limit:
        raise ValueError(f"max_length must be at most {base.limit} for this model, got {limit}")
    items = rows.items(min(limit, base.limit))
    for part, numbers in (("training", unit.train), ("validation", unit.validation)):
        if not numbers:
            raise ValueError(f"the {part} part has no rows")
        if not any(items[row].weight for row in numbers):
            raise ValueError(f"no {part} row keeps a supervised token within max_length {limit}")
    return items
