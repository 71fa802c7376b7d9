"""What is read only in part, or remembered, says the same as all of it; and the benchmark's made past is a real one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from benchmarks.overhead import history as made
from benchmarks.overhead import study as simulated
from benchmarks.overhead import worker as simulation
from orchestrator import control, history, projection, queries, study, trials, words
from orchestrator.database.engine import transaction
from tests.database import studies

FORGIVING = "racing: {rule: forgiving}\ntraining: {epochs: 2}\n"


def past(engine: Engine, *, anew: bool = False) -> list[Any]:
    if anew:
        history._known.clear()
    with transaction(engine) as connection:
        return history.past_of(connection, queries.study(connection, "s"))


def test_what_was_read_before_equals_what_is_read_anew(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path, sampler="tpe", rates=studies.RANGE, budget="{trials: 6}", more=FORGIVING)
    worker = studies.worker(engine)
    while (taken := trials.take(engine, worker, ["s"])) is not None:
        before = past(engine)
        assert past(engine, anew=True) == before
        studies.train(engine, *taken)
        after = past(engine)
        assert past(engine, anew=True) == after
    assert len(past(engine)) == 6 + 1


def test_a_trial_that_waits_again_is_read_again(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path, sampler="random", rates=studies.RANGE, budget="{trials: 2}")
    worker = studies.worker(engine)
    trials.take(engine, worker, ["s"])
    control.stop(engine, "s")
    assert {each.state for each in past(engine)} == {"cancelled"}
    control.resume(engine, "s")
    assert past(engine) == []
    studies.train_all(engine, worker, "s")
    assert {each.state for each in past(engine)} == {"complete"}


def test_a_past_of_the_same_id_and_another_time_is_read_again(engine: Engine, tmp_path: Path) -> None:
    """As after a failover that lost the last commits."""
    studies.launched(engine, tmp_path)
    studies.train_all(engine, studies.worker(engine), "s")
    before = past(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE trial SET closed_at = closed_at + interval '1 s', value = 7 WHERE id = 2"))
    assert before != past(engine) == past(engine, anew=True)


def test_of_a_long_past_the_sampler_knows_a_part() -> None:
    assert {history.stride(trials, 1000) for trials in (0, 1, 2000)} == {1}
    assert [history.stride(trials, 1000) for trials in (2001, 4000, 4001, 10_000)] == [2, 2, 4, 8]
    assert [history.stride(10_000, complete) for complete in (24, 25)] == [1, 8]


def test_what_the_sampler_knows_of_a_long_past(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open trials, the best, and of the others evenly many."""
    kind = simulated.Kind(sampler="tpe", racing="forgiving")
    simulated.begin(engine, tmp_path, kind, 400)
    with transaction(engine) as connection:
        record = queries.study(connection, kind.name)
    made.fill(engine, record, 200)
    with transaction(engine) as connection:
        everything = history.past_of(connection, record)
    monkeypatch.setattr(history, "KNOWN", 50)
    with transaction(engine) as connection:
        known = history.past_of(connection, record)
    assert len(everything) == 200
    assert 25 < len(known) < 75 + history.BEST + 20
    places = [everything.index(each) for each in known]
    assert places == sorted(places)
    assert sum(each.state == "running" for each in known) == sum(each.state == "running" for each in everything) == 20
    values = [each.value for each in everything if each.value is not None]
    assert sorted(each.value for each in known if each.value is not None)[:25] == sorted(values)[:25]
    with transaction(engine) as connection:
        assert history.past_of(connection, record) == known  # the same ones every time


@pytest.mark.parametrize("objective", ["validation_loss", "accuracy"])
def test_parts_say_what_the_whole_says(engine: Engine, tmp_path: Path, objective: str) -> None:
    studies.launched(engine, tmp_path, rates="[1e-3, 2e-3, 1e-2]", more=f"objective: {objective}\n{FORGIVING}")
    worker = studies.worker(engine)
    while True:
        with transaction(engine) as connection:
            record = queries.study(connection, "s")
            every = queries.trials(connection, record.id)
            best = queries.best_trials(connection, record.id, 2, maximize=record.spec.maximize)
            counts = queries.counts(connection, record.id)
            default = queries.default_trials(connection, record.id)
        assert best[:1] == [trial for trial in [words.best_trial(record, every)] if trial is not None]
        assert default == [trial for trial in every if trial.is_default]
        assert sum(counts.values()) == len(every)
        assert set(counts) == {(trial.state, trial.searched) for trial in every}
        searched = {state: count for (state, of_search), count in counts.items() if of_search}
        note = words.study_note_of(record, searched, next(iter(best), None), default[0], None)
        assert note == words.study_note(record, every)
        if (taken := trials.take(engine, worker, ["s"])) is None:
            break
        studies.train(engine, *taken)
    assert len(best) == 2


def test_an_optuna_trial_that_a_person_deleted_is_made_anew(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path)
    worker = studies.worker(engine)
    studies.train_all(engine, worker, "s")
    study.delete(engine.url, "s")
    with engine.begin() as connection:
        connection.execute(text("UPDATE study SET noted = NULL"))
    projection.project(engine, "s")
    storage = study.storage(engine.url)
    shown = storage.get_all_trials(storage.get_study_id_from_name("s"))
    assert [trial.state.name for trial in shown] == ["COMPLETE"] * 4


@pytest.mark.parametrize("name", ["random", "tpe_forgiving", "grid"])
def test_a_study_with_a_made_past_goes_on(engine: Engine, tmp_path: Path, name: str) -> None:
    """As the benchmark's workers take it: nothing of it is repaired, and new trials follow."""
    sampler, _, racing = name.partition("_")
    kind = simulated.Kind(sampler=sampler, racing=racing or "none")
    simulated.begin(engine, tmp_path, kind, 100)
    with transaction(engine) as connection:
        record = queries.study(connection, kind.name)
    made.fill(engine, record, 40, planned=3 if sampler == "grid" else 0)
    before = studies.rows(engine, "SELECT id, number, state::text, value, told FROM trial WHERE closed_at IS NOT NULL")
    projection.project(engine, kind.name)
    worker = studies.worker(engine)
    for _ in range(7):
        taken = trials.take(engine, worker, [kind.name])
        assert taken is not None
        for epoch in (1, 2):
            trials.report(engine, taken[1], [simulation.epoch_done(taken[1], epoch)])
        trials.finish(
            engine,
            kind.name,
            taken[1],
            simulation.UnitEnded(unit=taken[1].unit, lease_epoch=taken[1].epoch, outcome=simulation.Outcome.DONE),
        )
    after = studies.rows(engine, "SELECT id, number, state::text, value, told FROM trial WHERE closed_at IS NOT NULL")
    assert set(before) <= set(after)
    assert len(after) > len(before)
    storage = study.storage(engine.url)
    shown = storage.get_all_trials(storage.get_study_id_from_name(kind.name))
    ours = dict(studies.rows(engine, "SELECT number, state::text FROM trial WHERE number IS NOT NULL"))
    told = {"complete": "COMPLETE", "stopped": "PRUNED", "running": "RUNNING"}
    assert {trial.number: trial.state.name for trial in shown} == {at: told[state] for at, state in ours.items()}
    assert studies.rows(engine, "SELECT state::text FROM study") == [("open",)]
    pooled = studies.rows(
        engine,
        "SELECT max(abs(value - (SELECT sum((tallies->>'nats')::float) / sum((tallies->>'items')::float) FROM result r "
        "JOIN unit u ON u.id = r.unit WHERE u.trial = t.id AND r.epoch = 2))) FROM trial t WHERE state = 'complete'",
    )
    assert pooled[0][0] < 1e-9
