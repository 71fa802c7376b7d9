"""Entries of a search space that only count while others have certain values, `when:` (pure).

A condition is name -> the values of that searched hyperparameter under which the entry is active; all names must hold.
What is inactive has no value, and neither has anything that waits for one of its values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from orchestrator import hyperparameters

When = Mapping[str, tuple[Any, ...]]


class Conditional(Protocol):
    """An entry of a space, see `space`."""

    @property
    def when(self) -> When: ...

    def __len__(self) -> int:
        """How many values a grid has here."""

    def points(self) -> tuple[Any, ...]:
        """The grid's values."""


def parse(name: str, raw: Any) -> tuple[When, list[str]]:
    """The condition that a study file gives for an entry, or what is wrong with it by itself."""
    if not isinstance(raw, dict) or not raw:
        rule = "must be a map from a searched hyperparameter to one or more of its choices"
        return {}, [f"'{name}.when' {rule} — got {hyperparameters.show(raw)}"]
    found: dict[str, tuple[Any, ...]] = {}
    problems: list[str] = []
    for key, given in raw.items():
        other = hyperparameters.canonical_name(key, model=True)
        if other is None:
            known = [*hyperparameters.FIELDS, *hyperparameters.ALIASES, hyperparameters.MODEL]
            near = hyperparameters.did_you_mean(key, known)
            problems.append(f"'{name}.when': unknown hyperparameter '{key}' — {near}")
        elif other in found:
            problems.append(f"'{name}.when': '{key}' is given twice, by two names")
        else:
            found[other], wrong = _values(f"{name}.when", other, given)
            problems += wrong
    return found, problems


def _values(where: str, name: str, given: Any) -> tuple[tuple[Any, ...], list[str]]:
    values = given if isinstance(given, list) else [given]
    if not values:
        return (), [f"'{where}': '{name}' needs at least one value"]
    checked = [hyperparameters.check(name, value) for value in values]
    problems = [f"'{where}': {problem}" for _, problem in checked if problem]
    if not problems and any(value in values[:at] for at, value in enumerate(values)):
        problems = [f"'{where}': '{name}' has the same value twice"]
    return tuple(value for value, _ in checked), problems


def to_json(when: When) -> dict[str, Any]:
    """What `parse` reads; nothing of an entry that always counts."""
    return {"when": {name: list(values) for name, values in when.items()}} if when else {}


def problems(space: Mapping[str, Conditional]) -> dict[str, list[str]]:
    """For each entry whose condition does not fit the others: why. Empty: the space makes sense."""
    circle = _circle(space)
    if circle:
        return {circle[0]: [f"'{circle[0]}.when' leads back to itself: {' needs '.join([*circle, circle[0]])}"]}
    found = {name: list(_own_problems(space, name)) for name in space}
    if not any(found.values()):
        found = {name: list(_joint_problems(space, name)) for name in space}
    return {name: wrong for name, wrong in found.items() if wrong}


def _own_problems(space: Mapping[str, Conditional], name: str) -> Iterator[str]:
    for other, values in space[name].when.items():
        if other not in space:
            yield f"'{name}.when' needs '{other}' to be searched, and it is not"
            continue
        choices = getattr(space[other], "choices", None)
        if choices is None:
            yield f"'{name}.when': '{other}' must be a list of choices, and it is a range"
            continue
        for value in values:
            if value not in choices:
                got, known = hyperparameters.show(value), ", ".join(map(str, choices))
                yield f"'{name}.when': '{other}' has no choice {got} — choices are {known}"


def _joint_problems(space: Mapping[str, Conditional], name: str) -> Iterator[str]:
    for other, values in space[name].when.items():
        if not space[other].when and set(space[other].points()) <= set(values):
            yield f"'{name}.when': '{other}' has no other choice, so that it always holds — leave it out"
    never = [other for other, values in whole(space, name).items() if not values]
    if never:
        yield f"'{name}.when' never holds: what it needs wants different values of '{never[0]}'"


def _circle(space: Mapping[str, Conditional]) -> list[str]:
    """Names of which each waits for the next, and the last for the first; empty: there are none."""
    done: set[str] = set()

    def look(name: str, path: list[str]) -> list[str]:
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return []
        for other in space[name].when:
            if other in space and (found := look(other, [*path, name])):
                return found
        done.add(name)
        return []

    return next((found for name in space if (found := look(name, []))), [])


def order(space: Mapping[str, Conditional]) -> list[str]:
    """All names, each behind those that its condition names; else as they stand."""
    found: list[str] = []

    def place(name: str) -> None:
        if name not in found:
            for other in space[name].when:
                place(other)
            found.append(name)

    for name in space:
        place(name)
    return found


def holds(when: When, chosen: Mapping[str, Any]) -> bool:
    """Whether an entry is active, where its condition's names have these values, or none."""
    return all(name in chosen and chosen[name] in values for name, values in when.items())


def whole(space: Mapping[str, Conditional], name: str) -> dict[str, tuple[Any, ...]]:
    """All that must hold for an entry to be active: its own condition and those of the names in it, to the root."""
    found: dict[str, tuple[Any, ...]] = {}
    for other, values in space[name].when.items():
        for each, allowed in {**whole(space, other), other: values}.items():
            found[each] = tuple(value for value in found.get(each, allowed) if value in allowed)
    return found


def exclude(space: Mapping[str, Conditional], one: str, other: str) -> bool:
    """Whether two entries are never active together."""
    mine, theirs = whole(space, one), whole(space, other)
    return any(not set(mine[name]) & set(theirs[name]) for name in mine.keys() & theirs.keys())


def groups(space: Mapping[str, Conditional]) -> list[tuple[str, ...]]:
    """Names with one condition, which are active together or not at all; each group behind those that it waits for."""
    found: dict[frozenset[tuple[str, frozenset[Any]]], list[str]] = {}
    for name in order(space):
        key = frozenset((other, frozenset(values)) for other, values in space[name].when.items())
        found.setdefault(key, []).append(name)
    places = {name: place for place, name in enumerate(space)}
    return [tuple(sorted(names, key=places.__getitem__)) for names in found.values()]


def grid(space: Mapping[str, Conditional]) -> Iterator[dict[str, Any]]:
    """Every combination of what is active, the last name varying fastest; values in the order of the space."""
    names = order(space)

    def walk(at: int, chosen: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if at == len(names):
            yield {name: chosen[name] for name in space if name in chosen}
        elif not holds(space[names[at]].when, chosen):
            yield from walk(at + 1, chosen)
        else:
            for value in space[names[at]].points():
                yield from walk(at + 1, {**chosen, names[at]: value})

    yield from walk(0, {})


def grid_size(space: Mapping[str, Conditional]) -> int:
    """How many combinations `grid` has, without walking them: there may be billions."""
    named = {other for entry in space.values() for other in entry.when}
    counted = Counter({frozenset[str](): 1})  # of what comes later, what is inactive -> combinations so far
    for name in order(space):
        following: Counter[frozenset[str]] = Counter()
        for inactive, count in counted.items():
            for off, times in _next(space, name, inactive, switches=name in named).items():
                following[off] += count * times
        counted = following
    return counted.total()


def _next(
    space: Mapping[str, Conditional], name: str, inactive: frozenset[str], *, switches: bool
) -> Counter[frozenset[str]]:
    """What a name makes inactive -> by how many of its values."""
    if name not in inactive:
        if not switches:
            return Counter({inactive: len(space[name])})
        return Counter(inactive | _off(space, name, value) for value in space[name].points())
    waiting = {other for other, entry in space.items() if name in entry.when}
    return Counter({(inactive - {name}) | waiting: 1})


def _off(space: Mapping[str, Conditional], name: str, value: Any) -> frozenset[str]:
    return frozenset(other for other, entry in space.items() if name in entry.when and value not in entry.when[name])


def defaults(space: Mapping[str, Conditional], values: Mapping[str, Any]) -> dict[str, Any]:
    """Of one value for every name, those of the names that are active under them."""
    chosen: dict[str, Any] = {}
    for name in order(space):
        if holds(space[name].when, chosen):
            chosen[name] = values[name]
    return {name: chosen[name] for name in space if name in chosen}
