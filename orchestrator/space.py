"""The search space: entries of a study file <-> configurations <-> Optuna distributions (pure)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from orchestrator import conditions, hyperparameters
from orchestrator.conditions import When
from orchestrator.conditions import grid as grid
from orchestrator.conditions import grid_size as grid_size
from orchestrator.contract import ModelPin, Settings, digest

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

MOST_STEPS = 100_000  # values of one range

Params = Mapping[str, Any]  # one value for every searched name that is active


@dataclass(frozen=True, kw_only=True)
class Choices:
    """A list of values, each as likely as the others."""

    choices: tuple[Any, ...]
    when: When = field(default_factory=dict)

    def __contains__(self, value: Any) -> bool:
        return value in self.choices

    def __len__(self) -> int:
        return len(self.choices)

    def points(self) -> tuple[Any, ...]:
        return self.choices

    @property
    def extremes(self) -> tuple[Any, ...]:
        """What lies between no other values: of choices each."""
        return self.choices

    def to_json(self) -> dict[str, Any]:
        return {"choices": list(self.choices), **conditions.to_json(self.when)}

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.choices)


@dataclass(frozen=True, kw_only=True)
class Range:
    """All numbers from low to high, both included; on a log scale, or in steps."""

    low: float
    high: float
    log: bool = False
    step: float | None = None
    whole: bool = False
    when: When = field(default_factory=dict)

    def __contains__(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        if self.step is None:
            return not self.whole or float(value).is_integer()
        steps = (value - self.low) / self.step
        return abs(steps - round(steps)) < 1e-6

    def __len__(self) -> int:
        """How many values a grid has here."""
        return round((self.high - self.low) / (self.step or 1)) + 1

    @property
    def extremes(self) -> tuple[Any, ...]:
        """Both ends."""
        return self.low, self.high

    def points(self) -> tuple[Any, ...]:
        """The grid's values. Only a whole range or one with a step has them."""
        values = (self.low + index * (self.step or 1) for index in range(len(self)))
        return tuple(int(value) if self.whole else float(f"{value:.12g}") for value in values)

    def to_json(self) -> dict[str, Any]:
        entry: dict[str, Any] = {"low": self.low, "high": self.high}
        more = ({"log": True} if self.log else {}) | ({"step": self.step} if self.step else {})
        return {**entry, **more, **conditions.to_json(self.when)}

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)


Entry = Choices | Range
Space = Mapping[str, Entry]


def parse_entry(name: str, raw: Any) -> tuple[Entry | None, list[str]]:
    """The entry a study file gives for `name`, or what is wrong with it."""
    if isinstance(raw, list):
        return _choices(name, raw)
    if not isinstance(raw, dict):
        return None, [
            f"'{name}' must be a list of choices or a map with low and high — got {hyperparameters.show(raw)}"
        ]
    if "when" in raw:
        entry, problems = parse_entry(name, {key: value for key, value in raw.items() if key != "when"})
        when, wrong = conditions.parse(name, raw["when"])
        problems = [*problems, *wrong]
        return (None, problems) if problems or entry is None else (dataclasses.replace(entry, when=when), [])
    if "choices" in raw:
        extra = sorted(set(raw) - {"choices"})
        return (
            _choices(name, raw["choices"])
            if not extra
            else (None, [f"'{name}': choices stand alone, got also {', '.join(extra)}"])
        )
    return _range(name, raw)


def entry_from_json(name: str, raw: Mapping[str, Any]) -> Entry:
    """The entry that `to_json` wrote; it was validated then."""
    entry, problems = parse_entry(name, dict(raw))
    if entry is None:
        raise ValueError("; ".join(problems))
    return entry


def _choices(name: str, raw: Any) -> tuple[Choices | None, list[str]]:
    if not isinstance(raw, list) or not raw:
        return None, [f"'{name}': choices must be a list of at least one value — got {hyperparameters.show(raw)}"]
    values, problems = [], []
    for item in raw:
        if not isinstance(item, str | int | float | bool | type(None)):
            problems.append(
                f"'{name}': choices must be text, numbers, true/false or null — got {hyperparameters.show(item)}"
            )
            continue
        value, problem = hyperparameters.check(name, item)
        if problem:
            problems.append(problem)
        elif value in values:
            problems.append(
                f"'{name}': choices {hyperparameters.show(value)} and {hyperparameters.show(item)} are equal"
            )
        else:
            values.append(value)
    return (None, problems) if problems else (Choices(choices=tuple(values)), [])


def _range(name: str, raw: dict[str, Any]) -> tuple[Range | None, list[str]]:
    known = ("low", "high", "log", "step")
    problems = [
        f"'{name}': unknown key '{key}' — {hyperparameters.did_you_mean(key, known)}" for key in raw if key not in known
    ]
    problems += [f"'{name}': missing '{key}'" for key in ("low", "high") if key not in raw]
    kind = hyperparameters.TYPES[name]
    if kind not in (int, float):
        problems.append(f"'{name}' is no plain number: give a list of choices")
    if problems:
        return None, problems
    bounds = []
    for key in ("low", "high"):
        value, problem = hyperparameters.check(name, raw[key])
        bounds.append(value)
        if problem:
            problems.append(problem.replace(f"'{name}'", f"'{name}.{key}'", 1))
    log, step = raw.get("log", False), raw.get("step")
    if not isinstance(log, bool):
        problems.append(f"'{name}.log' must be true or false — got {hyperparameters.show(log)}")
    if step is not None:
        problems += _step_problems(name, step, whole=kind is int)
    if problems:
        return None, problems
    if step is not None:
        step = int(step) if kind is int else float(step)
    entry = Range(low=bounds[0], high=bounds[1], log=log, step=step, whole=kind is int)
    problems = _range_problems(name, entry)
    return (None, problems) if problems else (entry, [])


def _step_problems(name: str, step: Any, *, whole: bool) -> list[str]:
    if isinstance(step, bool) or not isinstance(step, int | float) or not math.isfinite(step) or step <= 0:
        return [f"'{name}.step' must be a number above 0 — got {hyperparameters.show(step)}"]
    if whole and step != int(step):
        return [f"'{name}.step' must be a whole number — got {hyperparameters.show(step)}"]
    return []


def _range_problems(name: str, entry: Range) -> list[str]:
    if entry.low > entry.high:
        return [f"'{name}': low {entry.low:g} is above high {entry.high:g}"]
    if entry.log and entry.low <= 0:
        return [f"'{name}': a log scale needs low > 0 — got {entry.low:g}"]
    if entry.log and entry.step:
        return [f"'{name}': log and step exclude each other"]
    if entry.step and (entry.high - entry.low) / entry.step > MOST_STEPS:
        return [f"'{name}': step {entry.step:g} makes more than {MOST_STEPS} values"]
    if entry.step and (Decimal(str(entry.high)) - Decimal(str(entry.low))) % Decimal(str(entry.step)):
        return [f"'{name}': step {entry.step:g} does not lead from {entry.low:g} to {entry.high:g}"]
    return []


def grid_problems(space: Space) -> dict[str, str]:
    """For every entry that has no finite list of points: why."""
    problems = {}
    for name, entry in space.items():
        if isinstance(entry, Range) and entry.step is None and (entry.log or not entry.whole):
            problems[name] = f"'{name}': a grid needs choices or a step — got a continuous range"
    return problems


def fixed(space: Space, name: str, value: Any) -> dict[str, Entry]:
    """What is left to search once a hyperparameter has one value."""
    gone, left = {name}, {}
    for each in conditions.order(space):
        when = dict(space[each].when)
        waits = when.pop(name, None)
        if each == name or (waits is not None and value not in waits) or gone & when.keys():
            gone.add(each)
        else:
            left[each] = dataclasses.replace(space[each], when=when)
    return {each: left[each] for each in space if each in left}


def settings(fixed: Mapping[str, Any], params: Params, *, pooling: str = "auto") -> Settings:
    """Every hyperparameter of a configuration, `lora_alpha` as a number and `pooling: auto` as what it means here."""
    values = {**fixed, **{name: value for name, value in params.items() if name != hyperparameters.MODEL}}
    modules = values.get("target_modules")
    if isinstance(modules, list):
        values["target_modules"] = tuple(modules)
    merged = Settings(**values)
    return dataclasses.replace(
        merged,
        lora_alpha=hyperparameters.resolve_alpha(merged.lora_alpha, merged.lora_rank),
        pooling=pooling if merged.pooling == "auto" else merged.pooling,
    )


def configuration_digest(value: Settings, model: ModelPin | None = None) -> str:
    """Equal for configurations that train the same, by whichever version: units have their seeds from it.

    model: where it is searched; else it is no part of a configuration.
    """
    return digest(value.identity() | ({} if model is None else {"model": model.identity()}))


def extremes(space: Space, name: str, fixed: Mapping[str, Any]) -> tuple[Any, ...]:
    """All that a hyperparameter may be, or what lies between nothing else: choices, the ends of a range, one value.

    With its default where it is searched and waits for others. fixed: values of those that are not searched.
    """
    default = hyperparameters.FIELDS[name].default
    entry = space.get(name)
    if entry is None:
        return (fixed.get(name, default),)
    return (*entry.extremes, *((default,) if entry.when else ()))


def default_params(space: Space) -> tuple[dict[str, Any], bool]:
    """What the default configuration has for the searched names that are then active, and whether it lies in the space.

    Its model is the first one.
    """
    defaults = {
        name: entry.points()[0] if name == hyperparameters.MODEL else hyperparameters.FIELDS[name].default
        for name, entry in space.items()
    }
    params = conditions.defaults(space, defaults)
    return params, all(value in space[name] for name, value in params.items())


def internal(space: Space, params: Params) -> dict[str, tuple[float, str]]:
    """name -> (value as Optuna stores it, its distribution as JSON), of those that are searched."""
    from optuna.distributions import distribution_to_json

    found = {name: entry.distribution() for name, entry in space.items() if name in params}  # what is inactive has none
    return {name: (each.to_internal_repr(params[name]), distribution_to_json(each)) for name, each in found.items()}


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Optuna's distributions, numbers as numbers."""
    return {name: entry.distribution() for name, entry in space.items()}
