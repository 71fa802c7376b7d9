"""Baselines are entries like any other, first in their study, and no part of its search."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from sqlalchemy import Engine

from orchestrator import projection, queries, reading, trials, view, words
from orchestrator.contract import Outcome
from orchestrator.database.engine import transaction
from tests.database import studies


def name_of(lease: object) -> str:
    return lease.settings.method  # type: ignore[attr-defined, no-any-return]


def test_baselines_run_first_on_all_folds_and_count_as_no_trial(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path, baselines="majority, tfidf", more="racing: {rule: forgiving}")
    leases = studies.train_all(engine, studies.worker(engine), "s")
    assert [name_of(lease) for lease in leases[:5]] == ["majority", "majority", "tfidf", "tfidf", "lora"]
    seen = reading.view(engine, "s")
    assert seen.record.state == "complete"
    assert reading.status(seen)["budget"]["trials"] == {"used": 4, "total": 4}
    assert [trial.name for trial in seen.trials[:3]] == ["majority", "tfidf", "default"]


def test_optuna_never_hears_of_a_baseline(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path, baselines="majority")
    studies.train_all(engine, studies.worker(engine), "s")
    projection.project(engine, "s")
    assert studies.rows(
        engine, "SELECT count(*) FROM foldtune.trial WHERE origin = 'baseline' AND number IS NOT NULL"
    ) == [(0,)]
    assert studies.rows(engine, "SELECT count(*) FROM trials") == [(4,)]


def test_a_baseline_is_never_the_best_and_never_the_one_to_beat(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path, baselines="tfidf", more="racing: {rule: forgiving, hopeless: false}")
    who = studies.worker(engine)
    while (taken := trials.take(engine, who, ["s"])) is not None:
        _, lease = taken
        loss = 1e-6 if name_of(lease) == "tfidf" else 1.0 + studies.loss_of(lease)
        for epoch in range(1, lease.settings.epochs + 1):
            trials.report(engine, lease, [studies.epoch_done(lease, epoch=epoch, loss=loss)])
        trials.finish(engine, "s", lease, studies.end(lease))
    seen = reading.view(engine, "s")
    assert seen.best is not None
    assert not seen.best.is_baseline
    assert "complete" in {trial.state for trial in seen.trials if trial.searched}
    with transaction(engine) as connection:
        best = queries.best_trials(connection, seen.record.id, 9, maximize=False)
    assert not any(trial.is_baseline for trial in best)
    assert "No fine-tune beats the best baseline: TF-IDF and logistic regression (1.000e-06)." in view.conclusions(seen)
    assert "No fine-tune beats" in words.study_note(seen.record, seen.trials)


def test_what_does_not_apply_is_shown_with_its_reason(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path, baselines="zero-shot, majority")
    who = studies.worker(engine)
    while (taken := trials.take(engine, who, ["s"])) is not None:
        record, lease = taken
        if name_of(lease) == "zero-shot":
            reason = "not applicable: this model has nothing to prompt"
            trials.finish(engine, "s", lease, studies.end(lease, Outcome.INFEASIBLE, reason))
        else:
            studies.train(engine, record, lease)
    seen = reading.view(engine, "s")
    found = reading.best(seen)
    assert found is not None
    assert [(one["name"], one["state"]) for one in found["baselines"]] == [
        ("zero-shot", "infeasible"),
        ("majority", "complete"),
    ]
    assert found["baselines"][0]["value"] is None
    console = Console(width=200)
    with console.capture() as said:
        console.print(view.result(seen))
    assert "told the labels' names: not applicable: this model has nothing to prompt" in said.get()
    assert said.get().index("class frequencies") < said.get().index("default")
