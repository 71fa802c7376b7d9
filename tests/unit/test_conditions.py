"""`when:`: what is active, in a grid, in a suggestion, in a study file and in its smoke form."""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import conditions, document, space, spec, study, study_file
from orchestrator.contract import Settings
from orchestrator.hyperparameters import FIELDS
from orchestrator.space import Choices, Range
from orchestrator.study import Past, Question
from tests.unit import study_text

POOL: Mapping[str, Any] = {
    "method": Choices(choices=("lora", "head", "full")),
    "lr_schedule": Choices(choices=("linear", "cosine")),
    "batch_size": Choices(choices=(4, 8)),
    "lora_rank": Choices(choices=(4, 8, 16)),
    "epochs": Range(low=1, high=3, whole=True),
    "weight_decay": Choices(choices=(0.0, 0.1)),
}


@st.composite
def spaces(draw: st.DrawFn) -> dict[str, Any]:
    """Some of the pool in any order, each waiting for values of some that were drawn before it, shuffled."""
    names = draw(st.lists(st.sampled_from(list(POOL)), min_size=1, max_size=5, unique=True))
    found: dict[str, Any] = {}
    for name in names:
        when = {}
        for other in draw(
            st.lists(st.sampled_from([n for n in found if n != "epochs"] or [""]), unique=True, max_size=2)
        ):
            if other:
                values = draw(st.lists(st.sampled_from(POOL[other].choices), min_size=1, unique=True))
                when[other] = tuple(values)
        entry = POOL[name]
        found[name] = type(entry)(**{**entry.__dict__, "when": when})
    return dict(draw(st.permutations(list(found.items()))))


def activated(entries: Mapping[str, Any], point: Mapping[str, Any]) -> bool:
    """Whether a point has a value exactly where `when` says so, each an allowed one."""
    for name, entry in entries.items():
        active = all(other in point and point[other] in values for other, values in entry.when.items())
        if active != (name in point) or (name in point and point[name] not in entry):
            return False
    return point.keys() <= entries.keys()


@given(entries=spaces())
def test_every_point_of_a_grid_activates_exactly_what_when_says(entries: dict[str, Any]) -> None:
    points = list(space.grid(entries))
    assert points
    assert all(activated(entries, point) for point in points)
    assert all(list(point) == [name for name in entries if name in point] for point in points)
    assert len({json.dumps(point) for point in points}) == len(points) == space.grid_size(entries)


@given(entries=spaces())
def test_a_grid_leaves_no_active_combination_out(entries: dict[str, Any]) -> None:
    """Each combination of the plain product has, without its inactive values, its point."""
    points = {json.dumps(point) for point in space.grid(entries)}
    for values in itertools.product(*(entry.points() for entry in entries.values())):
        every = dict(zip(entries, values, strict=True))
        point = conditions.defaults(entries, every)
        assert json.dumps(point) in points


@given(entries=spaces(), sampler=st.sampled_from(["random", "tpe"]), known=st.integers(0, 9), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_no_sampler_proposes_what_is_inactive(entries: dict[str, Any], sampler: str, known: int, seed: int) -> None:
    raw = {name: entry.to_json() for name, entry in entries.items()}
    points = list(itertools.islice(itertools.cycle(space.grid(entries)), known))
    past = [Past(params=point, state="complete", value=float(at % 5), reports=[]) for at, point in enumerate(points)]
    params, _ = study.suggest(Question(sampler=sampler, space=raw, maximize=False, trials=16, seed=seed, past=past))
    assert activated(entries, params)
    assert list(params) == [name for name in entries if name in params]


@given(entries=spaces())
def test_an_entry_that_waits_comes_back_from_json(entries: dict[str, Any]) -> None:
    for name, entry in entries.items():
        assert space.entry_from_json(name, json.loads(json.dumps(entry.to_json()))) == entry


@given(entries=spaces())
def test_the_default_configuration_has_values_of_what_is_active_alone(entries: dict[str, Any]) -> None:
    params, inside = space.default_params(entries)
    assert all(params[name] == FIELDS[name].default for name in params)
    assert inside == (activated(entries, params))
    assert space.settings({}, params) == space.settings({}, {})


@given(entries=spaces(), data=st.data())
def test_a_space_with_one_value_fixed_has_the_points_of_that_value(
    entries: dict[str, Any], data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(list(entries)))
    free = {**entries, name: type(entries[name])(**{**entries[name].__dict__, "when": {}})}
    value = data.draw(st.sampled_from(free[name].points()))
    wanted = [{n: v for n, v in point.items() if n != name} for point in space.grid(free) if point.get(name) == value]
    key = lambda point: json.dumps(point, sort_keys=True)  # noqa: E731
    assert sorted(space.grid(space.fixed(free, name, value)), key=key) == sorted(wanted, key=key)


def test_a_grid_of_billions_is_counted_without_a_walk() -> None:
    steps = Range(low=1, high=1000, whole=True)
    waits = Range(low=1, high=1000, whole=True, when={"method": ("lora",)})
    entries = {"method": POOL["method"], "epochs": steps, "batch_size": steps, "lora_rank": waits}
    assert space.grid_size(entries) == 10**6 * (1000 + 2)


# --- what the samplers learn ---

LORA = {
    "learning_rate": {"low": 1e-5, "high": 1e-1, "log": True},
    "method": {"choices": ["lora", "head"]},
    "lora_rank": {"low": 1, "high": 64, "when": {"method": ["lora"]}},
}


def asked(past: list[Past], seed: int = 3, **changes: Any) -> Question:
    return Question(
        **{"sampler": "tpe", "space": LORA, "maximize": False, "trials": 40, "seed": seed, "past": past, **changes}
    )


def history(count: int) -> list[Past]:
    """In which ranks near 48 are best, and heads are worst."""
    found = []
    for seed in range(count):
        params, _ = study.suggest(asked([], seed, sampler="random"))
        value = abs(params.get("lora_rank", 0) - 48) / 48
        found.append(Past(params=params, state="complete", value=value))
    return found


def test_what_always_counts_is_proposed_as_by_optunas_own_groups() -> None:
    past = history(24)
    params, _ = study.suggest(asked(past))
    entries = {name: space.entry_from_json(name, raw) for name, raw in LORA.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        own = optuna.samplers.TPESampler(seed=3, n_startup_trials=10, multivariate=True, group=True, constant_liar=True)
    plain = optuna.create_study(sampler=own)
    for each in past:
        distributions = space.distributions({name: entries[name] for name in each.params})
        plain.add_trial(
            optuna.trial.create_trial(value=each.value, params=dict(each.params), distributions=distributions)
        )
    trial = plain.ask()
    assert trial.suggest_float("learning_rate", 1e-5, 1e-1, log=True) == params["learning_rate"]
    assert trial.suggest_categorical("method", ["lora", "head"]) == params["method"]


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_a_model_learns_from_the_trials_that_have_a_value(sampler: str) -> None:
    past = history(30)
    answers = [study.answer(asked(past, seed, sampler=sampler))[0] for seed in range(8 if sampler == "tpe" else 3)]
    ranks = [answer["lora_rank"] for answer in answers if "lora_rank" in answer]
    assert len(ranks) >= 2
    assert sum(36 <= rank <= 60 for rank in ranks) > len(ranks) / 2  # chance would give 39 %
    assert all(("lora_rank" in answer) == (answer["method"] == "lora") for answer in answers)


def test_groups_do_not_draw_the_same_numbers() -> None:
    entries = {
        "method": {"choices": ["lora"]},
        "lora_dropout": {"low": 0.0, "high": 0.9},
        "dropout": {"low": 0.0, "high": 0.9, "when": {"method": ["lora"]}},
    }
    params, _ = study.suggest(asked([], sampler="random", space=entries))
    assert params["lora_dropout"] != params["dropout"]


# --- study files ---


def load(text: str) -> study_file.LoadedStudy:
    return study_file.resolve(document.parse(text, "study.yaml"), Path())


def test_aliases_single_values_and_chains_are_understood() -> None:
    text = study_text.space(
        "lora_alpha: {choices: [8, 16], when: {r: 8}},"
        "r: {choices: [4, 8], when: {method: [lora]}}, method: [lora, head]",
        "grid",
    )
    wanted = load(text).spec
    assert wanted.search.space["lora_rank"] == {"choices": [4, 8], "when": {"method": ["lora"]}}
    assert wanted.space["lora_alpha"].when == {"lora_rank": (8,)}
    assert wanted.budget.trials == 1 + 1 + 2
    assert spec.StudySpec.model_validate_json(wanted.model_dump_json()) == wanted


def test_warm_ups_that_exclude_each_other_may_both_be_searched() -> None:
    both = (
        "lr_schedule: [constant, linear], warmup_steps: {choices: [5, 10], when: {lr_schedule: constant}},"
        "warmup_ratio: {choices: [0.1], when: {lr_schedule: linear}}"
    )
    assert load(study_text.space(both)).spec.space["warmup_steps"].when


@pytest.mark.parametrize("sampler", ["grid", "tpe"])
def test_smoke_leaves_out_what_waits_for_more_than_one_epoch(sampler: str) -> None:
    text = study_text.space(
        "epochs: [1, 2, 3], batch_size: {choices: [4, 8], when: {epochs: [2, 3]}}, method: [head, lora],"
        "lora_rank: {choices: [4, 8], when: {method: lora, epochs: [1, 2]}}",
        sampler,
    )
    small = study_file.smoke(load(text)).spec
    rank = {"choices": [4, 8], "when": {"method": ["lora"]}}
    whole = {"method": {"choices": ["head", "lora"]}, "lora_rank": rank}
    assert small.search.space == ({"method": {"choices": ["head"]}} if sampler == "grid" else whole)
    assert set(small.training) | set(small.search.space) == set(Settings.__dataclass_fields__)
    assert not set(small.training) & set(small.search.space)


def test_a_study_without_conditions_has_the_identity_that_it_had() -> None:
    entries = load(
        study_text.space("lr: {low: 1e-4, high: 1e-2, log: true}, batch_size: {choices: [4, 8]}")
    ).spec.search.space
    assert entries == {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "batch_size": {"choices": [4, 8]}}
