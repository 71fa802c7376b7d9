"""Learning curves: what is pooled, the gap, and where overfitting begins."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import curves, learnt, plots, words
from orchestrator.curves import Epoch, FoldCurve
from orchestrator.folds import FoldPlan
from orchestrator.records import FoldResult

LOSS = st.floats(0.01, 10)
CURVES = st.lists(st.tuples(LOSS, LOSS), min_size=1, max_size=9).map(
    lambda pairs: [Epoch(number, train, validation) for number, (train, validation) in enumerate(pairs, start=1)]
)
PLAN = FoldPlan(2, ((0, 0, 0, 1),))  # fold 0 trains on 1 row, fold 1 on 3


def curve(validation: list[float], train: list[float | None] | None = None) -> list[Epoch]:
    """A curve that learns its training rows, unless it is said what it does with them."""
    trained = train or [1.0 - number / 10 for number in range(len(validation))]
    return [Epoch(n, t, v) for n, (t, v) in enumerate(zip(trained, validation, strict=True), start=1)]


def fold(number: int, said: list[tuple[float | None, float, int]]) -> FoldCurve:
    """said: (training loss, nats, items) of each epoch."""
    epochs: dict[int, Any] = {
        epoch: (train, {"nats": nats, "items": items}) for epoch, (train, nats, items) in enumerate(said, start=1)
    }
    return FoldCurve(trial=1, repeat=0, fold=number, done=True, epochs=epochs)


@given(CURVES)
def test_after_the_onset_every_validation_loss_is_worse_and_training_loss_ends_lower(given: list[Epoch]) -> None:
    found = curves.overfitting(given)
    if found is None:
        return
    onset = given[found.onset - 1]
    assert all(each.validation_loss >= onset.validation_loss for each in given)
    assert all(each.validation_loss > onset.validation_loss for each in given[found.onset :])
    assert found.end == given[-1].epoch > found.onset
    assert found.rise > 0
    assert found.fall > 0
    assert found.rise == given[-1].validation_loss - onset.validation_loss


@given(CURVES)
def test_there_is_an_onset_wherever_that_can_be_said(given: list[Epoch]) -> None:
    if curves.overfitting(given) is not None:
        return
    last = given[-1]
    lowest = [each for each in given if each.validation_loss == min(e.validation_loss for e in given)][-1]
    assert lowest is last or lowest.train_loss is None or last.train_loss >= lowest.train_loss  # type: ignore[operator]


@given(CURVES, st.floats(0, 5))
def test_the_onset_does_not_depend_on_the_level_of_the_losses(given: list[Epoch], up: float) -> None:
    dyadic = [Epoch(e.epoch, round(e.train_loss * 64) / 64, round(e.validation_loss * 64) / 64) for e in given]  # type: ignore[operator]
    up = round(up * 64) / 64
    moved = [Epoch(e.epoch, e.train_loss + up, e.validation_loss + up) for e in dyadic]  # type: ignore[operator]
    assert curves.overfitting(moved) == curves.overfitting(dyadic)


@pytest.mark.parametrize(
    ("validation", "train", "onset"),
    [
        ([0.9, 0.5, 0.7, 0.6], None, 2),
        ([0.9, 0.5, 0.7, 0.5], None, None),  # it came back
        ([0.5, 0.5, 0.6], None, 2),
        ([0.9, 0.8, 0.7], None, None),
        ([0.5, 0.7], [0.3, 0.4], None),  # both got worse: that is no overfitting
        ([0.5, 0.7], [None, None], None),
        ([0.5], None, None),
        ([], None, None),
    ],
)
def test_where_overfitting_begins(validation: list[float], train: list[float | None] | None, onset: int | None) -> None:
    found = curves.overfitting(curve(validation, train))
    assert (found and found.onset) == onset


def test_losses_are_pooled_over_items_and_training_losses_over_training_rows() -> None:
    folds = [fold(0, [(1.0, 30.0, 30), (0.4, 15.0, 30)]), fold(1, [(2.0, 20.0, 10), (0.8, 30.0, 10), (0.1, 9.0, 10)])]
    assert curves.pooled(folds, PLAN) == [Epoch(1, 1.75, 50 / 40), Epoch(2, pytest.approx(0.7), 45 / 40)]
    assert curves.pooled([], PLAN) == []
    assert curves.lowest(folds[1]) == (3, 0.9)


@pytest.mark.parametrize("nothing", [None, math.nan])
def test_without_a_training_loss_there_is_no_gap_and_no_word_of_it(nothing: float | None) -> None:
    """A baseline trains nothing."""
    pooled = curves.pooled([fold(0, [(nothing, 3.0, 10)]), fold(1, [(0.5, 3.0, 10)])], PLAN)
    assert pooled == [Epoch(1, None, 0.3)]
    assert learnt.course(pooled, pooled[0]) == {"train_loss": None, "gap": None, "overfitting": None}
    assert words.course(pooled, pooled[0]) == ""
    assert words.course([], None) == ""


@given(CURVES, st.integers(2, 5), st.integers(1, 9))
def test_a_thinned_curve_keeps_its_ends_and_what_it_must(given: list[Epoch], most: int, keep: int) -> None:
    found = curves.thinned(given, (keep,), most)
    assert found[0] == given[0]
    assert found[-1] == given[-1]
    assert [each for each in given if each.epoch == keep] == [each for each in found if each.epoch == keep]
    assert len(found) <= most + 1
    assert found == sorted(found, key=lambda each: each.epoch)


def test_the_end_of_a_trial_is_each_folds_own_epoch_that_counts() -> None:
    folds = [fold(0, [(1.0, 30.0, 30), (0.4, 15.0, 30)]), fold(1, [(2.0, 20.0, 10), (0.8, 30.0, 10), (0.1, 9.0, 10)])]
    ends = [(0, 1, 30.0, 30), (1, 3, 9.0, 10)]
    results = [
        FoldResult(trial=1, repeat=0, fold=n, epoch=epoch, tallies={"nats": nats, "items": items})
        for n, epoch, nats, items in ends
    ]
    assert curves.reported(results, folds, PLAN) == Epoch(3, pytest.approx((1.0 * 1 + 0.1 * 3) / 4), 39 / 40)
    assert curves.reported(results, folds[:1], PLAN) == Epoch(3, None, 39 / 40)
    assert curves.reported([], folds, PLAN) is None


def test_a_course_in_words_says_gap_and_onset() -> None:
    def said(given: list[Epoch]) -> str:
        return words.course(given, given[-1])

    assert said(curve([0.9, 0.8], [0.7, 0.6])) == (
        "Its training loss is 0.6000, 0.2000 below its validation loss of 0.8000."
    )
    assert said(curve([0.5, 0.75], [0.6, 0.25])).endswith(
        "It overfits after epoch 1: by epoch 2 the validation loss has risen by 0.2500, while the training loss has "
        "fallen by 0.3500."
    )
    assert "0.1000 above its validation loss" in said(curve([0.5], [0.6]))


def test_the_figure_has_every_fold_and_both_pooled_losses_and_marks_the_onset() -> None:
    folds = [fold(0, [(1.0, 30.0, 30), (0.4, 60.0, 30)]), fold(1, [(2.0, 20.0, 10), (0.8, 30.0, 10)])]
    figure = plots.learning_curves(PLAN, {"trial 1 (best)": folds, "default": [fold(0, [(1.0, 3.0, 10)])]})
    lines = {line["name"]: line["y"] for line in figure["data"]}
    assert lines["trial 1 (best), repeat 0 fold 1"] == [2.0, 3.0]
    assert lines["trial 1 (best): validation"] == [1.25, 2.25]
    assert lines["trial 1 (best): training"] == [1.75, 0.7]
    assert lines["default: validation"] == [0.3]
    assert [mark["x0"] for mark in figure["layout"]["shapes"]] == [1]


def test_a_figure_of_a_very_long_study_stays_small() -> None:
    plan = FoldPlan(5, ((0, 1, 2, 3, 4),) * 20)
    folds = [
        FoldCurve(
            trial=1, repeat=r, fold=f, done=True, epochs={e: (1 / 3, {"nats": 1, "items": 3}) for e in range(1, 1001)}
        )
        for r, f in plan.units
    ]
    figure = plots.learning_curves(plan, {"a": folds, "b": folds})
    assert len(json.dumps(figure)) < 10_000
