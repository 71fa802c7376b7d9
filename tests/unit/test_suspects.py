"""Confident learning finds flipped labels, and nothing where every row is as sure as its class."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import suspects


def predictions(
    rows: int, classes: int, *, seed: int, strength: float = 2.5, skew: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """(probabilities, true classes) of a model that is mostly right; skew: and surer of some classes than of others."""
    draw = np.random.default_rng(seed)
    truth = draw.integers(classes, size=rows)
    logits = draw.normal(size=(rows, classes))
    logits[np.arange(rows), truth] += strength + skew * truth
    return suspects.softmax(logits.astype(np.float16)), truth


def flipped(truth: np.ndarray, classes: int, share: float, seed: int) -> tuple[np.ndarray, set[int]]:
    draw = np.random.default_rng(seed)
    chosen = draw.choice(len(truth), size=round(share * len(truth)), replace=False)
    labels = truth.copy()
    labels[chosen] = (labels[chosen] + draw.integers(1, classes, size=len(chosen))) % classes
    return labels, set(chosen.tolist())


@given(seed=st.integers(0, 10_000), classes=st.integers(2, 6), skew=st.sampled_from([0.0, 0.5]))
def test_most_flipped_labels_are_among_the_first_suspects(seed: int, classes: int, skew: float) -> None:
    probabilities, truth = predictions(300, classes, seed=seed, strength=4.0, skew=skew)
    labels, planted = flipped(truth, classes, 0.05, seed + 1)
    found = suspects.by_classes(probabilities, labels)
    caught = [each for each in found if each.row in planted]
    # a class's threshold is the mean of its rows: a third of them are below it, and flipped ones among these are missed
    assert len(caught) >= 0.5 * len(planted)
    assert len(planted & {each.row for each in found[:6]}) >= 5
    assert sum(each.said == truth[each.row] for each in caught) >= 0.9 * len(caught)


@given(seed=st.integers(0, 10_000), classes=st.integers(2, 5))
def test_a_suspects_own_class_is_below_its_threshold_and_the_other_is_not(seed: int, classes: int) -> None:
    probabilities, truth = predictions(60, classes, seed=seed, strength=1.0)
    labels, _ = flipped(truth, classes, 0.1, seed)
    found = suspects.by_classes(probabilities, labels)
    threshold = {j: probabilities[labels == j, j].mean() for j in range(classes) if (labels == j).any()}
    expected = {
        row
        for row in range(60)
        if probabilities[row, labels[row]] < threshold[labels[row]]
        and any(j != labels[row] and probabilities[row, j] >= bar for j, bar in threshold.items())
    }
    assert {each.row for each in found} == expected
    margins = [probabilities[each.row, labels[each.row]] - probabilities[each.row, each.said] for each in found]
    assert margins == sorted(margins)


@given(seed=st.integers(0, 10_000))
def test_the_order_of_the_rows_does_not_matter(seed: int) -> None:
    probabilities, truth = predictions(80, 3, seed=seed, strength=1.5)
    order = np.random.default_rng(seed).permutation(80)
    one = {each.row: each.said for each in suspects.by_classes(probabilities, truth)}
    other = {int(order[each.row]): each.said for each in suspects.by_classes(probabilities[order], truth[order])}
    assert one == other


def test_a_model_that_knows_nothing_and_a_class_without_rows_suspect_nobody() -> None:
    labels = np.array([0, 1] * 10)
    assert suspects.by_classes(np.full((20, 3), 1 / 3), labels) == []


@given(seed=st.integers(0, 10_000), classes=st.integers(1, 5))
def test_of_several_labels_each_class_is_judged_by_itself(seed: int, classes: int) -> None:
    draw = np.random.default_rng(seed)
    given_ = draw.random((150, classes)) < 0.4
    likely = suspects.sigmoid(np.where(given_, 3.0, -3.0) + draw.normal(size=given_.shape))
    wrong = {(int(row), int(draw.integers(classes))) for row in draw.choice(150, size=6, replace=False)}
    for row, number in wrong:
        likely[row, number] = 0.001 if given_[row, number] else 0.999
    found = suspects.by_labels(likely, given_)
    assert {(each.row, each.said) for each in found[:6]} == wrong
    assert len({each.row for each in found}) == len(found)


@given(losses=st.lists(st.floats(0.5, 1.5), min_size=20, max_size=60), seed=st.integers(0, 99))
def test_without_classes_only_losses_far_beyond_the_others_are_suspect(losses: list[float], seed: int) -> None:
    plain = np.array(losses)
    low, high = np.quantile(plain, (0.25, 0.75))
    assert all(plain[each.row] > high + 3 * (high - low) for each in suspects.by_losses(plain))
    with_odd = np.concatenate([plain, [9.0, np.nan, 12.0]])
    assert [each.row for each in suspects.by_losses(with_odd)][:2] == [len(plain) + 2, len(plain)]


def test_no_losses_no_suspects() -> None:
    assert suspects.by_losses(np.array([])) == []
    assert suspects.by_losses(np.array([np.nan])) == []
