"""What a model took on this machine before is what a forecast is made of."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Engine

from orchestrator import forecast, paces, trials
from orchestrator.contract import Settings
from orchestrator.launch import launch
from tests.database import studies


def test_without_a_past_the_forecast_is_a_rule_of_thumb(engine: Engine, tmp_path: Path) -> None:
    prepared = studies.prepared(studies.write(tmp_path))
    assert paces.forecast_of(engine, prepared).basis == "formula"


def test_seconds_of_the_same_model_make_the_forecast(engine: Engine, tmp_path: Path) -> None:
    prepared = studies.prepared(studies.write(tmp_path))
    studies.launched(engine, tmp_path)
    who = studies.worker(engine)
    while (taken := trials.take(engine, who, ["s"])) is not None:
        studies.train(engine, *taken, seconds=4.0)  # each epoch
    found = paces.forecast_of(engine, prepared)
    assert found.basis == "history"
    assert found.trial_seconds is not None
    epoch = forecast.passes(replace(Settings(), epochs=1), 2, forecast.Given(rows=1))
    size = len(prepared.snapshot.content)
    assert paces.pass_seconds(engine, prepared.model.pin, "cpu", size) == pytest.approx(4.0 / epoch)
    trial = 2 * 3 * 4.0  # two folds of three epochs
    low, high = forecast.FROM_HISTORY
    assert (found.trial_seconds.low, found.trial_seconds.high) == pytest.approx((trial * low, trial * high))
    assert str(found).startswith("forecast: about ")
    assert "(as this model took before)" in str(found)


def test_another_model_and_another_machine_say_nothing(engine: Engine, tmp_path: Path) -> None:
    prepared = studies.prepared(studies.write(tmp_path))
    studies.launched(engine, tmp_path)
    studies.train_all(engine, studies.worker(engine), "s")
    size = len(prepared.snapshot.content)
    assert paces.pass_seconds(engine, "0" * 64, "cpu", size) is None
    assert paces.pass_seconds(engine, prepared.model.pin, "cuda", size) is None
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE worker SET host = 'elsewhere'")
    assert paces.pass_seconds(engine, prepared.model.pin, "cpu", size) is None


def test_twice_the_rows_take_twice_as_long(engine: Engine, tmp_path: Path) -> None:
    prepared = studies.prepared(studies.write(tmp_path))
    studies.launched(engine, tmp_path)
    studies.train_all(engine, studies.worker(engine), "s")
    once, twice = (paces.pass_seconds(engine, prepared.model.pin, "cpu", size) for size in (500, 1000))
    assert once is not None
    assert twice == pytest.approx(2 * once)


def test_of_several_models_each_has_a_past_of_its_own(engine: Engine, tmp_path: Path) -> None:
    path = studies.write(tmp_path)
    shutil.copytree(tmp_path / "model", tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text('{"model_type": "roberta"}')
    path.write_text(path.read_text().replace("model: {path: ./model}", "model: [./model, ./other]"))
    prepared = studies.prepared(path)
    assert paces.forecast_of(engine, prepared).basis == "formula"
    launch(engine, prepared)
    who = studies.worker(engine)
    while (taken := trials.take(engine, who, ["s"])) is not None:
        studies.train(engine, *taken, seconds=2.0 if taken[1].model == "./model" else 8.0)
    size = len(prepared.snapshot.content)
    seconds = [paces.pass_seconds(engine, pin.pin, "cpu", size) for pin in prepared.models]
    assert seconds[0] is not None
    assert seconds[1] == pytest.approx(4 * seconds[0])
    found = paces.forecast_of(engine, prepared)
    assert found.basis == "history"
    assert found.trial_seconds is not None
    assert found.trial_seconds.low == pytest.approx(2 * 3 * 5.0 * forecast.FROM_HISTORY[0])
