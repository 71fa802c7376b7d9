"""`share_epochs`: one run answers for all numbers of epochs, under racing too, and all see which epoch counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from sqlalchemy import Engine

from orchestrator import control, reading, study, trials
from orchestrator.records import Lease
from tests.database import studies

TRAINING = "share_epochs: true\ntraining: {lr_schedule: constant, warmup_ratio: 0}\n"
FORGIVING = TRAINING + "racing: {rule: forgiving}\n"
EPOCHS = "epochs: [1, 2, 4]"
CURVE = {1: 0.9, 2: 0.3, 3: 0.1, 4: 0.5}  # best at 3, which the space does not have; then at 2


def by_curve(lease: Lease, epoch: int) -> float:
    if lease.settings.epochs == 3:  # the default configuration, which trains its own epochs
        return 0.6
    return CURVE[epoch] + lease.settings.learning_rate + lease.settings.batch_size / 1000 + lease.fold / 100


def train_all(engine: Engine, loss: Callable[[Lease, int], float] = by_curve) -> list[Lease]:
    """Train what there is to train with one worker; the leases in order."""
    worker, done = studies.worker(engine), []
    while (taken := trials.take(engine, worker, ["s"])) is not None:
        lease = taken[1]
        for epoch in range(1, lease.settings.epochs + 1):
            told = studies.epoch_done(lease, epoch=epoch, loss=loss(lease, epoch))
            trials.report(engine, lease, [told])
        trials.finish(engine, "s", lease, studies.end(lease))
        done.append(lease)
    return done


def shown(engine: Engine) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="s", storage=study.storage(engine.url)).trials


def test_a_grid_trains_each_family_once_and_gives_every_point_its_own_epochs_result(
    engine: Engine, tmp_path: Path
) -> None:
    studies.launched(engine, tmp_path, also=EPOCHS, more=TRAINING)
    leases = train_all(engine)
    searched = [lease for lease in leases if lease.settings.learning_rate != 2e-4]
    assert len(searched) == 4 * 2  # families of (rate, batch size), two folds each, and not 12 points
    assert {lease.settings.epochs for lease in searched} == {4}
    points = studies.rows(engine, "SELECT params, CAST(state AS text), value FROM trial WHERE searched")
    assert len(points) == 12
    for params, state, value in points:
        assert state == "complete"
        expected = CURVE[params["epochs"]] + params["learning_rate"] + params["batch_size"] / 1000 + 0.005
        assert value == pytest.approx(expected)
    assert studies.rows(engine, "SELECT CAST(state AS text) FROM study") == [("complete",)]


def test_optuna_has_every_point_of_a_grid_with_its_epochs(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path, also=EPOCHS, more=TRAINING)
    train_all(engine)
    seen = shown(engine)
    assert sorted((t.params["learning_rate"], t.params["batch_size"], t.params["epochs"]) for t in seen) == sorted(
        (rate, size, epochs) for rate in (1e-3, 1e-2) for size in (4, 8) for epochs in (1, 2, 4)
    )
    assert all(t.value == pytest.approx(CURVE[t.params["epochs"]], abs=0.03) for t in seen)


def test_the_best_point_of_a_grid_may_be_one_that_another_run_answered_for(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path, also=EPOCHS, more=TRAINING)
    train_all(engine)
    found = reading.best(reading.view(engine, "s"))
    assert found is not None
    assert (found["params"]["epochs"], found["settings"]["epochs"]) == (2, 2)
    assert found["value"] == pytest.approx(0.3 + 1e-3 + 0.004 + 0.005)
    assert [fold["loss"] for fold in found["folds"]] == pytest.approx([0.3 + 1e-3 + 0.004, 0.3 + 1e-3 + 0.014])


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_sampler_proposes_the_rest_and_one_epoch_counts_for_all_folds(
    engine: Engine, tmp_path: Path, sampler: str
) -> None:
    budget = "{trials: 6}"
    options: dict[str, Any] = {"sampler": sampler, "rates": studies.RANGE, "budget": budget}
    studies.launched(engine, tmp_path, also=EPOCHS, more=TRAINING, **options)
    leases = train_all(engine)
    assert {lease.settings.epochs for lease in leases} == {3, 4}  # of the default configuration its own
    rows = studies.rows(engine, "SELECT epoch, params->>'epochs', value FROM trial WHERE searched")
    assert [row[:2] for row in rows] == [(2, "4")] * 6
    assert all(0.3 < value < 0.5 for _, _, value in rows)
    ended = [trial for trial in shown(engine) if trial.state.name == "COMPLETE"]
    assert [trial.params["epochs"] for trial in ended] == [2] * 6
    found = reading.best(reading.view(engine, "s"))
    assert found is not None
    assert (found["params"]["epochs"], found["settings"]["epochs"]) == (2, 2)


def test_the_note_says_which_epoch_counts(engine: Engine, tmp_path: Path) -> None:
    options: dict[str, Any] = {"sampler": "random", "rates": studies.RANGE, "budget": "{trials: 1}"}
    studies.launched(engine, tmp_path, also=EPOCHS, more=TRAINING, **options)
    train_all(engine)
    one = optuna.load_study(study_name="s", storage=study.storage(engine.url))
    notes = one._storage.get_study_system_attrs(one._study_id).values()
    assert any("of this trial epoch 2 counts, for every fold" in str(note) for note in notes)


def test_racing_judges_a_run_by_its_best_epoch(engine: Engine, tmp_path: Path) -> None:
    """Its last epoch would be worse than the incumbent's worst fold, its second is the best of all."""
    options: dict[str, Any] = {"sampler": "random", "rates": studies.RANGE, "budget": "{trials: 3}", "folds": 3}
    studies.launched(engine, tmp_path, also=EPOCHS, more=FORGIVING, **options)

    def overfits(lease: Lease, epoch: int) -> float:
        if lease.settings.epochs == 3:  # the default configuration
            return 0.6
        return {1: 0.8, 2: 0.2, 3: 2.0, 4: 3.0}[epoch] + lease.fold / 100

    train_all(engine, overfits)
    rows = studies.rows(engine, "SELECT CAST(state AS text), epoch FROM trial WHERE searched")
    assert rows == [("complete", 2)] * 3


def test_racing_stops_a_family_whose_every_epoch_is_behind(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path, also=EPOCHS, more=FORGIVING, folds=3)

    def behind(lease: Lease, epoch: int) -> float:
        return (5.0 if lease.settings.learning_rate == 1e-2 else 0.0) + by_curve(lease, epoch)

    leases = train_all(engine, behind)
    states = studies.rows(
        engine, "SELECT params->>'learning_rate', CAST(state AS text), count(*) FROM trial WHERE searched GROUP BY 1, 2"
    )
    assert sorted(states) == [("0.001", "complete", 6), ("0.01", "stopped", 6)]
    assert len([lease for lease in leases if lease.settings.learning_rate == 1e-2]) < 6
    assert studies.rows(engine, "SELECT count(*) FROM trial WHERE searched AND NOT told") == [(0,)]


def test_a_run_that_answers_for_the_default_configuration_is_never_raced(engine: Engine, tmp_path: Path) -> None:
    options: dict[str, Any] = {"rates": "[2e-4, 1e-3]", "folds": 3}
    studies.launched(engine, tmp_path, also="epochs: [3, 4]", more=FORGIVING, **options)

    def behind(lease: Lease, epoch: int) -> float:
        return (5.0 if lease.settings.learning_rate == 2e-4 else 0.0) + by_curve(lease, epoch)

    train_all(engine, behind)
    default = studies.rows(engine, "SELECT CAST(state AS text), run IS NOT NULL, epoch FROM trial WHERE is_default")
    assert default == [("complete", True, 3)]


def test_a_grid_that_is_stopped_and_resumed_ends_as_an_undisturbed_one(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path, also=EPOCHS, more=TRAINING)
    worker = studies.worker(engine)
    taken = trials.take(engine, worker, ["s"])
    assert taken is not None
    control.stop(engine, "s")
    assert studies.rows(engine, "SELECT DISTINCT CAST(state AS text) FROM trial") == [("cancelled",)]
    control.resume(engine, "s")
    train_all(engine)
    assert studies.rows(engine, "SELECT DISTINCT CAST(state AS text) FROM trial") == [("complete",)]
    assert studies.rows(engine, "SELECT count(*) FROM trial WHERE value IS NULL") == [(0,)]
