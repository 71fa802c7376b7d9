"""Studies that search the model: pins, configurations, and which unit a worker gets that has one of them open."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import optuna
import pytest
from sqlalchemy import Engine

from orchestrator import launch, queries, reading, study, trials
from orchestrator.database.engine import transaction
from orchestrator.errors import FoldtuneError
from orchestrator.records import Lease, StudyRecord
from orchestrator.waiting import Opened
from tests.database import studies


def write(folder: Path, **options: Any) -> Path:
    """A study of two models, whose weights differ."""
    path = studies.write(folder, **options)
    shutil.rmtree(folder / "other", ignore_errors=True)
    shutil.copytree(folder / "model", folder / "other")
    (folder / "other" / "model.safetensors").write_bytes(b"others")
    path.write_text(path.read_text().replace("model: {path: ./model}", "model: [./model, ./other]"), encoding="utf-8")
    return path


def launched(engine: Engine, folder: Path, **options: Any) -> StudyRecord:
    launch.launch(engine, studies.prepared(write(folder, **options)))
    with transaction(engine) as connection:
        return queries.study(connection, "s")


def take(engine: Engine, who: int, opened: Opened | None, held: list[Lease]) -> Lease | None:
    taken = trials.take(engine, who, ["s"], held=[lease.token for lease in held], opened=opened)
    if taken is None:
        return None
    held.append(taken[1])
    return taken[1]


def test_every_model_is_pinned_and_is_part_of_a_configuration(engine: Engine, tmp_path: Path) -> None:
    record = launched(engine, tmp_path)
    assert list(record.models) == ["./model", "./other"]
    assert record.pin(None) == record.pin("./model") == record.model
    assert record.pin("./other").pin != record.model.pin
    counted = studies.rows(engine, "SELECT count(*), count(DISTINCT configuration) FROM trial")
    assert counted == [(9, 9)]  # eight points and the default configuration, which is none of them
    point = {"model": "./model", "batch_size": 8, "learning_rate": 1e-3}
    assert record.configuration(point) != record.configuration({**point, "model": "./other"})
    assert record.settings(point) == record.settings({**point, "model": "./other"})


def test_models_of_equal_weights_are_one_configuration(engine: Engine, tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / "other" / "model.safetensors").write_bytes(b"weights")
    launch.launch(engine, studies.prepared(path))
    studies.train_all(engine, studies.worker(engine), "s")
    assert studies.rows(engine, "SELECT count(*) FROM unit") == [(5 * 2,)]
    assert studies.rows(engine, "SELECT count(*) FROM trial WHERE state = 'complete'") == [(9,)]


def test_changed_weights_of_the_second_model_are_refused(engine: Engine, tmp_path: Path) -> None:
    launched(engine, tmp_path)
    (tmp_path / "other" / "model.safetensors").write_bytes(b"changed")
    with pytest.raises(FoldtuneError, match=r"the weights of \./other"):
        launch.launch(engine, studies.prepared(tmp_path / "s.yaml"))


def test_a_lease_says_which_model_and_those_without_one_have_the_first(engine: Engine, tmp_path: Path) -> None:
    launched(engine, tmp_path, baselines="majority")
    who, held = studies.worker(engine), list[Lease]()
    while take(engine, who, None, held):
        pass
    by_trial = {lease.trial: lease.model for lease in held}
    shown = dict(studies.rows(engine, "SELECT id, params->>'model' FROM trial"))
    assert {by_trial[trial] for trial, model in shown.items() if model == "./other"} == {"./other"}
    assert {by_trial[trial] for trial, model in shown.items() if model != "./other"} == {"./model"}
    assert None in shown.values()  # the baseline


def test_a_study_of_one_model_has_leases_without(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path)
    lease = take(engine, studies.worker(engine), Opened("./elsewhere", only=True), [])
    assert lease is not None
    assert lease.model is None


@pytest.mark.parametrize("racing", ["", "racing: {rule: forgiving}"])
def test_a_worker_gets_units_of_the_model_that_it_has_open_first(engine: Engine, tmp_path: Path, racing: str) -> None:
    """Two workers, each with a model open, without a switch while units of that model wait."""
    launched(engine, tmp_path, more=racing)
    loads: dict[str, list[str]] = {"./model": [], "./other": []}
    workers = {model: studies.worker(engine) for model in loads}
    opened = {model: Opened(model) for model in loads}
    done = 0
    while trained := sum(_one(engine, workers[who], opened, who, loads[who]) for who in loads):
        done += trained
    assert done == 18 or (racing and done >= 10)  # racing stops some in the middle
    assert studies.rows(engine, "SELECT count(*) FROM trial WHERE state IN ('waiting', 'running')") == [(0,)]
    switches = {who: sum(a != b for a, b in itertools.pairwise(seen)) for who, seen in loads.items()}
    assert loads["./other"][0] == "./other"
    assert max(switches.values()) <= (1 if not racing else 2)


def _one(engine: Engine, who: int, opened: dict[str, Opened], name: str, seen: list[str]) -> int:
    taken = trials.take(engine, who, ["s"], opened=opened[name])
    if taken is None:
        return 0
    record, lease = taken
    assert lease.model is not None
    opened[name] = Opened(lease.model)
    seen.append(lease.model)
    studies.train(engine, record, lease)
    return 1


@pytest.mark.parametrize("racing", ["", "racing: {rule: forgiving}"])
def test_while_units_of_one_model_train_no_other_is_taken(engine: Engine, tmp_path: Path, racing: str) -> None:
    launched(engine, tmp_path, more=racing)
    who, held = studies.worker(engine), list[Lease]()
    while take(engine, who, Opened("./other", only=True), held):
        pass
    assert {lease.model for lease in held} == {"./other"}
    assert len(held) == 8 if not racing else len(held) >= 4  # under racing others' first folds go before further ones
    assert take(engine, who, Opened("./other"), held) is not None
    assert held[-1].model == "./model" or racing


def test_suggestions_of_another_model_are_not_drawn_in_stock(engine: Engine, tmp_path: Path) -> None:
    """What is drawn and waits is no reason to draw again: the whole budget would be drawn blindly."""
    launched(engine, tmp_path, sampler="tpe", rates=studies.RANGE, budget="{trials: 20}")
    who, held = studies.worker(engine), list[Lease]()
    while take(engine, who, Opened("./model", only=True), held):
        assert len(held) < 60
    waiting = studies.rows(engine, "SELECT count(*) FROM trial WHERE state = 'waiting'")
    assert waiting[0][0] <= 1
    assert {lease.model for lease in held} == {"./model"}


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_optuna_and_people_see_the_model_as_the_file_has_it(engine: Engine, tmp_path: Path, sampler: str) -> None:
    launched(engine, tmp_path, sampler=sampler, budget="{trials: 12}", rates=studies.RANGE)
    studies.train_all(engine, studies.worker(engine), "s")
    found = optuna.load_study(study_name="s", storage=study.storage(engine.url))
    searched = [trial for trial in found.trials if trial.user_attrs["origin"] != "default"]
    assert {trial.params["model"] for trial in searched} == {"./model", "./other"}
    best = reading.best(reading.view(engine, "s"))
    assert best is not None
    assert best["params"]["model"] == found.best_trial.params["model"]
