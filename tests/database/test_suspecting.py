"""`foldtune suspects` reads out-of-fold predictions of the best trials, at the epoch that counts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from sqlalchemy import Engine

from orchestrator import queries, suspecting, trials
from orchestrator.contract import pack_floats
from orchestrator.database.engine import transaction
from orchestrator.errors import FoldtuneError
from orchestrator.records import Lease, StudyRecord
from tests.database import studies

SCHEMA = Path(__file__).parents[2] / "docs" / "schemas" / "suspects.schema.json"
WRONG = 5  # row 5 is "b" as every odd row; the models say "a"


def report(engine: Engine, record: StudyRecord, lease: Lease, *, logits: bool) -> None:
    """Both classes are known for sure but for one row; the first epoch is wrong about everything."""
    validation = record.plan.split(lease.repeat, lease.fold)[1]
    for epoch in range(1, lease.settings.epochs + 1):
        last = epoch == lease.settings.epochs
        said: list[float] = []
        for row in validation:
            sure = [2.0, -2.0] if row % 2 == (row == WRONG) else [-2.0, 2.0]
            said += sure if last else sure[::-1]
        nats = [8.0 if row == WRONG else 0.5 + row / 100 for row in validation]
        done = studies.epoch_done(lease, epoch=epoch, loss=studies.loss_of(lease) / epoch, items=len(validation))
        predictions = replace(
            done.predictions,
            nats=pack_floats(nats),
            counts=pack_floats([1.0] * len(validation)),
            logits=half(said) if logits and last else None,
        )
        trials.report(engine, lease, [replace(done, predictions=predictions)])
    trials.finish(engine, record.name, lease, studies.end(lease))


def half(values: list[float]) -> str:
    import base64

    import numpy as np

    return base64.b64encode(np.array(values, "<f2").tobytes()).decode()


def judged(engine: Engine, folder: Path, *, logits: bool = True, **options: Any) -> dict[str, Any] | None:
    studies.launched(engine, folder, **options)
    who = studies.worker(engine)
    while (taken := trials.take(engine, who, ["s"])) is not None:
        report(engine, *taken, logits=logits)
    found = suspecting.find(engine, "s", 20)
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8"))).validate(found)
    return found


def test_the_row_that_the_best_trials_contradict_is_the_suspect(engine: Engine, tmp_path: Path) -> None:
    found = judged(engine, tmp_path)
    assert found is not None
    assert (found["judged_by"], found["count"], found["rows"], len(found["trials"])) == ("classes", 1, 12, 3)
    (one,) = found["suspects"]
    assert (one["row"], one["text"], one["label"], one["models_say"]) == (WRONG + 1, "text 5", "b", "a")
    assert one["loss"] == pytest.approx(8.0)
    assert one["probability"] == pytest.approx(1 - one["models_probability"])
    assert one["models_probability"] == pytest.approx(0.982, abs=1e-3)


def test_every_repeat_of_a_row_counts(engine: Engine, tmp_path: Path) -> None:
    path = studies.write(tmp_path)
    path.write_text(path.read_text().replace("{folds: 2}", "{folds: 2, repeats: 2}"))
    from orchestrator.launch import launch

    launch(engine, studies.prepared(path))
    who = studies.worker(engine)
    while (taken := trials.take(engine, who, ["s"])) is not None:
        report(engine, *taken, logits=True)
    with transaction(engine) as connection:
        record = queries.study(connection, "s")
        best = queries.best_trials(connection, record.id, 1, maximize=False)[0]
        seen = suspecting.averaged(connection, record, [best.id])
    assert seen.losses[WRONG] == pytest.approx(8.0)
    assert seen.losses[4] == pytest.approx(0.54)


def test_without_logits_the_losses_judge(engine: Engine, tmp_path: Path) -> None:
    found = judged(engine, tmp_path, logits=False)
    assert found is not None
    assert found["judged_by"] == "losses"
    assert [(one["row"], one["models_say"]) for one in found["suspects"]] == [(WRONG + 1, None)]


def test_before_a_trial_is_complete_nobody_is_suspect(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path)
    assert suspecting.find(engine, "s", 20) is None
    with pytest.raises(FoldtuneError, match="no study named 'none'"):
        suspecting.find(engine, "none", 20)


def test_of_several_labels_the_one_in_question_is_named(engine: Engine, tmp_path: Path) -> None:
    path = studies.write(tmp_path)
    rows = [{"text": f"text {n}", "label": ["a"] if n % 2 == 0 else ["b"]} for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    path.write_text(path.read_text().replace("classification", "multi_label"))
    from orchestrator.launch import launch

    launch(engine, studies.prepared(path))
    who = studies.worker(engine)
    while (taken := trials.take(engine, who, ["s"])) is not None:
        report(engine, *taken, logits=True)
    found = suspecting.find(engine, "s", 20)
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8"))).validate(found)
    assert found is not None
    (one,) = found["suspects"]
    assert (one["row"], one["label"]) == (WRONG + 1, '["b"]')
    assert one["models_say"] in ("a", "not b")
    assert one["probability"] == pytest.approx(1 - one["models_probability"])
    assert one["models_probability"] == pytest.approx(0.881, abs=1e-3)
