"""What the reading verbs print has the shape that docs/schemas promise."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
from sqlalchemy import Engine

from orchestrator import reading, trials
from tests.database import studies

SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"


def validate(value: object, name: str) -> None:
    schema = json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(json.loads(json.dumps(value)))


def test_json_has_its_schema_before_during_and_after_a_study(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path)
    for _ in range(3):
        seen = reading.view(engine, "s")
        validate(reading.status(seen), "status")
        validate(reading.best(seen), "best")
        validate({"studies": reading.studies(engine)}, "list")
        taken = trials.take(engine, studies.worker(engine), ["s"])
        if taken is not None:
            studies.train(engine, *taken)
        studies.train_all(engine, studies.worker(engine), "s")


def test_the_forecast_is_the_pace_so_far_and_nothing_before_the_first_fold(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path)
    assert reading.seconds_to_go(reading.view(engine, "s")) is None
    taken = trials.take(engine, studies.worker(engine), ["s"])
    assert taken is not None
    studies.train(engine, *taken)
    seen = reading.view(engine, "s")
    left = reading.seconds_to_go(seen)
    assert left is not None
    assert abs(left - seen.elapsed * 9) < 1e-6  # one of ten folds is done
    studies.train_all(engine, studies.worker(engine), "s")
    assert reading.seconds_to_go(reading.view(engine, "s")) is None
