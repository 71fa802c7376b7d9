"""What a unit trains on: its rows of the snapshot, and behind them those that are made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from orchestrator import stopping
from orchestrator.contract import TrainUnit
from trial_worker.augment.copies import copies
from trial_worker.augment.made import Fold, Made, admitted
from trial_worker.engine.base import Base
from trial_worker.tasks.interface import Item
from trial_worker.tasks.rows import Rows

AUGMENTERS: tuple[Callable[[Fold], Iterator[Made]], ...] = (copies,)


@dataclass(frozen=True)
class TrainingPart:
    """items: at the unit's `max_length`, by row number; made rows follow the snapshot's, numbered on.

    train: numbers of those to train on. stopping: of those to stop by, none of which descends from the others.
    """

    items: Sequence[Item]
    train: tuple[int, ...]
    stopping: tuple[int, ...]


def training_part(base: Base, rows: Rows, unit: TrainUnit, given: Sequence[Made] = ()) -> TrainingPart:
    """What a unit trains on. given: rows that were made before, see `courses`.

    Raises:
        ValueError: as `usable_items`; rows that cannot be parted; a row that cannot be augmented. Leak: one descends
            from other rows.
    """
    apart = stopping_rows(rows, unit)
    items = usable_items(base, rows, unit, apart)
    inner = held_apart(unit, apart)
    made = made_rows(rows, inner, given)
    if not made:
        return TrainingPart(items, inner.train, apart)
    limit = min(unit.settings.max_length, base.limit)
    more = rows.further([one.row for one in made], limit)
    return TrainingPart([*items, *more], (*inner.train, *range(len(items), len(items) + len(more))), apart)


def stopping_rows(rows: Rows, unit: TrainUnit) -> tuple[int, ...]:
    """The unit's stopping part, none without patience. Raises ValueError where its rows cannot be parted."""
    if not unit.settings.patience:
        return ()
    return stopping.held_out({number: rows.raw[number] for number in unit.train}, unit.settings.stopping_share)


def held_apart(unit: TrainUnit, apart: Sequence[int]) -> TrainUnit:
    """As far as its rows go, the unit that trains on the others: what it stops by is to it as its validation part."""
    if not apart:
        return unit
    gone = set(apart)
    train = tuple(number for number in unit.train if number not in gone)
    return replace(unit, train=train, validation=(*unit.validation, *apart))


def made_rows(rows: Rows, unit: TrainUnit, given: Sequence[Made] = ()) -> list[Made]:
    """What is made of a unit's training rows, a function of its seed, settings and rows; the given ones first.

    Rows of the pool are not held against them: what was labelled in one round is scored again in the next.
    """
    fold = Fold(unit.seed, unit.settings, {number: rows.raw[number] for number in unit.train})
    made = [*given, *(one for augment in AUGMENTERS for one in augment(fold))]
    held = (rows.raw[number] for number in unit.validation if number not in rows.pool)
    return list(admitted(made, unit.train, held)) if made else []


def usable_items(base: Base, rows: Rows, unit: TrainUnit, apart: Sequence[int] = ()) -> Sequence[Item]:
    """The study's items at this unit's `max_length`. apart: its stopping part.

    Raises:
        ValueError: positions beyond the model's reach, an empty part, or nothing supervised in one.
    """
    limit = unit.settings.max_length
    if limit > base.limit and rows.longest > base.limit:
        raise ValueError(f"max_length must be at most {base.limit} for this model, got {limit}")
    items = rows.items(min(limit, base.limit))
    inner = held_apart(unit, apart).train
    parts = (("training", inner), ("validation", unit.validation), *([("stopping", apart)] if apart else []))
    for part, numbers in parts:
        if not numbers:
            raise ValueError(f"the {part} part has no rows")
        if not any(items[row].weight for row in numbers):
            raise ValueError(f"no {part} row keeps a supervised token within max_length {limit}")
    return items
