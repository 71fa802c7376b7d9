"""Two trials of a study, compared from its database: the same rows, an interval, and words that say what it means."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from sqlalchemy import Engine

from orchestrator import contrast, trials
from orchestrator.contract import pack_floats
from orchestrator.errors import FoldtuneError
from orchestrator.records import Lease, StudyRecord
from tests.acceptance.commands import foldtune
from tests.database import studies

SCHEMA = json.loads(
    (Path(__file__).parents[2] / "docs" / "schemas" / "compare.schema.json").read_text(encoding="utf-8")
)


def report(engine: Engine, record: StudyRecord, lease: Lease, *, better: float) -> None:
    """Rows of their own difficulty; learning rate 1e-2 is so much better on each, batches of four hardly."""
    _, validation = record.plan.split(lease.repeat, lease.fold)
    gain = better if lease.settings.learning_rate == 1e-2 else 0.0
    noise = [np.sin(7 * row + lease.settings.batch_size) / 50 for row in validation]
    nats = [2.0 + row % 5 / 2 - gain + own for row, own in zip(validation, noise, strict=True)]
    done = studies.epoch_done(lease, epoch=lease.settings.epochs, loss=float(np.mean(nats)), items=len(nats))
    predictions = replace(done.predictions, nats=pack_floats(nats), counts=pack_floats([1.0] * len(nats)))
    trials.report(engine, lease, studies.all_up_to(replace(done, predictions=predictions)))
    trials.finish(engine, record.name, lease, studies.end(lease))


@pytest.fixture
def compared(engine: Engine, tmp_path: Path) -> Engine:
    studies.launched(engine, tmp_path, texts=30, rates="[1e-3, 1e-2]")
    who = studies.worker(engine)
    while (taken := trials.take(engine, who, ["s"])) is not None:
        report(engine, *taken, better=0.4)
    return engine


def test_the_best_is_told_from_the_default_configuration(compared: Engine) -> None:
    found = contrast.find(compared, "s", None, None)
    assert found is not None
    jsonschema.Draft202012Validator(SCHEMA).validate(found)
    best, default = found["trials"]
    assert (best["params"]["learning_rate"], default["name"]) == (1e-2, "default")
    gap = found["difference"]
    assert gap["low"] < gap["value"] < gap["high"] < 0
    assert gap["value"] == pytest.approx(-0.4, abs=0.02)
    assert gap["value"] == pytest.approx(best["loss"]["value"] - default["loss"]["value"])
    assert gap["high"] - gap["low"] < (best["loss"]["high"] - best["loss"]["low"]) / 5  # paired
    said = f"On these rows trial {best['name']} is better than the default configuration, by {-gap['value']:.4f} nats"
    assert found["verdict"] == f"{said} per item."
    assert found["corrected_t"]["freedom"] == len(found["folds"]) - 1
    assert contrast.find(compared, "s", "default", best["name"])["difference"]["value"] == pytest.approx(-gap["value"])


def test_what_hardly_differs_cannot_be_told_apart_and_the_best_is_named(compared: Engine) -> None:
    best = contrast.find(compared, "s", "best", None)["trials"][0]["name"]
    query = "SELECT number::text FROM trial WHERE params->>'learning_rate' = '0.01'"
    names = [name for (name,) in studies.rows(compared, query)]
    [other] = [name for name in names if name != best]
    found = contrast.find(compared, "s", other, "best")
    assert found["verdict"] == f"These rows cannot tell trial {other} from trial {best}."
    assert found["best"]["of"] == 5
    assert found["best"]["contenders"] >= 2
    assert found["best"]["loss"]["value"] > found["trials"][1]["loss"]["value"]
    assert contrast.find(compared, "s", other, "default")["best"] is None


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ("17", None, r"the study has no trial '17'"),
        ("defualt", None, r"no trial 'defualt'\n.*did you mean 'default'"),
        ("default", "default", r"the default configuration cannot be compared with itself"),
    ],
)
def test_a_trial_that_is_none_is_one_message(compared: Engine, one: str, other: str | None, message: str) -> None:
    with pytest.raises(FoldtuneError, match=message):
        contrast.find(compared, "s", one, other)


def test_the_command_shows_a_table_words_and_json(compared: Engine, storage: str) -> None:
    done = foldtune("compare", "s", OPTUNA_STORAGE=storage)
    assert done.returncode == 0, done.stderr
    assert "95 % interval" in done.stdout
    assert "is better than the default configuration" in done.stdout
    assert "Corrected resampled t-test over the folds" in done.stdout
    assert "The best of 5 was chosen by these very rows, and looks better than it is: expect " in done.stdout
    assert json.loads(foldtune("compare", "s", "--json", OPTUNA_STORAGE=storage).stdout) == contrast.find(
        compared, "s", None, None
    )


def test_before_a_trial_is_complete_there_is_nothing_to_compare(engine: Engine, storage: str, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path)
    assert contrast.find(engine, "s", None, None) is None
    done = foldtune("compare", "s", OPTUNA_STORAGE=storage)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no trial is complete yet" in done.stderr


def test_too_few_rows_are_said_to_be_too_few() -> None:
    none = {"value": 0.4, "low": None, "high": None}
    assert contrast.verdict("trial 1", "trial 2", none) == "Too few rows to compare trial 1 with trial 2."
