"""The notes of the dashboard say what was tried and found."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator import document, space, study_file, words
from orchestrator.contract import ModelPin
from orchestrator.folds import FoldPlan
from orchestrator.records import FoldResult, StudyRecord, TrialRecord
from tests.unit import study_text


def record(**sections: str) -> StudyRecord:
    loaded = study_file.resolve(document.parse(study_text.study(**sections), "f"), study_file.Path())
    return StudyRecord(
        id=1,
        name="q1",
        spec=loaded.spec,
        model=ModelPin(path="m", origin="local", pin="0", pooling="first", normalize=False),
        snapshot="",
        labels=("a", "b"),
        folder="",
        plan=FoldPlan(2, ((0, 1, 0, 1),)),
        floor={"validation_loss": 0.69, "accuracy": 0.5},
        state="open",
        noted=None,
        source="",
        artifacts={"store": "database", "keep": 3},
    )


def trial(number: int, value: float | None = None, **more: Any) -> TrialRecord:
    params = {"batch_size": 8, "learning_rate": 0.00213}
    values: dict[str, Any] = {
        "id": number + 1,
        "number": number,
        "searched": True,
        "is_default": False,
        "in_space": True,
        "origin": "model",
        "params": params,
        "settings": space.settings({}, params),
        "state": "complete" if value is not None else "running",
        "value": value,
        "reason": "",
        "duplicate_of": None,
        "run": None,
        "epoch": None,
        "generation": 0,
        "told": False,
    }
    return TrialRecord(**{**values, **more})


TALLIES = {"nats": 40.0, "items": 20, "correct": 5}


def test_numbers_have_four_digits_and_nothing_is_a_dash() -> None:
    assert [words.number(value) for value in (0.123456, 12.0, None)] == ["0.1235", "12.00", "–"]
    assert words.assignment({"lr": 0.00213, "batch_size": 8, "lr_schedule": "cosine"}) == (
        "lr 0.00213, batch_size 8, lr_schedule cosine"
    )


@pytest.mark.parametrize(("objective", "best"), [("validation_loss", 1), ("accuracy", 2)])
def test_the_best_trial_follows_the_direction(objective: str, best: int) -> None:
    trials = [trial(0, 0.5), trial(1, 0.2), trial(2, 0.9), trial(3), trial(4, 0.2), trial(5, 0.1, duplicate_of=2)]
    trials[5] = trial(5, 0.2, duplicate_of=2)
    found = words.best_trial(record(objective=objective), trials)
    assert found is not None
    assert found.number == best


def test_without_a_complete_trial_nothing_is_best() -> None:
    assert words.best_trial(record(), [trial(0), trial(1)]) is None
    assert "Best" not in words.study_note(record(), [trial(0)])


def test_a_studys_note_has_question_way_state_and_finding() -> None:
    default = trial(9, 0.6, is_default=True, searched=False)
    note = words.study_note(record(), [trial(0, 0.5), trial(1), default])
    assert "Which batch_size fine-tune `./model` best on 4 rows of `rows.jsonl`" in note
    assert "random search proposes, 4-fold cross-validation judges: validation_loss" in note
    assert "1 complete, 1 running of 20 trials" in note
    assert "Trial 0: 0.5000 with batch_size 8, learning_rate 0.00213" in note
    assert "default configuration reaches 0.6" in note
    assert "Class frequencies alone reach 0.69" in note


def test_a_studys_note_says_that_runs_are_shared_where_they_are() -> None:
    shared = record(
        share_epochs="true",
        training="{lr_schedule: constant, warmup_ratio: 0}",
        search="{sampler: random, space: {epochs: [1, 2, 4], batch_size: [4, 8]}}",
    )
    note = words.study_note(shared, [])
    assert "stops those that fall behind. One run of 4 epochs answers for all fewer ones.\n" in note
    assert "One run" not in words.study_note(record(), [])


def test_a_trials_note_says_who_proposed_it_and_what_each_fold_gave() -> None:
    folds = [FoldResult(trial=1, repeat=0, fold=fold, epoch=3, tallies=TALLIES) for fold in range(2)]
    note = words.trial_note(record(), trial(0, 2.0), folds)
    assert note.startswith("Proposed by the sampler's model: batch_size 8")
    assert "**validation_loss 2.000** over 2 folds" in note
    assert note.endswith("| 0 | 1 | 3 | 20 | 2.000 | 0.2500 | – | – |")
    assert "nan" not in note


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"origin": "default", "is_default": True}, "The default configuration"),
        ({"origin": "grid"}, "A point of the grid"),
        ({"origin": "random"}, "Drawn at random"),
        ({"state": "failed", "reason": "no disk"}, "**failed**: no disk"),
        ({"state": "diverged"}, "**diverged**."),
        ({"duplicate_of": 4}, "had been trained before"),
    ],
)
def test_a_trials_note_says_how_it_went(more: dict[str, Any], said: str) -> None:
    assert said in words.trial_note(record(), trial(0, **more), [])
