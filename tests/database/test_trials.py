"""The life of a trial: taken once, fenced, told to Optuna, reproducible from the database alone."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from orchestrator import control, leases, lifecycle, projection, queries, reading, study, trials
from orchestrator.contract import Outcome
from orchestrator.errors import UNAVAILABLE, FoldtuneError
from orchestrator.leases import Fenced
from orchestrator.records import Lease
from tests.database import studies


def shown(engine: Engine, name: str = "s") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=study.storage(engine.url))


def take(engine: Engine, worker: int) -> Lease:
    taken = trials.take(engine, worker, ["s"])
    assert taken is not None
    return taken[1]


def renew(engine: Engine, lease: Lease) -> None:
    """Renew one lease; a lost one is raised."""
    for fenced in leases.renew(engine, [lease]).lost:
        raise fenced


def test_every_grid_point_is_trained_exactly_once_by_four_workers_at_once(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path)
    leased: list[Lease] = []

    def work() -> None:
        leased.extend(studies.train_all(engine, studies.worker(engine), "s"))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(leased) == len({lease.unit for lease in leased}) == 10
    assert studies.rows(engine, "SELECT state::text, count(*) FROM trial GROUP BY 1") == [("complete", 5)]
    assert studies.rows(engine, "SELECT state::text FROM study") == [("complete",)]
    params = [tuple(sorted(trial.params.items())) for trial in shown(engine).trials]
    assert len(params) == len(set(params)) == 4
    assert all(trial.state == TrialState.COMPLETE for trial in shown(engine).trials)


def test_the_budget_is_a_total_over_all_workers(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path, sampler="random", rates=studies.RANGE, budget="{trials: 7}")
    threads = [
        threading.Thread(target=lambda: studies.train_all(engine, studies.worker(engine), "s")) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert studies.rows(engine, "SELECT count(*) FROM trial WHERE searched") == [(7,)]
    assert studies.rows(engine, "SELECT state::text FROM study") == [("complete",)]


def test_further_folds_of_open_trials_come_before_new_trials(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path, folds=3)
    worker = studies.worker(engine)
    taken = [take(engine, worker) for _ in range(6)]
    assert [lease.trial for lease in taken] == [taken[0].trial] * 3 + [taken[3].trial] * 3


def test_a_model_based_sampler_has_at_most_a_fifth_of_its_trials_open(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path, sampler="tpe", rates=studies.RANGE, budget="{trials: 10}")
    worker = studies.worker(engine)
    taken = []
    while (found := trials.take(engine, worker, ["s"])) is not None:
        taken.append(found[1])
    searched = studies.rows(engine, "SELECT count(*) FROM trial WHERE searched AND state = 'running'")
    assert searched == [(2,)]
    assert len(taken) == (2 + 1) * 2  # and the default configuration, which no cap holds back


def test_a_lost_lease_writes_nothing(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path)
    late, other = studies.worker(engine), studies.worker(engine)
    lost = take(engine, late)
    studies.expire(engine, lost)
    owner = take(engine, other)
    assert (owner.unit, owner.attempt) == (lost.unit, 2)
    assert owner.epoch > lost.epoch
    for write in (
        lambda: trials.report(engine, lost, [studies.epoch_done(lost, epoch=1)]),
        lambda: trials.finish(engine, "s", lost, studies.end(lost)),
        lambda: renew(engine, lost),
    ):
        with pytest.raises(Fenced, match="nothing was written"):
            write()
    assert studies.rows(engine, "SELECT count(*) FROM result") == [(0,)]
    trials.finish(engine, "s", lost, studies.end(lost, Outcome.DROPPED))
    assert studies.rows(engine, f"SELECT state::text FROM unit WHERE id = {owner.unit}") == [("leased",)]


def test_an_expired_lease_counts_even_if_nobody_took_the_unit_yet(engine: Engine, tmp_path: Path) -> None:
    """The owner may go on: nobody else can have begun."""
    studies.launched(engine, tmp_path)
    lease = take(engine, studies.worker(engine))
    studies.expire(engine, lease)
    assert trials.report(engine, lease, [studies.epoch_done(lease, epoch=1)])


def test_an_accepted_result_is_never_replaced(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path)
    lease = take(engine, studies.worker(engine))
    assert trials.report(engine, lease, [studies.epoch_done(lease, epoch=1, loss=0.5)])
    assert not trials.report(engine, lease, [studies.epoch_done(lease, epoch=1, loss=0.1)])
    assert studies.rows(engine, "SELECT train_loss FROM result") == [(0.5,)]
    with pytest.raises(DBAPIError, match="never replaced"), engine.begin() as connection:
        connection.execute(text("UPDATE result SET train_loss = 0"))


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE trial SET state = 'running', value = NULL WHERE state = 'complete'", "cannot become running"),
        ("UPDATE unit SET state = 'waiting' WHERE state = 'done'", "cannot become waiting"),
        ("UPDATE unit SET lease_epoch = 0", "never falls"),
    ],
)
def test_the_database_refuses_what_must_not_happen(
    engine: Engine, tmp_path: Path, statement: str, message: str
) -> None:
    studies.launched(engine, tmp_path)
    studies.train_all(engine, studies.worker(engine), "s")
    with pytest.raises(DBAPIError, match=message), engine.begin() as connection:
        connection.execute(text(statement))


def test_a_released_unit_is_taken_again_uncharged(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path)
    worker = studies.worker(engine)
    lease = take(engine, worker)
    trials.finish(engine, "s", lease, studies.end(lease, Outcome.DROPPED, "the worker left"))
    assert take(engine, worker).unit == lease.unit
    assert studies.rows(engine, f"SELECT charges FROM unit WHERE id = {lease.unit}") == [(0,)]


def test_a_unit_that_fails_three_times_has_failed_for_good_and_the_study_goes_on(
    engine: Engine, tmp_path: Path
) -> None:
    studies.launched(engine, tmp_path)
    worker = studies.worker(engine)
    poison = take(engine, worker)
    order = [poison.unit]
    trials.finish(engine, "s", poison, studies.end(poison, Outcome.FAILED, "ValueError: no"))
    while (taken := trials.take(engine, worker, ["s"])) is not None:
        record, lease = taken
        order.append(lease.unit)
        if lease.unit == poison.unit:
            trials.finish(engine, "s", lease, studies.end(lease, Outcome.FAILED, "ValueError: no"))
        else:
            studies.train(engine, record, lease)
    blameless = [unit for unit in order if unit != poison.unit]
    assert order[0] == order[-1] == order[-2] == poison.unit  # again only when nothing blameless waits
    assert len(blameless) == len(set(blameless)) == 8  # with it its trial failed, before the other fold was trained
    [failure] = reading.failures(engine, "s")
    assert (failure["state"], failure["reason"]) == ("failed", "ValueError: no")
    assert studies.rows(engine, "SELECT state::text, count(*) FROM trial GROUP BY 1 ORDER BY 2") == [
        ("failed", 1),
        ("complete", 4),
    ]
    assert studies.rows(
        engine, f"SELECT number, cause, charged, worker FROM attempt WHERE unit = {poison.unit} ORDER BY 1"
    ) == [(number, "exception", True, worker) for number in (1, 2, 3)]


@pytest.mark.parametrize(
    ("outcome", "state", "told"),
    [
        (Outcome.DIVERGED, "diverged", TrialState.PRUNED),
        (Outcome.INFEASIBLE, "infeasible", TrialState.PRUNED),
        (Outcome.OVER_BUDGET, "cancelled", TrialState.FAIL),
    ],
)
def test_an_outcome_closes_the_trial_and_optuna_is_told_in_its_own_words(
    engine: Engine, tmp_path: Path, outcome: Outcome, state: str, told: TrialState
) -> None:
    studies.launched(engine, tmp_path)
    worker = studies.worker(engine)
    studies.train(engine, *trials.take(engine, worker, ["s"]))  # type: ignore[misc]  # a fold of the default
    studies.train(engine, *trials.take(engine, worker, ["s"]))  # type: ignore[misc]
    lease = take(engine, worker)
    other = take(engine, worker)
    trials.finish(engine, "s", lease, studies.end(lease, outcome, "loss inf at step 412"))
    assert studies.rows(engine, f"SELECT state::text, reason FROM trial WHERE id = {lease.trial}") == [
        (state, "loss inf at step 412")
    ]
    with pytest.raises(Fenced, match="its trial was closed"):
        renew(engine, other)
    [trial] = [trial for trial in shown(engine).trials if trial.state != TrialState.RUNNING]
    assert trial.state == told
    assert trial.intermediate_values == {}


def test_a_value_that_is_not_finite_is_an_outcome_not_a_number(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path)
    worker = studies.worker(engine)
    for _ in range(2):
        lease = take(engine, worker)
        trials.report(engine, lease, studies.all_up_to(studies.epoch_done(lease, epoch=lease.settings.epochs, items=0)))
        trials.finish(engine, "s", lease, studies.end(lease))
    assert studies.rows(engine, f"SELECT state::text, value FROM trial WHERE id = {lease.trial}") == [
        ("diverged", None)
    ]


def test_a_suggestion_that_repeats_a_configuration_is_told_from_the_existing_result(
    engine: Engine, tmp_path: Path
) -> None:
    """A space of four configurations and a budget of six trials."""
    studies.launched(engine, tmp_path, sampler="random", budget="{trials: 6}")
    done = studies.train_all(engine, studies.worker(engine), "s")
    configurations = [lease.configuration for lease in done if lease.fold == 0]
    assert len(configurations) == len(set(configurations)) <= 5
    counted = studies.rows(engine, "SELECT count(*), count(duplicate_of) FROM trial WHERE searched")
    assert counted[0][0] == 6
    assert counted[0][1] >= 2
    assert all(trial.state == TrialState.COMPLETE for trial in shown(engine).trials)
    assert len(shown(engine).trials) == 6
    assert studies.rows(engine, "SELECT state::text FROM study") == [("complete",)]


def test_suggestions_depend_on_seed_and_history_not_on_the_worker(engine: Engine, tmp_path: Path) -> None:
    names = []
    for name in ("first", "second"):
        studies.launched(engine, tmp_path, name=name, sampler="tpe", rates=studies.RANGE, budget="{trials: 8}")
        studies.train_all(engine, studies.worker(engine), name)
        names.append(name)
    first, second = ([trial.params for trial in shown(engine, name).trials] for name in names)
    assert first == second
    assert (
        len({tuple(params.values()) for params in first}) == 8 + 1
    )  # and the default configuration, which lies in the space


def test_most_of_a_tpe_study_is_suggested_by_the_model(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path, sampler="tpe", rates=studies.RANGE, budget="{trials: 12}")
    studies.train_all(engine, studies.worker(engine), "s")
    counts = dict(studies.rows(engine, "SELECT origin, count(*) FROM trial WHERE searched GROUP BY origin"))
    assert counts["model"] >= 6
    assert sum(counts.values()) == 12


def test_optuna_shows_numbers_folds_and_words(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path)
    studies.train_all(engine, studies.worker(engine), "s")
    seen = reading.view(engine, "s")
    for trial in seen.trials:
        if trial.number is None:
            assert trial.is_default
            continue
        projected = shown(engine).trials[trial.number]
        assert projected.params == trial.params
        assert projected.value == trial.value
        assert list(projected.intermediate_values) == [1, 2]
        assert projected.intermediate_values[2] == pytest.approx(trial.value)
        assert projected.user_attrs["validation_loss"] == pytest.approx(trial.value, abs=1e-5)
    assert isinstance(shown(engine).trials[0].params["learning_rate"], float)
    storage = study.storage(engine.url)
    attributes = storage.get_study_system_attrs(storage.get_study_id_from_name("s"))
    notes = " ".join(str(value) for value in attributes.values())
    assert "**Best.** Trial" in notes
    assert "A point of the grid: learning_rate" in notes


@pytest.mark.parametrize("crash_before", ["tell", "start"])
def test_a_crash_between_the_tables_and_optuna_heals_itself(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_before: str
) -> None:
    studies.launched(engine, tmp_path)
    worker = studies.worker(engine)

    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(study, "show_end" if crash_before == "tell" else "show_start", crash)
        with pytest.raises(KeyboardInterrupt):
            studies.train_all(engine, worker, "s")
    studies.expire_all(engine)
    studies.train_all(engine, worker, "s")
    assert [trial.state for trial in shown(engine).trials] == [TrialState.COMPLETE] * 4


def test_a_crash_after_optuna_heard_starts_no_second_optuna_trial(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path)
    worker = studies.worker(engine)
    while take(engine, worker).configuration and len(shown(engine).trials) == 0:
        pass
    with engine.begin() as connection:  # as if the process had died before it wrote the number down
        connection.execute(text("UPDATE trial SET number = NULL WHERE number IS NOT NULL"))
    projection.project(engine, "s")
    assert len(shown(engine).trials) == 1
    assert studies.rows(engine, "SELECT count(*) FROM trial WHERE number = 0") == [(1,)]


def test_an_optuna_trial_that_nobody_stands_behind_is_ended(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path)
    shown(engine).ask()
    studies.train_all(engine, studies.worker(engine), "s")
    assert shown(engine).trials[0].state == TrialState.FAIL


def test_stop_keeps_finished_folds_and_resume_goes_on_from_them(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path)
    worker = studies.worker(engine)
    for _ in range(3):
        studies.train(engine, *trials.take(engine, worker, ["s"]))  # type: ignore[misc]
    held = take(engine, worker)
    control.stop(engine, "s")
    with pytest.raises(Fenced):
        renew(engine, held)
    assert trials.take(engine, worker, ["s"]) is None
    states = reading.status(reading.view(engine, "s"))
    assert (states["state"], states["trials"]["cancelled"]) == ("stopped", 4)
    control.resume(engine, "s")
    trained = studies.train_all(engine, worker, "s")
    assert len(trained) == 10 - 3
    assert reading.status(reading.view(engine, "s"))["trials"]["complete"] == 4
    ended = [trial for trial in shown(engine).trials if trial.state == TrialState.COMPLETE]
    assert len(ended) == 4


def test_resume_raises_the_budget_as_a_total(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path, sampler="random", rates=studies.RANGE, budget="{trials: 2}")
    worker = studies.worker(engine)
    studies.train_all(engine, worker, "s")
    assert trials.take(engine, worker, ["s"]) is None
    with pytest.raises(FoldtuneError, match="2 trials exist"):
        control.resume(engine, "s", trials=1)
    control.resume(engine, "s", trials=3)
    studies.train_all(engine, worker, "s")
    assert studies.rows(engine, "SELECT count(*) FROM trial WHERE searched") == [(3,)]


def test_used_up_hours_end_the_study_and_more_hours_resume_it(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path, budget="{hours: 0.01}")
    worker = studies.worker(engine)
    taken = 0
    while (found := trials.take(engine, worker, ["s"])) is not None:
        record, lease = found
        assert lease.seconds_left is not None
        assert lease.seconds_left <= 36
        studies.train(engine, record, lease, seconds=3.0)  # 9 s each: 3 epochs
        taken += 1
    assert taken == 4  # a fifth unit could not have ended its first epoch within 36 s
    status = reading.status(reading.view(engine, "s"))
    assert status["state"] == "complete"
    assert status["budget"]["hours"] == {"used": pytest.approx(0.01), "total": 0.01}
    control.resume(engine, "s", hours=1.0)
    assert len(studies.train_all(engine, worker, "s")) == 6


@pytest.mark.parametrize(
    "budget", [{"hours": float("nan")}, {"hours": float("inf")}, {"hours": 2e6}, {"hours": -1.0}, {"trials": 10**6}]
)
def test_a_budget_that_no_study_file_may_have_is_refused_before_it_is_written(
    engine: Engine, tmp_path: Path, budget: dict[str, Any]
) -> None:
    """Written, it would make the study unreadable for every later command."""
    studies.launched(engine, tmp_path, sampler="random", rates=studies.RANGE, budget="{trials: 2}")
    with pytest.raises(FoldtuneError, match=f"--{next(iter(budget))} must be"):
        control.resume(engine, "s", **budget)
    assert reading.status(reading.view(engine, "s"))["state"] == "open"


@pytest.mark.parametrize("outcome", [Outcome.DONE, Outcome.DIVERGED, Outcome.FAILED])
def test_an_end_that_is_told_twice_is_written_once(engine: Engine, tmp_path: Path, outcome: Outcome) -> None:
    """The answer to the first telling was lost; that is no lost lease, and the trainer need not die for it."""
    studies.launched(engine, tmp_path)
    lease = take(engine, studies.worker(engine))
    trials.report(engine, lease, studies.all_up_to(studies.epoch_done(lease, epoch=lease.settings.epochs)))
    for _ in range(2):
        trials.finish(engine, "s", lease, studies.end(lease, outcome, "why\x00"))
    assert studies.rows(engine, f"SELECT charges, reason FROM unit WHERE id = {lease.unit}") == [
        (int(outcome == Outcome.FAILED), "why\N{REPLACEMENT CHARACTER}")
    ]


def test_a_report_that_is_sent_twice_costs_its_seconds_once_and_an_epoch_trained_anew_costs_them_again(
    engine: Engine, tmp_path: Path
) -> None:
    studies.launched(engine, tmp_path)
    worker = studies.worker(engine)
    lease = take(engine, worker)
    for _ in range(2):
        trials.report(engine, lease, [studies.epoch_done(lease, epoch=1, seconds=3.0)])
    assert studies.rows(engine, "SELECT sum(seconds) FROM unit") == [(3.0,)]
    trials.finish(engine, "s", lease, studies.end(lease, Outcome.DROPPED, "the worker left"))
    trials.report(engine, take(engine, worker), [studies.epoch_done(lease, epoch=1, seconds=3.0)])
    assert studies.rows(engine, "SELECT sum(seconds) FROM unit") == [(6.0,)]


def test_a_unit_is_leased_only_where_an_epoch_has_room_beside_those_that_run(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path, sampler="random", rates=studies.RANGE, budget="{trials: 9, hours: 0.01}")
    worker = studies.worker(engine)
    studies.train(engine, *trials.take(engine, worker, ["s"]), seconds=6.0)  # type: ignore[misc]
    leased = [trials.take(engine, worker, ["s"]) for _ in range(5)]
    assert [found is not None for found in leased] == [True] * 3 + [False] * 2  # 18 s are left, for 6 s each
    assert reading.status(reading.view(engine, "s"))["trials"]["cancelled"] == 0


def test_a_lease_is_kept_when_optuna_cannot_be_told_now(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studies.launched(engine, tmp_path)
    worker = studies.worker(engine)

    def away(*_: object, **__: object) -> None:
        raise FoldtuneError("Postgres is away", code=UNAVAILABLE)

    with monkeypatch.context() as patch:
        patch.setattr(projection, "project", away)
        lease = take(engine, worker)
    studies.train(engine, reading.view(engine, "s").record, lease)
    studies.train_all(engine, worker, "s")
    assert [trial.state for trial in shown(engine).trials] == [TrialState.COMPLETE] * 4


def test_a_study_that_is_deleted_meanwhile_stops_nobody_else(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path)
    studies.launched(engine, tmp_path, name="other")
    worker = studies.worker(engine)
    held = take(engine, worker)
    control.delete(engine, "s")
    with pytest.raises(queries.NoStudy):
        trials.finish(engine, "s", held, studies.end(held))
    taken = trials.take(engine, worker, ["s", "other"])
    assert taken is not None
    assert taken[0].name == "other"


def test_best_is_reproduced_from_the_database_alone(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path)
    assert reading.best(reading.view(engine, "s")) is None
    studies.train_all(engine, studies.worker(engine), "s")
    best = reading.best(reading.view(engine, "s"))
    assert best is not None
    losses = [fold["loss"] * fold["n"] for fold in best["folds"]]
    assert best["value"] == pytest.approx(sum(losses) / sum(fold["n"] for fold in best["folds"]))
    assert best["params"] == {"learning_rate": 1e-3, "batch_size": 4}
    assert best["settings"]["epochs"] == 3
    assert best["settings"]["lora_alpha"] == 32.0
    values = [trial.value for trial in reading.view(engine, "s").trials]
    assert best["value"] == min(value for value in values if value is not None)


def test_deleting_a_study_removes_every_row_and_the_optuna_study(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path)
    studies.train_all(engine, studies.worker(engine), "s")
    control.delete(engine, "s")
    for table in ("study", "snapshot", "trial", "unit", "result"):
        assert studies.rows(engine, f"SELECT count(*) FROM {table}") == [(0,)]
    assert not study.exists(engine.url, "s")


def test_a_vanished_worker_charges_nobody_but_a_unit_that_makes_each_vanish_ends(
    engine: Engine, tmp_path: Path
) -> None:
    studies.launched(engine, tmp_path)
    worker = studies.worker(engine)
    first = take(engine, worker)
    for _ in range(7):  # of four trials; the last unit is that of the default's other fold
        studies.train(engine, *trials.take(engine, worker, ["s"]))  # type: ignore[misc]
    lease = first
    for attempt in range(1, lifecycle.PATIENCE + lifecycle.MAX_CHARGES):
        if attempt > 1:
            while (lease := take(engine, worker)).unit != first.unit:
                studies.train(engine, reading.view(engine, "s").record, lease)
        assert lease.attempt == attempt
        [(charges,)] = studies.rows(engine, f"SELECT charges FROM unit WHERE id = {first.unit}")
        assert charges == max(0, attempt - lifecycle.PATIENCE)
        studies.expire(engine, lease)
    trials.take(engine, worker, ["s"])
    assert studies.rows(engine, f"SELECT state::text, reason FROM trial WHERE id = {first.trial}") == [
        ("failed", "its worker vanished")
    ]
    assert studies.rows(engine, "SELECT count(*) FROM attempt WHERE cause = 'vanished'") == [(5,)]


def test_progress_forgives_vanished_workers(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path)
    worker = studies.worker(engine)
    for _ in range(2 * lifecycle.PATIENCE):
        lease = take(engine, worker)
        trials.report(engine, lease, [studies.epoch_done(lease, epoch=lease.attempt)])
        studies.expire(engine, lease)
    assert studies.rows(engine, "SELECT sum(charges) FROM unit") == [(0,)]


def test_resume_without_hours_left_says_so_and_changes_nothing(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path, budget="{hours: 0.001}")
    record, lease = trials.take(engine, studies.worker(engine), ["s"]) or (None, None)
    assert record is not None
    assert lease is not None
    studies.train(engine, record, lease, seconds=3.0)
    before = studies.rows(engine, "SELECT id, state::text, generation FROM trial ORDER BY id")
    with pytest.raises(FoldtuneError, match="--hours is a total"):
        control.resume(engine, "s")
    assert studies.rows(engine, "SELECT id, state::text, generation FROM trial ORDER BY id") == before


def test_a_unit_whose_claim_was_never_answered_is_free_again_with_the_next_claim(
    engine: Engine, tmp_path: Path
) -> None:
    """The commit arrived and its reply did not: the worker asks again, and does not know what it holds."""
    studies.launched(engine, tmp_path)
    worker, other = studies.worker(engine), studies.worker(engine)
    kept, foreign = take(engine, worker), take(engine, other)
    unknown = take(engine, worker)
    record, again = trials.take(engine, worker, ["s"], held=[kept.token]) or pytest.fail("nothing was free")
    assert (again.unit, again.attempt) == (unknown.unit, 2)
    ended = studies.rows(engine, "SELECT unit, cause, charged FROM attempt WHERE ended_at IS NOT NULL")
    assert ended == [(unknown.unit, "released", False)]
    for lease in (kept, foreign, again):
        renew(engine, lease)
    with pytest.raises(Fenced):
        renew(engine, unknown)
    studies.train(engine, record, again)


def test_leases_of_a_worker_known_to_be_dead_are_free_at_once(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path)
    dead, living = studies.worker(engine), studies.worker(engine)
    held = [take(engine, dead) for _ in range(2)]
    assert leases.bury(engine, dead) == 2
    assert [take(engine, living).unit for _ in range(2)] == [lease.unit for lease in held]
    assert leases.bury(engine, dead) == 0


def test_a_unit_is_never_done_without_its_last_epoch(engine: Engine, tmp_path: Path) -> None:
    """Kept in the memory of a process that died, say: an earlier epoch must not pass for the result."""
    studies.launched(engine, tmp_path)
    worker = studies.worker(engine)
    lease = take(engine, worker)
    trials.report(engine, lease, [studies.epoch_done(lease, epoch=1)])
    trials.finish(engine, "s", lease, studies.end(lease))
    assert studies.rows(engine, f"SELECT state::text FROM unit WHERE id = {lease.unit}") == [("waiting",)]
    again = take(engine, worker)
    assert (again.unit, again.charges) == (lease.unit, 0)


def test_a_result_that_follows_on_a_lost_one_is_refused_and_the_unit_trained_again(
    engine: Engine, tmp_path: Path
) -> None:
    """A standby that took over knows the lease and not the last acknowledged result: no gap may pass for done."""
    studies.launched(engine, tmp_path)
    worker = studies.worker(engine)
    lease = take(engine, worker)
    with pytest.raises(Fenced, match="the database lacks its result of epoch 1"):
        trials.report(engine, lease, [studies.epoch_done(lease, epoch=2), studies.epoch_done(lease, epoch=3)])
    assert studies.rows(engine, "SELECT * FROM result") == []
    _, again = trials.take(engine, worker, ["s"], held=[]) or pytest.fail("nothing was free")  # it let go of the first
    assert (again.unit, again.epoch, again.charges) == (lease.unit, 2, 0)


def test_a_unit_with_its_last_epoch_is_done_however_its_lease_ends(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path)
    worker = studies.worker(engine)
    leased = [take(engine, worker) for _ in range(4)]
    for lease in leased:
        trials.report(engine, lease, studies.all_up_to(studies.epoch_done(lease, epoch=lease.settings.epochs)))
    given_back, _, buried, stopped = leased
    trials.finish(engine, "s", given_back, studies.end(given_back, Outcome.DROPPED))
    kept = [lease.token for lease in (buried, stopped)]
    taken = trials.take(engine, worker, ["s"], held=kept)
    assert taken is not None
    control.stop(engine, "s")
    control.resume(engine, "s")
    leases.bury(engine, worker)
    assert {take(engine, worker).unit for _ in range(5)}.isdisjoint({lease.unit for lease in leased})
    done = studies.rows(engine, "SELECT id FROM unit WHERE state = 'done' ORDER BY id")
    assert [unit for (unit,) in done] == sorted(lease.unit for lease in leased)
