"""Which trials racing stops: in both directions, by folds, by items, by epochs."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from orchestrator import racing
from orchestrator.racing import Fold, Folds, Incumbent, Rules, reason_to_stop

FORGIVING = Rules(rule="forgiving", objective="validation_loss", folds=5)
PAIRED = replace(FORGIVING, rule="paired")
ACCURATE = replace(FORGIVING, objective="accuracy")
ITEMS = 20


def tallies(loss: float = 1.0, *, correct: int = 10, items: int = ITEMS) -> dict[str, Any]:
    bins = [[0, 0.0, 0]] * 15
    return {"nats": loss * items, "items": items, "correct": correct, "tp": [1], "fp": [0], "fn": [0], "bins": bins}


def fold(*losses: float, done: bool = True) -> Fold:
    """A fold with the loss after each epoch."""
    return Fold(done=done, epochs={epoch: tallies(loss) for epoch, loss in enumerate(losses, start=1)})


def right(*correct: int, done: bool = True) -> Fold:
    """A fold with the number of right items after each epoch."""
    return Fold(done=done, epochs={epoch: tallies(correct=each) for epoch, each in enumerate(correct, start=1)})


def folds(*each: Fold) -> Folds:
    return {(0, number): one for number, one in enumerate(each)}


def incumbent(*each: Fold) -> Incumbent:
    return Incumbent(name="trial 7", folds=folds(*each))


def of_items(*nats: Sequence[float], repeats: bool = False) -> Folds:
    """Finished folds with the loss of each item; with `repeats` every fold is one repeat over the same rows."""
    found = {}
    for number, losses in enumerate(nats):
        rows = range(len(losses)) if repeats else range(100 * number, 100 * number + len(losses))
        place = (number, 0) if repeats else (0, number)
        mean = sum(losses) / len(losses)
        found[place] = Fold(
            done=True,
            epochs={3: tallies(mean, items=len(losses))},
            rows=tuple(rows),
            nats=losses,
            counts=[1.0] * len(losses),
        )
    return found


BEST = incumbent(fold(0.5), fold(0.81), fold(0.6), fold(0.4), fold(0.55))


def test_a_trial_behind_the_worst_fold_stops_and_says_why() -> None:
    reason = reason_to_stop(FORGIVING, folds(fold(0.94), fold(0.9)), BEST)
    assert reason == "0.9200 nats after 2 folds, worse than 0.8100, the worst fold of trial 7"
    assert reason_to_stop(FORGIVING, folds(fold(0.81)), BEST) is None  # as bad as the worst is not worse


def test_the_running_value_is_pooled_over_items_not_a_mean_of_folds() -> None:
    small = Fold(done=True, epochs={1: tallies(2.0, items=2)})
    assert reason_to_stop(FORGIVING, folds(fold(0.7), small), BEST) is not None  # (14 + 4) / 22
    assert reason_to_stop(FORGIVING, folds(fold(0.6), small), BEST) is None  # 0.73; the mean of both is 1.3


def test_accuracy_stops_in_its_own_direction() -> None:
    best = incumbent(right(12), right(9), right(15))
    reason = reason_to_stop(ACCURATE, folds(right(8)), best)
    assert reason == "accuracy 0.4000 after 1 fold, worse than 0.4500, the worst fold of trial 7"
    assert reason_to_stop(ACCURATE, folds(right(9)), best) is None
    assert reason_to_stop(ACCURATE, folds(right(20)), best) is None


def test_no_trial_is_judged_by_fewer_folds_than_the_study_wants() -> None:
    patient = replace(FORGIVING, first_folds=3)
    assert reason_to_stop(patient, folds(fold(9.0), fold(9.0)), BEST) is None
    assert reason_to_stop(patient, folds(fold(9.0), fold(9.0), fold(9.0)), BEST) is not None


LOSSES = st.floats(0.0, 10.0, width=32)


@given(st.lists(LOSSES, min_size=5, max_size=5), st.lists(LOSSES, min_size=1, max_size=5))
def test_forgiving_is_its_definition(best: list[float], trial: list[float]) -> None:
    stops = reason_to_stop(FORGIVING, folds(*map(fold, trial)), incumbent(*map(fold, best))) is not None
    pooled = sum(loss * ITEMS for loss in trial) / (ITEMS * len(trial))
    worst = max(loss * ITEMS / ITEMS for loss in best)
    assert stops == (len(trial) < 5 and pooled > worst)


@given(st.lists(st.integers(0, ITEMS), min_size=5, max_size=5), st.lists(st.integers(0, ITEMS), min_size=1, max_size=4))
def test_both_directions_decide_alike(best: list[int], trial: list[int]) -> None:
    """Accuracy, maximised, and the share of errors written as a loss, minimised."""
    up = reason_to_stop(ACCURATE, folds(*map(right, trial)), incumbent(*map(right, best)))
    errors = [fold(float(ITEMS - n)) for n in trial], [fold(float(ITEMS - n)) for n in best]
    down = reason_to_stop(FORGIVING, folds(*errors[0]), incumbent(*errors[1]))
    assert (up is None) == (down is None)


@pytest.mark.parametrize("rules", [FORGIVING, PAIRED, ACCURATE, replace(ACCURATE, rule="paired")])
@given(data=st.data())
def test_whoever_is_as_good_on_every_fold_goes_on(rules: Rules, data: st.DataObject) -> None:
    best = data.draw(st.lists(st.integers(0, ITEMS), min_size=5, max_size=5))
    better = [data.draw(st.integers(0, n)) for n in best[: data.draw(st.integers(1, 5))]]
    one, other = [
        [Fold(done=True, epochs={1: tallies(errors / 4, correct=ITEMS - errors)}) for errors in each]
        for each in (better, best)
    ]
    assert reason_to_stop(rules, folds(*one), incumbent(*other)) is None


@given(st.lists(LOSSES, min_size=1, max_size=4), st.permutations(range(4)))
def test_the_order_in_which_folds_arrived_decides_nothing(trial: list[float], order: list[int]) -> None:
    one = folds(*map(fold, trial))
    other: Mapping[tuple[int, int], Fold] = {(0, n): one[0, n] for n in order if (0, n) in one}
    assert (reason_to_stop(FORGIVING, one, BEST) is None) == (reason_to_stop(FORGIVING, other, BEST) is None)


@pytest.mark.parametrize("rules", [FORGIVING, PAIRED])
@pytest.mark.parametrize("items", [0, ITEMS])
def test_what_is_not_finite_is_not_for_racing_to_judge(rules: Rules, items: int) -> None:
    nothing = Fold(done=True, epochs={1: tallies(float("inf") if items else 0.0, items=items)})
    assert reason_to_stop(rules, folds(nothing), BEST) is None
    assert reason_to_stop(rules, folds(fold(0.7)), incumbent(nothing, nothing)) is None


# --- paired -----------------------------------------------------------------------------------------------------


def draws(seed: int, count: int, mean: float, sd: float) -> list[float]:
    draw = random.Random(seed)
    return [draw.gauss(mean, sd) for _ in range(count)]


def test_paired_stops_what_is_worse_by_more_than_chance_and_says_by_how_much() -> None:
    its = of_items(*(draws(n, 60, 1.0 + n / 10, 0.5) for n in range(5)))
    noise = draws(9, 60, 0.0, 0.1)
    worse = of_items([loss + 0.1 + e for loss, e in zip(its[0, 0].nats, noise, strict=True)])
    reason = reason_to_stop(PAIRED, worse, Incumbent(name="trial 7", folds=its))
    assert reason is not None
    assert reason.endswith("nats worse than trial 7 on the same 60 rows")
    assert "after 1 fold, 0.09463 ± 0.01178 nats worse" in reason
    assert reason_to_stop(FORGIVING, worse, Incumbent(name="trial 7", folds=its)) is None  # its folds differ by more


@given(st.integers(0, 10_000), st.floats(0.001, 0.3))
def test_paired_on_one_fold_is_the_t_test_of_the_items_differences(seed: int, gap: float) -> None:
    its, errors = draws(seed, 30, 1.0, 0.3), draws(seed + 1, 30, gap, 0.3)
    mine = [loss + error for loss, error in zip(its, errors, strict=True)]
    best = Incumbent(name="trial 7", folds=of_items(its, its))
    p = float(stats.ttest_rel(mine, its, alternative="greater").pvalue)
    for confidence in (0.5, 0.8, 0.975):
        if abs(p - (1 - confidence)) > 1e-9:
            reason = reason_to_stop(replace(PAIRED, confidence=confidence), of_items(mine), best)
            assert (reason is not None) == (p < 1 - confidence)


def test_folds_that_disagree_make_paired_forgiving() -> None:
    """0.2 nats worse and 0.1 better: each far beyond its items' noise, but the folds say that models vary."""
    its = [draws(n, 200, 1.0, 0.3) for n in range(5)]
    gaps = [draws(10 + n, 200, gap, 0.05) for n, gap in enumerate((0.2, -0.1))]
    mine = [[a + b for a, b in zip(base, gap, strict=True)] for base, gap in zip(its, gaps, strict=False)]
    best = Incumbent(name="trial 7", folds=of_items(*its))
    assert reason_to_stop(PAIRED, of_items(*mine), best) is None
    even = [[a + 0.05 + b - 0.2 for a, b in zip(its[0], gaps[0], strict=True)]]
    even.append([a + 0.05 + b + 0.1 for a, b in zip(its[1], gaps[1], strict=True)])
    assert reason_to_stop(PAIRED, of_items(*even), best) is not None


def test_the_same_rows_in_several_repeats_count_once() -> None:
    its, errors = draws(1, 12, 1.0, 0.3), draws(2, 12, 0.0, 0.3)
    gap = 1.6 * stats.tstd(errors) / 12**0.5 - stats.tmean(errors)  # t = 1.6, p = 0.07; of 24 rows p = 0.02
    mine = [loss + error + gap for loss, error in zip(its, errors, strict=True)]
    rules = replace(PAIRED, confidence=0.95)
    best = Incumbent(name="trial 7", folds=of_items(its, its, its, repeats=True))
    assert reason_to_stop(rules, of_items(mine, repeats=True), best) is None
    assert reason_to_stop(rules, of_items(mine, mine, repeats=True), best) is None
    as_if_independent = Incumbent(name="trial 7", folds=of_items(its, its, its))
    assert reason_to_stop(rules, of_items(mine, mine), as_if_independent) is not None


def test_tokens_weigh_items() -> None:
    """A loss per token: the pooled difference is that of the sums, not the mean of the items' means."""
    its, mine = of_items([1.0, 30.0] * 20, [1.0, 30.0] * 20), of_items([2.0, 30.1] * 20)
    counts = [1.0, 100.0] * 20
    its = {place: replace(each, counts=counts) for place, each in its.items()}
    mine = {place: replace(each, counts=counts) for place, each in mine.items()}
    worse_by, noise, rows = racing._difference_of_ratios([(mine[0, 0], its[0, 0])])
    assert (worse_by, rows) == (pytest.approx(1.1 / 101), 40)
    assert noise > 0


def test_differences_without_a_spread_and_rounding_stop_nobody() -> None:
    its = of_items([1.0] * 10, [1.0] * 10)
    best = Incumbent(name="trial 7", folds=its)
    assert reason_to_stop(PAIRED, of_items([2.0] * 10), best) is None
    rounded = [1.0 + 1e-8 * (n % 3) for n in range(10)]
    assert reason_to_stop(replace(PAIRED, confidence=0.5), of_items(rounded), best) is None


def test_paired_on_accuracy_needs_two_folds_and_is_the_corrected_t() -> None:
    rules = replace(ACCURATE, rule="paired")
    best = incumbent(*(right(n) for n in (16, 17, 18, 17, 16)))
    assert reason_to_stop(rules, folds(right(1)), best) is None
    assert reason_to_stop(rules, folds(right(6), right(12)), best) is None  # t = 2.4, 1 degree: p = 0.12
    worse = [right(6), right(8), right(8)]
    differences = [10 / 20, 9 / 20, 10 / 20]
    t = stats.tmean(differences) / ((1 / 3 + 1 / 4) ** 0.5 * stats.tstd(differences))
    assert stats.t.sf(t, 2) < 0.025
    reason = reason_to_stop(rules, folds(*worse), best)
    assert reason is not None
    assert reason.endswith("worse than trial 7 on the same 3 folds")
    assert reason.startswith("accuracy 0.3667 after 3 folds, 0.4833 ± ")


@given(t=st.floats(0, 40), freedom=st.integers(1, 400))
def test_the_tail_of_students_t(t: float, freedom: int) -> None:
    # with one degree of freedom scipy is off by 1.4e-11 near 0
    wanted = 0.5 - math.atan(t) / math.pi if freedom == 1 else float(stats.t.sf(t, freedom))
    assert racing.student_tail(t, freedom) == pytest.approx(wanted, abs=1e-5 if freedom >= 200 else 1e-12)


# --- hopeless ---------------------------------------------------------------------------------------------------

COURSE = incumbent(fold(1.6, 1.0, 0.5), fold(1.5, 1.2, 0.8))


def trains(*losses: float) -> Fold:
    return fold(*losses, done=False)


@pytest.mark.parametrize(
    ("trial", "stops"),
    [
        ([trains(2.0, 2.1)], True),
        ([trains(2.0)], False),  # one epoch shows no course
        ([trains(2.0, 1.9)], False),  # improves
        ([trains(2.0, 2.1, 1.9)], False),  # improves again
        ([trains(2.0, 1.7, 1.8)], True),
        ([trains(1.55, 1.58)], False),  # no worse than the incumbent's own start
        ([trains(1.5, 9.0)], False),  # one bad epoch
        ([fold(0.4), fold(0.4), trains(2.0, 2.1)], False),  # good folds speak for a bad one
        ([fold(1.5), trains(2.0, 2.1)], True),
    ],
)
def test_a_fold_is_given_up_only_when_everything_speaks_against_it(trial: list[Fold], stops: bool) -> None:
    rules = replace(FORGIVING, first_folds=4, folds=6)
    best = Incumbent(name="trial 7", folds={**COURSE.folds, **{(1, n): fold(0.9) for n in range(4)}})
    reason = reason_to_stop(rules, folds(*trial), best)
    assert (reason is not None) == stops
    assert reason_to_stop(replace(rules, hopeless=False), folds(*trial), best) is None


def test_a_hopeless_trial_says_where() -> None:
    reason = reason_to_stop(FORGIVING, folds(trains(2.0, 2.125)), COURSE)
    assert reason == (
        "2.125 nats on fold 1 after epoch 2, no longer improving and worse than 1.600, "
        "the worst that trial 7 had shown by then"
    )


def test_later_epochs_of_the_incumbent_are_not_held_against_an_earlier_one() -> None:
    late = incumbent(fold(0.5, 0.5, 3.0), fold(0.5, 0.5, 3.0))
    assert reason_to_stop(FORGIVING, folds(trains(2.0, 2.1)), late) is not None
    assert reason_to_stop(FORGIVING, folds(trains(2.0, 2.1, 2.2)), late) is None


@given(st.lists(st.integers(0, ITEMS), min_size=2, max_size=5))
def test_hopeless_holds_in_both_directions(course: list[int]) -> None:
    up = reason_to_stop(ACCURATE, folds(right(*course, done=False)), incumbent(right(6, 9), right(5, 12)))
    errors = [float(ITEMS - n) for n in course]
    best = incumbent(fold(14.0, 11.0), fold(15.0, 8.0))
    down = reason_to_stop(FORGIVING, folds(trains(*errors)), best)
    assert (up is None) == (down is None)
