"""Suggestions are a function of history and seed."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import replace
from typing import Any

import optuna
import pytest

from orchestrator import lifecycle, space, study
from orchestrator.study import MEMORY, Past, Question

SPACE: dict[str, dict[str, Any]] = {
    "learning_rate": {"low": 1e-5, "high": 1e-1, "log": True},
    "batch_size": {"choices": [4, 8, 16, 32]},
    "epochs": {"low": 1, "high": 6},
    "lora_dropout": {"low": 0.0, "high": 0.3, "step": 0.1},
    "lora_alpha": {"choices": ["2r", 16.0]},
}
TRIALS = 16
STARTUP = lifecycle.startup_trials(TRIALS)


def question(**changes: Any) -> Question:
    return Question(**{"sampler": "tpe", "space": SPACE, "maximize": False, "trials": TRIALS, "seed": 1, **changes})


def past(count: int, state: str = "complete") -> list[Past]:
    """History in which the loss is lowest near a learning rate of 1e-3."""
    found = []
    for index in range(count):
        params, _ = study.suggest(question(sampler="random", seed=100 + index))
        value = abs(math.log10(params["learning_rate"]) + 3)
        done = state == "complete"
        found.append(Past(params=params, state=state, value=value if done else None, reports=[value] if done else []))
    return found


@pytest.mark.parametrize("sampler", ["random", "tpe"])
@pytest.mark.parametrize("known", [0, STARTUP + 2])
def test_the_same_question_has_the_same_answer(sampler: str, known: int) -> None:
    asked = question(sampler=sampler, past=past(known))
    assert study.suggest(asked) == study.suggest(asked)
    assert study.suggest(asked) != study.suggest(dataclasses.replace(asked, seed=2))


def test_suggestions_and_redraws_have_seeds_of_their_own() -> None:
    seeds = {study.suggestion_seed(seed, number, redraw) for seed in (0, 1) for number in (0, 1) for redraw in (0, 1)}
    assert len(seeds) == 8
    assert study.suggestion_seed(1, 2, 3) == study.suggestion_seed(1, 2, 3)


@pytest.mark.parametrize("known", [0, STARTUP + 2])
def test_every_suggestion_number_and_redraw_gives_other_params(known: int) -> None:
    history = past(known)
    seeds = [study.suggestion_seed(1, number, redraw) for number in range(3) for redraw in range(3)]
    answers = [study.suggest(question(seed=seed, past=history))[0] for seed in seeds]
    assert len({json.dumps(answer) for answer in answers}) == 9


def test_workers_that_ask_at_once_get_different_trials() -> None:
    """The first asks with some history, the second with the first's open trial in it."""
    history = past(STARTUP + 2)
    first, _ = study.suggest(question(seed=study.suggestion_seed(1, 0, 0), past=history))
    opened = [*history, Past(params=first, state="running")]
    second, _ = study.suggest(question(seed=study.suggestion_seed(1, 1, 0), past=opened))
    assert first != second


@pytest.mark.parametrize(
    ("state", "counts"),
    [
        ("complete", True),
        ("stopped", True),
        ("diverged", True),
        ("infeasible", True),
        ("failed", False),
        ("cancelled", False),
        ("running", False),
        ("waiting", False),
    ],
)
def test_the_model_speaks_once_it_has_learnt_from_enough_trials(state: str, counts: bool) -> None:
    assert study.suggest(question(past=past(STARTUP - 1, state)))[1] == "random"
    assert study.suggest(question(past=past(STARTUP, state)))[1] == ("model" if counts else "random")
    assert study.suggest(question(sampler="random", past=past(STARTUP, state)))[1] == "random"


def test_the_model_proposes_what_was_good() -> None:
    history = past(24)
    logs = [
        math.log10(study.suggest(question(trials=60, seed=seed, past=history))[0]["learning_rate"])
        for seed in range(12)
    ]
    assert sum(abs(value + 3) < 1 for value in logs) >= 9  # of [-5, -1], chance would give 6


def test_the_model_follows_the_direction() -> None:
    history = past(24)
    logs = [
        math.log10(study.suggest(question(trials=60, seed=seed, past=history, maximize=True))[0]["learning_rate"])
        for seed in range(12)
    ]
    assert sum(abs(value + 3) > 1 for value in logs) >= 9


@pytest.mark.parametrize("maximize", [False, True])
def test_the_model_answers_as_optunas_own_sampler_that_was_told_everything(maximize: bool) -> None:
    history = [*past(20), *past(9, "stopped"), *past(3, "diverged"), *past(2, "infeasible"), *past(2, "running")]
    history = [
        replace(each, reports=[0.1 * at]) if each.state == "stopped" else each for at, each in enumerate(history)
    ]
    asked = question(seed=5, past=history, maximize=maximize)
    sampler = optuna.samplers.TPESampler(seed=5, n_startup_trials=STARTUP, multivariate=True, constant_liar=True)
    plain = optuna.create_study(sampler=sampler, direction="maximize" if maximize else "minimize")
    distributions = space.distributions({name: space.entry_from_json(name, raw) for name, raw in SPACE.items()})
    for each in history:
        trial = plain.ask({})
        frozen = optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING, params=dict(each.params), distributions=distributions
        )
        plain.tell(trial, state=optuna.trial.TrialState.FAIL)
        plain._storage.create_new_trial(plain._study_id, template_trial=frozen)
        told = optuna.Trial(plain, plain._storage.get_n_trials(plain._study_id) - 1)
        for step, value in enumerate(each.reports, start=1):
            told.report(value, step)
        if each.state == "infeasible":
            told.set_constraint(MEMORY, 1.0)
        if each.state in lifecycle.TOLD:
            plain.tell(told, each.value, state=optuna.trial.TrialState[lifecycle.TOLD[each.state]])
    assert study.suggest(asked)[0] == plain.ask(distributions).params


@pytest.mark.parametrize(
    "states", [[], ["complete"], ["diverged"], ["infeasible"], ["complete", "diverged", "infeasible"]]
)
def test_numbers_stay_numbers_whatever_the_history(states: list[str]) -> None:
    history = [trial for state in states for trial in past(STARTUP, state)]
    for seed in range(8):
        params, _ = study.suggest(question(seed=seed, past=history))
        assert list(params) == list(SPACE)
        assert type(params["batch_size"]) is int
        assert params["batch_size"] in (4, 8, 16, 32)
        assert type(params["epochs"]) is int
        assert type(params["learning_rate"]) is float
        assert round(params["lora_dropout"], 9) in (0.0, 0.1, 0.2, 0.3)
        assert params["lora_alpha"] in ("2r", 16.0)
        assert json.loads(json.dumps(params)) == params


def told(state: str, **more: Any) -> optuna.trial.FrozenTrial:
    """What a sampler is told of a trial that ended so."""
    distributions = {"epochs": optuna.distributions.IntDistribution(1, 6)}
    return study._trial(1, Past(params={"epochs": 2}, state=state, **more), distributions)


def test_what_optuna_is_told() -> None:
    complete = told("complete", value=0.5, reports=[0.7, 0.5])
    assert (complete.state.name, complete.value, complete.intermediate_values) == ("COMPLETE", 0.5, {1: 0.7, 2: 0.5})
    stopped = told("stopped", reports=[0.7])
    assert (stopped.state.name, stopped.value, stopped.intermediate_values) == ("PRUNED", 0.7, {1: 0.7})
    diverged = told("diverged", reports=[0.7])
    assert (diverged.state.name, diverged.value, diverged.intermediate_values) == ("PRUNED", None, {})
    assert [told(state).state.name for state in ("failed", "cancelled")] == ["FAIL", "FAIL"]
    assert told("running").state.name == "RUNNING"


def test_running_out_of_memory_is_a_constraint_and_no_loss() -> None:
    found = told("infeasible")
    assert (found.state.name, found.value) == ("PRUNED", None)
    assert found.constraints == {MEMORY: 1.0}


def test_the_model_keeps_away_from_what_does_not_fit() -> None:
    """Batch size 32 never fits: among equally good others it is proposed less often than by chance."""
    history = []
    for index in range(40):
        params, _ = study.suggest(question(sampler="random", seed=index))
        fits = params["batch_size"] != 32
        history.append(Past(params=params, state="complete" if fits else "infeasible", value=1.0 if fits else None))
    sizes = [study.suggest(question(seed=seed, past=history))[0]["batch_size"] for seed in range(20)]
    assert sizes.count(32) <= 2


def test_a_question_survives_the_pipe_to_the_child() -> None:
    asked = question(sampler="gp", past=past(2))
    back = study.question_from_json(json.loads(json.dumps(dataclasses.asdict(asked))))
    assert back == dataclasses.replace(asked, past=tuple(asked.past))
