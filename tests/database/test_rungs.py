"""Racing in the database: what stops, what Optuna hears of it, who drops what, and that no crash changes any of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import Engine, text

from orchestrator import control, history, leases, projection, queries, reading, study, trials, view, words
from orchestrator.contract import EpochDone, Outcome, pack_floats
from orchestrator.database.engine import transaction
from orchestrator.launch import Launched
from orchestrator.leases import Fenced
from orchestrator.reconcile import settle
from orchestrator.records import Lease
from tests import postgres as servers
from tests.acceptance.commands import ROOT
from tests.conftest import _prepare
from tests.database import studies

FORGIVING = "racing: {rule: forgiving}\n"
Loss = Callable[[Lease, int], float]  # of a unit after an epoch


def launched(engine: Engine, folder: Path, *, racing: str = FORGIVING, folds: int = 3, **options: Any) -> Launched:
    return studies.launched(engine, folder, folds=folds, more=racing, **options)


def shown(engine: Engine) -> optuna.Study:
    return optuna.load_study(study_name="s", storage=study.storage(engine.url))


def take(engine: Engine, worker: int) -> Lease:
    taken = trials.take(engine, worker, ["s"])
    assert taken is not None
    return taken[1]


def is_default(lease: Lease) -> bool:
    return (lease.settings.learning_rate, lease.settings.batch_size) == (2e-4, 8)


def by_rate(lease: Lease, epoch: int) -> float:
    """1 for the default, 2 at learning rate 1e-2, less than 1 below; each epoch a little better."""
    level = 1.0 if is_default(lease) else (2.0 if lease.settings.learning_rate > 5e-3 else 0.5)
    return level + lease.fold / 100 + lease.settings.batch_size / 1000 - epoch / 1000


def report(engine: Engine, lease: Lease, epoch: int, loss: Loss = by_rate) -> int:
    return trials.report(engine, lease, [studies.epoch_done(lease, epoch=epoch, loss=loss(lease, epoch))])


def report_all(engine: Engine, lease: Lease, loss: Loss = by_rate) -> None:
    for epoch in range(1, lease.settings.epochs + 1):
        report(engine, lease, epoch, loss)


def train(engine: Engine, lease: Lease, loss: Loss = by_rate) -> None:
    report_all(engine, lease, loss)
    trials.finish(engine, "s", lease, studies.end(lease))


def train_all(engine: Engine, worker: int, loss: Loss = by_rate) -> list[Lease]:
    done = []
    while (taken := trials.take(engine, worker, ["s"])) is not None:
        done.append(taken[1])
        train(engine, taken[1], loss)
    return done


def train_default(engine: Engine, worker: int, loss: Loss = by_rate) -> None:
    for _ in range(3):
        lease = take(engine, worker)
        assert is_default(lease)
        train(engine, lease, loss)


def states(engine: Engine) -> dict[str, int]:
    return dict(studies.rows(engine, "SELECT state::text, count(*) FROM trial GROUP BY 1"))


def test_a_grid_ends_with_every_point_complete_or_stopped_and_the_winner_saw_every_fold(
    engine: Engine, tmp_path: Path
) -> None:
    launched(engine, tmp_path)
    done = train_all(engine, studies.worker(engine))
    assert states(engine) == {"complete": 3, "stopped": 2}
    assert len(done) == 3 * 3 + 2  # the bad points cost one fold each
    assert studies.rows(engine, "SELECT state::text FROM study") == [("complete",)]
    assert studies.rows(engine, "SELECT state::text, count(*) FROM unit GROUP BY 1 ORDER BY 2") == [
        ("cancelled", 4),
        ("done", 11),
    ]
    best = reading.best(reading.view(engine, "s"))
    assert best is not None
    assert len(best["folds"]) == 3
    assert best["params"] == {"learning_rate": 1e-3, "batch_size": 4}
    status = reading.status(reading.view(engine, "s"))
    assert (status["trials"]["stopped"], status["trials"]["complete"]) == (2, 2)
    assert status["budget"]["trials"] == {"used": 4, "total": 4}
    assert control.resume(engine, "s").endswith("0 cancelled trials wait again")
    assert trials.take(engine, studies.worker(engine), ["s"]) is None


def test_optuna_hears_of_a_stopped_trial_as_pruned_with_a_report_for_each_finished_fold(
    engine: Engine, tmp_path: Path
) -> None:
    launched(engine, tmp_path, racing="racing: {rule: forgiving, first_folds: 2}\n")
    train_all(engine, studies.worker(engine))
    pruned = [trial for trial in shown(engine).trials if trial.state == TrialState.PRUNED]
    assert len(pruned) == 2
    for trial in pruned:
        level = 2.0 + trial.params["batch_size"] / 1000 - 3 / 1000
        assert trial.intermediate_values == {1: pytest.approx(level), 2: pytest.approx(level + 0.005)}
        assert "foldtune" in trial.user_attrs
    storage = study.storage(engine.url)
    attributes = storage.get_study_system_attrs(storage.get_study_id_from_name("s"))
    notes = " ".join(str(value) for value in attributes.values())
    assert "**stopped**: 2.006 nats after 2 folds, worse than 1.025, the worst fold of the default" in notes
    [(reasons,)] = studies.rows(engine, "SELECT count(DISTINCT reason) FROM trial WHERE state = 'stopped'")
    assert reasons == 2


def test_tpe_learns_from_what_was_stopped(engine: Engine, tmp_path: Path) -> None:
    launched(engine, tmp_path, sampler="tpe", rates=studies.RANGE, budget="{trials: 12}")
    train_all(engine, studies.worker(engine))
    found = states(engine)
    assert found["stopped"] + found["complete"] == 13
    assert found["stopped"] > 0
    origins = dict(studies.rows(engine, "SELECT origin, count(*) FROM trial WHERE searched GROUP BY origin"))
    assert origins["model"] >= 6
    record = reading.view(engine, "s").record
    with transaction(engine) as connection:
        past = history.past_of(connection, record)
    assert {len(each.reports) for each in past if each.state == "stopped"} == {1}
    assert all(each.value is None for each in past if each.state == "stopped")


def test_an_objective_that_is_maximised_stops_low_values(engine: Engine, tmp_path: Path) -> None:
    launched(engine, tmp_path, racing="objective: accuracy\nracing: {rule: forgiving, hopeless: false}\n")
    worker = studies.worker(engine)
    while (taken := trials.take(engine, worker, ["s"])) is not None:
        lease = taken[1]
        right = 3 if is_default(lease) else (2 if lease.settings.learning_rate > 5e-3 else 4)
        done = studies.epoch_done(lease, epoch=3, loss=1.0 / right)
        trials.report(engine, lease, studies.all_up_to(replace(done, tallies={**done.tallies, "correct": right})))
        trials.finish(engine, "s", lease, studies.end(lease))
    stopped = studies.rows(engine, "SELECT params->>'learning_rate', reason FROM trial WHERE state = 'stopped'")
    assert [rate for rate, _ in stopped] == ["0.01", "0.01"]
    assert stopped[0][1] == (
        "accuracy 0.3333 after 1 fold, worse than 0.5000, the worst fold of the default configuration"
    )
    assert states(engine) == {"complete": 3, "stopped": 2}


def test_the_default_configuration_is_never_raced(engine: Engine, tmp_path: Path) -> None:
    """A point of the grid here, and the worst: it goes first and sees every fold, whatever is complete by then."""
    launched(engine, tmp_path, rates="[2e-4, 1e-3]")
    worker = studies.worker(engine)
    first = [take(engine, worker) for _ in range(3)]
    assert all(is_default(lease) for lease in first)
    assert not any(is_default(lease) for lease in train_all(engine, worker))
    for lease in first:
        train(engine, lease, lambda *_: 5.0)
    assert studies.rows(engine, "SELECT state::text, searched FROM trial WHERE is_default") == [("complete", True)]
    assert states(engine)["complete"] > 1


def test_without_a_complete_trial_nothing_stops_and_the_oldest_completes_first(engine: Engine, tmp_path: Path) -> None:
    launched(engine, tmp_path)
    worker = studies.worker(engine)
    diverged = take(engine, worker)
    trials.finish(engine, "s", diverged, studies.end(diverged, Outcome.DIVERGED, "nan"))
    order = [take(engine, worker) for _ in range(4)]
    assert [lease.fold for lease in order] == [0, 1, 2, 0]  # nobody else is the one to beat
    for lease in order[::-1]:
        report_all(engine, lease)
        trials.finish(engine, "s", lease, studies.end(lease))
    assert states(engine)["complete"] == 1
    train_all(engine, worker)
    assert states(engine) == {"complete": 2, "stopped": 2, "diverged": 1}


def test_first_folds_come_first_then_the_best_survivor_then_what_is_not_judged_yet(
    engine: Engine, tmp_path: Path
) -> None:
    launched(engine, tmp_path, rates="[1e-4, 1e-3, 2e-3]")
    worker = studies.worker(engine)
    train_default(engine, worker)
    firsts = [take(engine, worker) for _ in range(6)]
    assert [lease.fold for lease in firsts] == [0] * 6
    speculative = take(engine, worker)  # a device without work would be worse
    assert (speculative.trial, speculative.fold) == (firsts[0].trial, 1)
    for rank, lease in enumerate(firsts[1:]):
        train(engine, lease, lambda *_, rank=rank: 0.9 - rank / 10)
    assert take(engine, worker).trial == firsts[-1].trial


def test_without_racing_the_order_is_as_ever(engine: Engine, tmp_path: Path) -> None:
    launched(engine, tmp_path, racing="racing: {rule: none}\n")
    worker = studies.worker(engine)
    taken = [take(engine, worker) for _ in range(6)]
    assert [lease.trial for lease in taken] == [taken[0].trial] * 3 + [taken[3].trial] * 3


def test_a_wide_pack_opens_no_more_trials_than_the_cap(engine: Engine, tmp_path: Path) -> None:
    launched(engine, tmp_path, sampler="tpe", rates=studies.RANGE, budget="{trials: 20}")
    worker = studies.worker(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE worker SET capacity = 16"))
    taken = [take(engine, worker) for _ in range(15)]  # the default's three folds and the open trials' twelve
    assert trials.take(engine, worker, ["s"]) is None
    assert [lease.fold for lease in taken] == [0, 1, 2, *[0] * 4, *[1, 2] * 4]
    assert studies.rows(engine, "SELECT count(*) FROM trial WHERE searched AND state = 'running'") == [(4,)]


def test_whoever_trains_a_unit_of_a_stopped_trial_loses_it_and_what_it_still_says_is_refused(
    engine: Engine, tmp_path: Path
) -> None:
    launched(engine, tmp_path)
    worker, other = studies.worker(engine), studies.worker(engine)
    train_default(engine, worker)
    good = [take(engine, worker) for _ in range(2)]
    bad, _ = take(engine, worker), take(engine, worker)
    late = [take(engine, other) for _ in range(6)]
    mine = [lease for lease in late if lease.trial == bad.trial]
    assert len(mine) == 2
    report(engine, mine[0], 1)
    report_all(engine, mine[1])  # its last epoch is in, its end is not
    before = studies.rows(engine, "SELECT count(*) FROM result")
    train(engine, bad)
    assert studies.rows(engine, f"SELECT state::text FROM trial WHERE id = {bad.trial}") == [("stopped",)]
    lost = leases.renew(engine, [*good, *mine]).lost
    assert [fenced.lease for fenced in lost] == mine
    for write in (
        lambda: report(engine, mine[0], 2),
        lambda: trials.finish(engine, "s", mine[0], studies.end(mine[0])),
        lambda: trials.finish(engine, "s", mine[1], studies.end(mine[1])),
    ):
        with pytest.raises(Fenced, match="nothing was written"):
            write()
    trials.finish(engine, "s", mine[0], studies.end(mine[0], Outcome.DROPPED))
    [(after,)] = studies.rows(engine, "SELECT count(*) FROM result")
    assert after == before[0][0] + bad.settings.epochs
    assert studies.rows(
        engine, f"SELECT DISTINCT cause, charged, reason FROM attempt WHERE unit IN ({mine[0].unit}, {mine[1].unit})"
    ) == [("cancelled", False, "its trial was stopped by racing")]
    trials.finish(engine, "s", bad, studies.end(bad))  # told twice is no error


def test_a_new_best_trial_stops_others_that_were_ahead_of_the_old_one(engine: Engine, tmp_path: Path) -> None:
    launched(engine, tmp_path)
    worker = studies.worker(engine)
    train_default(engine, worker, lambda *_: 5.0)
    firsts = [take(engine, worker) for _ in range(4)]
    for lease in firsts:
        train(engine, lease)
    assert states(engine)["running"] == 4
    train_all(engine, worker)
    assert states(engine) == {"complete": 3, "stopped": 2}


def test_a_hopeless_fold_stops_its_trial_in_the_middle_and_optuna_gets_no_report(
    engine: Engine, tmp_path: Path
) -> None:
    launched(engine, tmp_path)
    worker = studies.worker(engine)
    train_default(engine, worker)
    good = take(engine, worker)
    while (bad := take(engine, worker)).settings.learning_rate < 5e-3:
        pass

    def worsens(_: Lease, epoch: int) -> float:
        return 2.0 + epoch / 10

    report(engine, bad, 1, worsens)
    report(engine, good, 1)
    assert states(engine)["running"] == 3
    report(engine, bad, 2, worsens)
    assert studies.rows(engine, f"SELECT state::text, reason FROM trial WHERE id = {bad.trial}") == [
        (
            "stopped",
            "2.200 nats on fold 1 after epoch 2, no longer improving and worse than 1.027, "
            "the worst that the default configuration had shown by then",
        )
    ]
    [fenced] = leases.renew(engine, [good, bad]).lost
    assert fenced.lease == bad
    [pruned] = [trial for trial in shown(engine).trials if trial.state == TrialState.PRUNED]
    assert pruned.intermediate_values == {}
    train_all(engine, worker)
    assert reading.status(reading.view(engine, "s"))["trials"]["stopped"] == 2


def test_hopeless_can_be_switched_off(engine: Engine, tmp_path: Path) -> None:
    launched(engine, tmp_path, racing="racing: {rule: forgiving, hopeless: false}\n")
    worker = studies.worker(engine)
    train_default(engine, worker)
    bad = take(engine, worker)
    for epoch in (1, 2):
        report(engine, bad, epoch, lambda _, epoch: 8.0 + epoch)
    assert leases.renew(engine, [bad]).lost == []


def of_items(lease: Lease, shift: float) -> EpochDone:
    """A loss that varies over the items, `shift` nats above what the default has."""
    done = studies.epoch_done(lease, epoch=3)
    nats = [1.0 + lease.fold + row / 4 + shift * (1 + row / 20) for row in range(4)]
    predictions = replace(done.predictions, nats=pack_floats(nats), counts=pack_floats([1.0] * 4))
    return replace(done, tallies={**done.tallies, "nats": sum(nats), "items": 4}, predictions=predictions)


def test_paired_compares_the_same_items_where_folds_differ_too_much_for_forgiving(
    engine: Engine, tmp_path: Path
) -> None:
    ends = {}
    for rule in ("forgiving", "paired"):
        launched(engine, tmp_path, name=rule, racing=f"racing: {{rule: {rule}}}\n")
        worker = studies.worker(engine)
        while (taken := trials.take(engine, worker, [rule])) is not None:
            lease = taken[1]
            shift = 0.0 if is_default(lease) else (0.3 if lease.settings.learning_rate > 5e-3 else -0.1)
            trials.report(engine, lease, studies.all_up_to(of_items(lease, shift)))
            trials.finish(engine, rule, lease, studies.end(lease))
        query = "SELECT t.state::text, t.reason FROM trial t JOIN study s ON s.id = t.study WHERE s.name = "
        ends[rule] = sorted(studies.rows(engine, f"{query}'{rule}'"))
    assert [state for state, _ in ends["forgiving"]] == ["complete"] * 5
    assert [state for state, _ in ends["paired"]] == ["complete"] * 3 + ["stopped"] * 2
    assert "worse than the default configuration on the same 4 rows" in ends["paired"][-1][1]


def test_a_suggestion_that_repeats_a_stopped_trial_is_stopped_too(engine: Engine, tmp_path: Path) -> None:
    """A space of four configurations and a budget of eight trials."""
    launched(engine, tmp_path, sampler="random", budget="{trials: 8}")
    done = train_all(engine, studies.worker(engine))
    assert len({lease.configuration for lease in done}) == 5
    repeated = studies.rows(
        engine, "SELECT DISTINCT d.state = o.state FROM trial d JOIN trial o ON o.id = d.duplicate_of"
    )
    assert repeated == [(True,)]
    for trial in shown(engine).trials:
        if trial.state == TrialState.PRUNED:
            assert list(trial.intermediate_values) == [1]
    assert studies.rows(engine, "SELECT state::text FROM study") == [("complete",)]


def test_settling_twice_changes_nothing(engine: Engine, tmp_path: Path) -> None:
    launched(engine, tmp_path)
    train_all(engine, studies.worker(engine))
    query = "SELECT id, state::text, reason, closed_at FROM trial ORDER BY id"
    before = studies.rows(engine, query), len(shown(engine).trials)
    for _ in range(2):
        with transaction(engine) as connection:
            settle(connection, queries.lock_study(connection, reading.view(engine, "s").record.id))
        projection.project(engine, "s")
    assert (studies.rows(engine, query), len(shown(engine).trials)) == before


@pytest.mark.parametrize("place", ["after the fold", "after the epoch", "before optuna"])
def test_a_crash_before_the_verdict_is_healed_by_whoever_takes_next(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    launched(engine, tmp_path)
    worker = studies.worker(engine)
    train_default(engine, worker)
    while (bad := take(engine, worker)).settings.learning_rate < 5e-3:
        pass

    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if place == "before optuna":
            patch.setattr(projection, "project", crash)
            with pytest.raises(KeyboardInterrupt):
                train(engine, bad)
        elif place == "after the fold":  # the last epoch is in; the worker dies before it says that the fold is done
            report_all(engine, bad)
        else:
            report(engine, bad, 1, lambda *_: 2.0)
            patch.setattr(trials, "_race", crash)
            with pytest.raises(KeyboardInterrupt):
                report(engine, bad, 2, lambda *_: 2.0)
    studies.expire_all(engine)
    take(engine, studies.worker(engine))
    assert studies.rows(engine, f"SELECT state::text, told FROM trial WHERE id = {bad.trial}") == [("stopped", True)]
    assert studies.rows(engine, f"SELECT state::text FROM unit WHERE trial = {bad.trial} AND state = 'waiting'") == []


def test_four_workers_at_once_come_to_the_same_winner(engine: Engine, tmp_path: Path) -> None:
    launched(engine, tmp_path, rates="[1e-4, 1e-3, 6e-3, 1e-2]")
    failed: list[BaseException] = []

    def work() -> None:
        worker = studies.worker(engine)
        try:
            while (taken := trials.take(engine, worker, ["s"])) is not None:
                try:
                    train(engine, taken[1])
                except Fenced:
                    continue
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert states(engine) == {"complete": 5, "stopped": 4}
    best = reading.best(reading.view(engine, "s"))
    assert best is not None
    assert best["params"]["batch_size"] == 4
    assert len(best["folds"]) == 3
    assert studies.rows(engine, "SELECT count(*) FROM attempt WHERE ended_at IS NULL") == [(0,)]


def test_people_see_what_racing_saved_and_why(engine: Engine, tmp_path: Path) -> None:
    from rich.console import Console

    launched(engine, tmp_path)
    train_all(engine, studies.worker(engine))
    seen = reading.view(engine, "s")
    assert reading.folds_saved(seen) == 4
    console = Console(width=160, record=True, file=(tmp_path / "screen").open("w"))
    console.print(view.live(seen))
    said = console.export_text()
    console.file.close()
    assert "11 of 15 folds, 4 saved by racing" in said
    assert "stopped: 2.001 nats after 1 fold, worse than" in said
    assert "racing (forgiving) stops those that fall behind" in words.study_note(seen.record, seen.trials)


@pytest.mark.slow
def test_a_death_at_any_statement_of_a_stop_heals(postgres: str, tmp_path: Path) -> None:
    template = servers.ensure_template(postgres, "ready", _prepare)
    done = subprocess.run(
        [sys.executable, "-m", "tests.database.racing_scenario", postgres, template, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "FOLDTUNE_HOME": str(tmp_path / "home")},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout)
    assert found["problems"] == {}
    assert found["survived"] == []
    assert len(found["visited"]) >= 10
    assert [state for _, state, *_ in found["expected"][1]].count("stopped") == 1
