"""Search entries: what they hold, what a grid makes of them, what Optuna sees."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import hyperparameters, space
from orchestrator.contract import Settings
from orchestrator.space import Choices, Range

FLOATS = st.floats(1e-6, 1, allow_nan=False)
WHOLE_RANGES = st.tuples(st.integers(1, 9), st.integers(0, 5), st.integers(1, 3)).map(
    lambda drawn: Range(low=drawn[0], high=drawn[0] + drawn[1] * drawn[2], step=drawn[2], whole=True)
)
STEPPED = st.tuples(st.integers(0, 9), st.integers(0, 9), st.sampled_from([0.1, 0.01, 0.05, 0.3, 0.007])).map(
    lambda drawn: Range(
        low=float(f"{drawn[0] * drawn[2]:.12g}"), high=float(f"{(drawn[0] + drawn[1]) * drawn[2]:.12g}"), step=drawn[2]
    )
)
ENTRIES: dict[str, st.SearchStrategy[Any]] = {
    "batch_size": st.lists(st.integers(1, 64), min_size=1, max_size=4, unique=True).map(
        lambda values: Choices(choices=tuple(values))
    ),
    "epochs": WHOLE_RANGES,
    "weight_decay": STEPPED,
    "lr_schedule": st.just(Choices(choices=("linear", "cosine"))),
    "lora_alpha": st.just(Choices(choices=("2r", 32.0))),
}
FINITE = st.fixed_dictionaries({}, optional=ENTRIES).filter(bool)
LEARNING_RATES = st.tuples(FLOATS, FLOATS, st.booleans()).map(
    lambda drawn: Range(low=min(drawn[:2]), high=max(drawn[:2]), log=drawn[2])
)
SPACES = st.fixed_dictionaries({}, optional={**ENTRIES, "learning_rate": LEARNING_RATES}).filter(bool)


@given(entries=FINITE)
def test_a_grid_is_the_product_without_repetition(entries: dict[str, Any]) -> None:
    points = list(space.grid(entries))
    assert len(points) == space.grid_size(entries)
    assert len({json.dumps(point) for point in points}) == len(points)
    assert [tuple(point.values()) for point in points] == list(
        itertools.product(*(entry.points() for entry in entries.values()))
    )
    assert all(point[name] in entry for point in points for name, entry in entries.items())


@given(entries=SPACES)
def test_an_entry_comes_back_from_json(entries: dict[str, Any]) -> None:
    for name, entry in entries.items():
        assert space.entry_from_json(name, json.loads(json.dumps(entry.to_json()))) == entry


@given(entries=FINITE)
def test_optuna_accepts_every_point_of_a_grid_as_the_number_it_is(entries: dict[str, Any]) -> None:
    distributions = space.distributions(entries)
    for point in itertools.islice(space.grid(entries), 20):
        for name, distribution in distributions.items():
            internal = distribution.to_internal_repr(point[name])
            assert distribution._contains(internal)
            back = distribution.to_external_repr(internal)
            assert back == pytest.approx(point[name]) if isinstance(back, float) else back == point[name]
            assert type(back) is type(point[name])


def test_a_step_of_a_tenth_leads_from_0_to_3_tenths() -> None:
    entry, problems = space.parse_entry("lora_dropout", {"low": 0, "high": 0.3, "step": 0.1})
    assert problems == []
    assert entry is not None
    assert entry.points() == (0.0, 0.1, 0.2, 0.3)


@pytest.mark.parametrize("bounds", [(0.15, 0.3, 0.05), (0.1, 0.7, 0.2), (1e-5, 9e-5, 1e-5), (0, 0.9, 0.3)])
def test_steps_lead_where_decimals_say_so(bounds: tuple[float, float, float]) -> None:
    low, high, step = bounds
    entry, problems = space.parse_entry("weight_decay", {"low": low, "high": high, "step": step})
    assert problems == []
    assert entry is not None
    assert entry.points()[-1] == high
    assert space.distributions({"weight_decay": entry})  # Optuna would warn, and warnings are errors here


def test_a_value_off_the_steps_is_outside() -> None:
    entry = Range(low=1, high=7, step=2, whole=True)
    assert [value for value in range(9) if value in entry] == [1, 3, 5, 7]
    assert True not in Range(low=0, high=2, whole=True)
    assert "2r" not in entry


@given(low=FLOATS, high=FLOATS)
def test_a_range_parses_exactly_when_low_is_not_above_high(low: float, high: float) -> None:
    entry, problems = space.parse_entry("learning_rate", {"low": low, "high": high, "log": True})
    assert (entry is not None) == (problems == []) == (low <= high)


@given(name=st.sampled_from(list(hyperparameters.FIELDS)))
def test_every_default_is_allowed(name: str) -> None:
    default = hyperparameters.FIELDS[name].default
    assert hyperparameters.check(name, default) == (default, None)


def test_no_alias_is_a_name_or_stands_for_two() -> None:
    aliases = [alias for field in hyperparameters.FIELDS.values() for alias in field.metadata["aliases"]]
    assert len(set(aliases)) == len(aliases)
    assert not set(aliases) & set(hyperparameters.FIELDS)
    assert hyperparameters.canonical_name("num_train_epochs") == "epochs"


def test_numbers_take_their_fields_type() -> None:
    assert repr(hyperparameters.check("batch_size", 8.0)) == "(8, None)"
    assert repr(hyperparameters.check("weight_decay", 0)) == "(0.0, None)"


@pytest.mark.parametrize(("alpha", "rank", "value"), [("2r", 8, 16.0), ("r", 8, 8.0), ("0.5r", 4, 2.0), (3, 9, 3.0)])
def test_alpha_may_be_a_multiple_of_the_rank(alpha: float | str, rank: int, value: float) -> None:
    assert hyperparameters.resolve_alpha(alpha, rank) == value


def test_configurations_that_train_the_same_have_one_digest() -> None:
    ruled = space.settings({"lora_alpha": "2r"}, {"lora_rank": 16, "epochs": 2})
    named = space.settings({"epochs": 2, "lora_alpha": 32}, {"lora_rank": 16})
    assert space.configuration_digest(ruled) == space.configuration_digest(named)
    assert space.configuration_digest(ruled) != space.configuration_digest(space.settings({}, {"epochs": 3}))


@given(st.permutations([("learning_rate", 0.1), ("epochs", 2), ("batch_size", 4), ("lora_rank", 8)]))
def test_a_configurations_digest_does_not_depend_on_the_order_of_keys(pairs: list[tuple[str, Any]]) -> None:
    wanted = space.configuration_digest(space.settings({}, dict(sorted(pairs))))
    assert space.configuration_digest(space.settings(dict(pairs[:2]), dict(pairs[2:]))) == wanted


def test_the_default_configuration_says_whether_it_lies_in_the_space() -> None:
    inside: space.Space = {"batch_size": Choices(choices=(8, 16))}
    outside: space.Space = {"batch_size": Choices(choices=(16,)), "epochs": Range(low=1, high=3, whole=True)}
    assert space.default_params(inside) == ({"batch_size": 8}, True)
    assert space.default_params(outside) == ({"batch_size": 8, "epochs": 3}, False)


def test_a_hyperparameter_that_came_later_changes_no_configuration_that_does_not_use_it() -> None:
    """Seeds of units come from this digest: numbers of before would change, and what is known be trained again."""
    before = "21f1b52b44f3288b0aa108dc2417ebead57f600ee72ac5884c5f35e72b3424ae"
    assert space.configuration_digest(Settings()) == before
    assert space.configuration_digest(Settings(warmup_steps=3)) != before
