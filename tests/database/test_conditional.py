"""Studies whose hyperparameters wait for others: what the tables, Optuna and readers have of them."""

from __future__ import annotations

import io
from pathlib import Path

import optuna
import pytest
from rich.console import Console
from sqlalchemy import Engine

from orchestrator import launch, reading, space, study, view
from tests.database import studies

WAITING = "method: [lora, head]\n    lora_rank: {choices: [4, 8], when: {method: lora}}"


def shown(engine: Engine) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="s", storage=study.storage(engine.url)).trials


def activated(params: dict[str, object]) -> bool:
    return ("lora_rank" in params) == (params["method"] == "lora")


@pytest.mark.parametrize("sampler", ["grid", "tpe", "random"])
def test_optuna_has_of_each_trial_what_is_active_and_the_values_it_had(
    engine: Engine, tmp_path: Path, sampler: str
) -> None:
    budget = "{}" if sampler == "grid" else "{trials: 12}"
    studies.launched(engine, tmp_path, sampler=sampler, also=WAITING, budget=budget)
    studies.train_all(engine, studies.worker(engine), "s")
    seen = reading.view(engine, "s")
    trials = {trial.number: trial for trial in seen.trials if trial.searched}
    assert len(trials) == 12
    assert {trial.params["method"] for trial in trials.values()} == {"lora", "head"}
    found = {trial.number: trial for trial in shown(engine)}
    for number, trial in trials.items():
        assert activated(dict(trial.params))
        assert found[number].params == trial.params
        assert list(found[number].distributions) == list(trial.params)
        assert type(found[number].params["batch_size"]) is int
        assert found[number].state.name == "COMPLETE"
    entries = seen.record.spec.space
    expected = space.distributions(entries)
    assert all(kind == expected[name] for trial in found.values() for name, kind in trial.distributions.items())


def test_a_configuration_is_trained_once_whatever_is_inactive_in_it(engine: Engine, tmp_path: Path) -> None:
    """Four points with a head alone, eight with adapters; the default configuration is beside them."""
    studies.launched(engine, tmp_path, also=WAITING)
    counted = studies.rows(engine, "SELECT count(*), count(DISTINCT configuration) FROM trial WHERE origin = 'grid'")
    assert counted == [(12, 12)]
    [(settings,)] = studies.rows(
        engine, "SELECT DISTINCT settings->>'lora_rank' FROM trial WHERE params->>'method' = 'head'"
    )
    assert settings == "16"  # the field's default: no point of the grid


def test_what_is_inactive_is_blank_for_people_and_absent_in_json(engine: Engine, tmp_path: Path) -> None:
    studies.launched(
        engine,
        tmp_path,
        also=WAITING.replace("when: {method: lora}", "when: {method: head}").replace(
            "lora_rank: {choices: [4, 8]", "dropout: {choices: [0.1234]"
        ),
    )
    studies.train_all(engine, studies.worker(engine), "s")
    seen = reading.view(engine, "s")
    best = reading.best(seen)
    assert best is not None
    assert ("dropout" in best["params"]) == (best["params"]["method"] == "head")
    assert "dropout" in best["settings"]
    console = Console(file=io.StringIO(), width=200)
    console.print(view._trials_table(seen))
    lines = [line for line in console.file.getvalue().splitlines() if " complete " in line]
    assert {("0.1234" in line) == ("head" in line) for line in lines} == {True}
    assert any("head" in line for line in lines)
    assert any("lora" in line for line in lines)


def test_launching_a_study_with_conditions_again_changes_nothing(engine: Engine, tmp_path: Path) -> None:
    path = studies.write(tmp_path, also=WAITING)
    assert launch.launch(engine, studies.prepared(path)).created
    assert not launch.launch(engine, studies.prepared(path)).created
