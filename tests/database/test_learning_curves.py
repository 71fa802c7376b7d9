"""Learning curves from the database: in JSON, in the words for people, and on the dashboard."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from sqlalchemy import Engine, text

from orchestrator import projection, queries, reading, study, trials, view
from orchestrator.database.engine import transaction
from orchestrator.records import Lease, StudyRecord
from tests.database import studies
from tests.database.test_reading import validate

VALIDATION = (0.9, 0.5, 0.7)  # after epochs 1, 2 and 3, where it overfits


def train(engine: Engine, record: StudyRecord, lease: Lease, losses: tuple[float, ...]) -> None:
    """Training loss is half of what validation loss is at first, and then falls by a tenth each epoch."""
    for epoch in range(1, lease.settings.epochs + 1):
        done = studies.epoch_done(lease, epoch=epoch, loss=losses[epoch - 1] + lease.fold / 100)
        trials.report(engine, lease, [replace(done, train_loss=0.55 - epoch / 10)])
    trials.finish(engine, record.name, lease, studies.end(lease))


def train_all(engine: Engine, best: float = 1e-3) -> None:
    """Every trial overfits, and the rate of the best is known."""
    worker = studies.worker(engine)
    while (taken := trials.take(engine, worker, ["s"])) is not None:
        record, lease = taken
        if lease.settings.method != "lora":
            done = replace(studies.epoch_done(lease, epoch=1), train_loss=math.nan)
            trials.report(engine, lease, [done])
            trials.finish(engine, "s", lease, studies.end(lease))
            continue
        mine = (lease.settings.learning_rate, lease.settings.batch_size) == (best, 4)
        train(engine, record, lease, VALIDATION if mine else (2.0, 1.0, 0.8))


def figures(engine: Engine) -> dict[str, Any]:
    """What optuna-dashboard reads, by its own code."""
    from optuna_dashboard._custom_plot_data import get_plotly_graph_objects

    storage = study.storage(engine.url)
    attributes = storage.get_study_system_attrs(storage.get_study_id_from_name("s"))
    return {name: json.loads(figure) for name, figure in get_plotly_graph_objects(attributes).items()}


def test_the_best_trial_says_its_gap_and_where_it_overfits(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path)
    train_all(engine)
    seen = reading.view(engine, "s")
    found = reading.best(seen)
    validate(found, "best")
    assert found is not None
    assert found["value"] == pytest.approx(0.705)
    assert found["train_loss"] == pytest.approx(0.25)
    assert found["gap"] == pytest.approx(0.455)
    assert found["overfitting"] == {"onset": 2, "end": 3, "rise": pytest.approx(0.2), "fall": pytest.approx(0.1)}
    said = (
        "Its training loss is 0.2500, 0.4550 below its validation loss of 0.7050. It overfits after epoch 2: by epoch "
        "3 the validation loss has risen by 0.2000, while the training loss has fallen by 0.1000."
    )
    assert said in view.conclusions(seen)
    attributes = dict(studies.rows(engine, "SELECT key, value_json FROM public.study_system_attributes"))
    assert "training loss is 0.2500" in attributes["dashboard:note_str:0"]


def test_a_trials_note_has_its_curve_by_epoch_and_by_fold(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path)
    train_all(engine)
    best = next(trial for trial in reading.view(engine, "s").trials if trial.value == pytest.approx(0.705))
    query = "SELECT trial_id FROM public.trials WHERE number = :number"
    with engine.connect() as connection:
        trial = connection.execute(text(query), {"number": best.number}).scalar_one()
    attributes = dict(studies.rows(engine, "SELECT key, value_json FROM public.study_system_attributes"))
    note = json.loads(attributes[f"dashboard:{trial}:note_str:0"])
    assert "| 0 | 1 | 3 | 6 | 0.7100 | 0.5000 | 0.5100 at epoch 2 | 0.2500 |" in note
    assert "| 2 | 0.3500 | 0.5050 | 0.1550 |\n| 3 | 0.2500 | 0.7050 | 0.4550 |" in note


def test_status_has_every_metric_of_every_fold_and_epoch_where_it_is_asked(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path, baselines="majority")
    worker = studies.worker(engine)
    for _ in range(2):  # the baseline, whose training loss is NaN
        taken = trials.take(engine, worker, ["s"])
        assert taken is not None
        trials.report(engine, taken[1], [replace(studies.epoch_done(taken[1], epoch=1), train_loss=math.nan)])
        trials.finish(engine, "s", taken[1], studies.end(taken[1]))
    taken = trials.take(engine, worker, ["s"])
    assert taken is not None
    trials.report(engine, taken[1], [studies.epoch_done(taken[1], epoch=1, loss=0.75)])
    seen = reading.view(engine, "s", every_curve=True)
    told = reading.status(seen) | {"curves": reading.all_curves(seen)}
    validate(told, "status")
    assert "NaN" not in json.dumps(told)
    (mine,) = told["curves"]
    assert mine["epochs"] == []  # pooled over finished folds, and there is none
    (fold,) = mine["folds"]
    assert not fold["done"]
    (epoch,) = fold["epochs"]
    assert (epoch["epoch"], epoch["train_loss"], epoch["validation_loss"]) == (1, 0.75, 0.75)
    assert epoch["metrics"]["accuracy"] == 0.5
    train_all(engine)
    seen = reading.view(engine, "s", every_curve=True)
    validate(reading.status(seen) | {"curves": reading.all_curves(seen)}, "status")
    screen = Console(width=140, record=True)
    screen.print(view.curves(seen))
    assert "epoch 2" in screen.export_text()
    assert "majority" not in screen.export_text(clear=False)


def test_a_run_that_answers_for_fewer_epochs_is_their_curve_up_to_there(engine: Engine, tmp_path: Path) -> None:
    more = "share_epochs: true\ntraining: {lr_schedule: constant, warmup_ratio: 0}"
    studies.launched(engine, tmp_path, also="epochs: [2, 3]", more=more)
    train_all(engine)
    seen = reading.view(engine, "s", every_curve=True)
    short = [trial for trial in seen.trials if trial.epoch == 2]
    assert len(short) == 4
    assert all([each.epoch for each in seen.curve(trial)] == [1, 2] for trial in short)
    assert reading.best(seen)["overfitting"] is None  # type: ignore[index]


def test_the_dashboard_has_the_curves_of_the_best_trial_and_the_default(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path)
    train_all(engine)
    (figure,) = figures(engine).values()
    names = [line["name"] for line in figure["data"] if line.get("showlegend", True)]
    best = reading.view(engine, "s").best
    assert best is not None
    assert names == [
        f"trial {best.number} (best): validation",
        f"trial {best.number} (best): training",
        "default: validation",
        "default: training",
    ]
    assert figure["data"][2]["y"] == pytest.approx([0.905, 0.505, 0.705])


def test_a_figure_is_drawn_anew_only_when_it_shows_others(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path)
    worker = studies.worker(engine)
    before: list[tuple[str, int]] = []
    while (taken := trials.take(engine, worker, ["s"])) is not None:
        studies.train(engine, *taken)
        query = "SELECT value_json, xmin FROM public.study_system_attributes WHERE key = 'foldtune:plotted:{}'"
        shows = studies.rows(engine, query.format(projection.CURVES))
        if shows and shows != before[-1:]:
            assert [each[0] for each in before[-1:]] != [shows[0][0]], "written again, and nothing had changed"
            before += shows
    assert 2 <= len(before) <= 4
    with transaction(engine) as connection:
        best = queries.best_trials(connection, 1, 1, maximize=False)
    assert f"{best[0].key}={best[0].name}" in before[-1][0]


def test_a_shorter_figure_leaves_nothing_of_a_longer_one(engine: Engine) -> None:
    shown = study.open_projection(engine.url, "s", "validation_loss", maximize=False, attributes={})
    for points in (2000, 3, 900):
        study.save_plot(shown, "curves", {"data": [{"y": [0.125] * points}], "layout": {}}, str(points))
        assert figures(engine)["curves"]["data"][0]["y"] == [0.125] * points
        assert study.plotted(shown, "curves") == str(points)
    with pytest.raises(ValueError, match="not JSON compliant"):
        study.save_plot(shown, "curves", {"data": [{"y": [math.nan]}], "layout": {}}, "")
