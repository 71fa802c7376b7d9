"""A unit that stops early: its last result says which epoch counts, and whatever reads results goes by it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from orchestrator import control, queries, reading, trials, view
from orchestrator.contract import Outcome
from orchestrator.database.engine import transaction
from orchestrator.records import Lease
from tests.database import studies
from tests.database.test_reading import validate

TRAINING = "training: {epochs: 6, patience: 2}\n"
CURVE = (0.9, 0.4, 0.6, 0.8)  # the second epoch is the best, and two later ones are no better


def launched(engine: Engine, folder: Path, **options: Any) -> None:
    studies.launched(engine, folder, **{"texts": 80, "more": TRAINING, **options})


def report(engine: Engine, lease: Lease, curve: tuple[float, ...], chosen: int | None) -> None:
    """Every epoch of the curve; the last one names the epoch that counts."""
    for epoch, loss in enumerate(curve, start=1):
        done = studies.epoch_done(lease, epoch=epoch, loss=loss + lease.fold / 100)
        trials.report(engine, lease, [replace(done, chosen=chosen if epoch == len(curve) else None)])


def take(engine: Engine, worker: int) -> Lease:
    taken = trials.take(engine, worker, ["s"])
    assert taken is not None
    return taken[1]


def train_all(engine: Engine) -> None:
    worker = studies.worker(engine)
    while (taken := trials.take(engine, worker, ["s"])) is not None:
        report(engine, taken[1], CURVE, 2)
        trials.finish(engine, "s", taken[1], studies.end(taken[1]))


def states(engine: Engine, lease: Lease) -> list[tuple[object, ...]]:
    return studies.rows(engine, f"SELECT state::text, epoch FROM unit WHERE id = {lease.unit}")


def test_the_value_and_every_fold_are_of_the_epoch_that_counts(engine: Engine, tmp_path: Path) -> None:
    launched(engine, tmp_path)
    train_all(engine)
    assert studies.rows(engine, "SELECT DISTINCT state::text, value FROM trial") == [("complete", pytest.approx(0.405))]
    assert studies.rows(engine, "SELECT DISTINCT state::text, epoch FROM unit") == [("done", 2)]
    seen = reading.view(engine, "s")
    best = reading.best(seen)
    validate(best, "best")
    assert best is not None
    assert [(fold["epoch"], fold["loss"]) for fold in best["folds"]] == [
        (2, pytest.approx(0.4)),
        (2, pytest.approx(0.41)),
    ]
    assert best["settings"]["epochs"] == 6
    assert view.live(seen)


def test_a_worker_that_vanished_after_its_last_result_left_a_unit_that_is_done(engine: Engine, tmp_path: Path) -> None:
    launched(engine, tmp_path)
    worker = studies.worker(engine)
    stopped, stopping = take(engine, worker), take(engine, worker)
    report(engine, stopped, CURVE, 2)
    report(engine, stopping, CURVE, None)  # has two epochs without a lower loss on its validation rows, and goes on
    for lease in (stopped, stopping):
        studies.expire(engine, lease)
    again = take(engine, worker)
    assert states(engine, stopped) == [("done", 2)]
    assert again.unit == stopping.unit
    assert studies.rows(engine, f"SELECT cause FROM attempt WHERE unit = {stopped.unit}") == [("done",)]


def test_an_end_without_its_last_result_is_trained_again(engine: Engine, tmp_path: Path) -> None:
    launched(engine, tmp_path)
    lease = take(engine, studies.worker(engine))
    report(engine, lease, CURVE[:3], None)
    trials.finish(engine, "s", lease, studies.end(lease))
    assert states(engine, lease) == [("waiting", None)]


def test_a_released_or_cancelled_unit_that_has_all_its_results_is_done(engine: Engine, tmp_path: Path) -> None:
    launched(engine, tmp_path)
    worker = studies.worker(engine)
    released, cancelled = take(engine, worker), take(engine, worker)
    for lease in (released, cancelled):
        report(engine, lease, CURVE, 2)
    trials.finish(engine, "s", released, studies.end(released, Outcome.DROPPED))
    control.stop(engine, "s")
    control.resume(engine, "s")
    assert states(engine, released) == states(engine, cancelled) == [("done", 2)]


def test_what_counts_is_settled_once(engine: Engine, tmp_path: Path) -> None:
    """A later lease that trained it anew, on a machine that rounds otherwise, changes neither result nor choice."""
    launched(engine, tmp_path)
    worker = studies.worker(engine)
    lease = take(engine, worker)
    report(engine, lease, CURVE, 2)
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE unit SET state = 'waiting', expires_at = NULL WHERE id = :id"), {"id": lease.unit}
        )
    later = take(engine, worker)
    assert later.unit == lease.unit
    report(engine, later, tuple(loss / 2 for loss in CURVE), 3)
    trials.finish(engine, "s", later, studies.end(later))
    assert states(engine, lease) == [("done", 2)]
    with transaction(engine) as connection:
        found = queries.fold_results(connection, lease.study, [lease.trial])
    assert [(each.epoch, each.tallies["nats"]) for each in found] == [(2, pytest.approx(0.4 * 6))]


@given(
    curves=st.lists(st.lists(st.floats(0.1, 2.0), min_size=1, max_size=6), min_size=2, max_size=2),
    picks=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
)
@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_value_is_pooled_over_each_folds_own_epoch(
    curves: list[list[float]], picks: tuple[float, float], engine: Engine, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with suppress(queries.NoStudy):
        control.delete(engine, "s")
    launched(engine, tmp_path_factory.mktemp("study"))
    worker, chosen = (
        studies.worker(engine),
        [int(pick * len(curve)) + 1 for pick, curve in zip(picks, curves, strict=True)],
    )
    leases = [take(engine, worker) for _ in range(2)]
    for lease in leases:
        report(engine, lease, tuple(curves[lease.fold]), chosen[lease.fold])
        trials.finish(engine, "s", lease, studies.end(lease))
    expected = sum(curves[fold][chosen[fold] - 1] + fold / 100 for fold in (0, 1)) / 2
    query = f"SELECT state::text, value FROM trial WHERE id = {leases[0].trial}"
    assert studies.rows(engine, query) == [("complete", pytest.approx(expected))]


# --- racing -----------------------------------------------------------------------------------------------------


def raced(engine: Engine, folder: Path, curve: tuple[float, ...], chosen: int | None, training: str = TRAINING) -> str:
    """State of a trial whose first fold reported this, beside a default configuration with 0.5 on every fold."""
    launched(engine, folder, folds=3, more=f"{training}racing: {{rule: forgiving}}\n")
    worker = studies.worker(engine)
    for _ in range(3):
        lease = take(engine, worker)
        assert lease.settings.learning_rate == 2e-4
        report(engine, lease, (0.6, 0.5, 0.9, 0.9), 2)
        trials.finish(engine, "s", lease, studies.end(lease))
    lease = take(engine, worker)
    report(engine, lease, curve, chosen)
    if chosen is not None:
        trials.finish(engine, "s", lease, studies.end(lease))
    return str(studies.rows(engine, f"SELECT state::text FROM trial WHERE id = {lease.trial}")[0][0])


def test_racing_judges_a_fold_by_the_epoch_that_counts(engine: Engine, tmp_path: Path) -> None:
    assert raced(engine, tmp_path, (0.9, 0.51, 3.0, 3.0), 2) == "running"


def test_racing_stops_what_is_worse_at_the_epoch_that_counts(engine: Engine, tmp_path: Path) -> None:
    """Its best epoch on the validation rows would have been good enough; the one that counts is not."""
    assert raced(engine, tmp_path, (0.2, 0.8, 0.3, 0.3), 2) == "stopped"


def test_a_fold_past_its_best_epoch_is_not_hopeless(engine: Engine, tmp_path: Path) -> None:
    assert raced(engine, tmp_path, (0.4, 3.0, 4.0), None) == "running"


def test_without_patience_it_is(engine: Engine, tmp_path: Path) -> None:
    """The same course of a trial that trains all its epochs; the default configuration is the one to beat here too."""
    launched(
        engine, tmp_path, folds=3, also="patience: [0, 1]", more="training: {epochs: 6}\nracing: {rule: forgiving}\n"
    )
    worker, found = studies.worker(engine), {}
    while len(found) < 2:
        lease = take(engine, worker)
        is_default = lease.settings.learning_rate == 2e-4
        report(engine, lease, (0.5,) * 6 if is_default else (0.4, 3.0, 4.0), 2 if is_default else None)
        if is_default:
            trials.finish(engine, "s", lease, studies.end(lease))
        elif lease.settings.patience not in found:
            query = f"SELECT state::text FROM trial WHERE id = {lease.trial}"
            found[lease.settings.patience] = studies.rows(engine, query)[0][0]
    assert found == {0: "stopped", 1: "running"}
