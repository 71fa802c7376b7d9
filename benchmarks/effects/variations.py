"""A study's configurations one change apart, and the units that train them (pure)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator import space
from orchestrator.contract import Settings, TrainUnit, derive_seed
from orchestrator.prepare import Prepared


@dataclass(frozen=True, kw_only=True)
class Variation:
    """A configuration. changed: what is not as in the first one, by name; empty: this is the first one."""

    changed: dict[str, Any]
    settings: Settings

    @property
    def name(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.changed.items()) or "without"


def variations(prepared: Prepared, only: Sequence[str] = ()) -> list[Variation]:
    """The first choice of every searched hyperparameter; then each other choice of each, all else as in the first.

    only: of these hyperparameters, all others stay at their first choice; none: of all.

    Raises:
        ValueError: an entry is no list of choices, or an unknown name in `only`.
    """
    spec = prepared.loaded.spec
    entries = spec.space
    if wrong := [name for name, each in entries.items() if not isinstance(each, space.Choices)]:
        raise ValueError(f"search.space must have lists of choices only, and {', '.join(wrong)} is none")
    if unknown := [name for name in only if name not in entries]:
        raise ValueError(f"not searched: {', '.join(unknown)}; there is {', '.join(entries)}")
    first = {name: entry.points()[0] for name, entry in entries.items()}
    changes: list[dict[str, Any]] = [{}]
    for name in only or entries:
        changes += [{name: value} for value in entries[name].points()[1:]]
    pooling = prepared.model.pooling
    return [
        Variation(changed=each, settings=space.settings(spec.training, {**first, **each}, pooling=pooling))
        for each in changes
    ]


def units(prepared: Prepared, chosen: Sequence[Variation]) -> Iterator[TrainUnit]:
    """Each variation on each fold; `trial` is its place in the list.

    A fold's seed is the same for all, unlike in a study: what differs is the change, and not the draws as well.
    """
    plan, seed = prepared.plan, prepared.loaded.spec.seed
    for number, variation in enumerate(chosen):
        for place, (repeat, fold) in enumerate(plan.units):
            train, validation = plan.split(repeat, fold)
            yield TrainUnit(
                study=1,
                unit=number * len(plan.units) + place,
                lease_epoch=1,
                trial=number,
                repeat=repeat,
                fold=fold,
                seed=derive_seed(seed, "effects", fold, repeat),
                settings=variation.settings,
                train=train,
                validation=validation,
            )
