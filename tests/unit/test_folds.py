"""The fold plan partitions rows, keeps groups whole and classes even, and depends on nothing but its arguments."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from orchestrator import folds

LABELS = st.lists(st.sampled_from("aaabbc"), min_size=4, max_size=40)


def each_fold(assigned: tuple[int, ...], count: int) -> list[int]:
    sizes = Counter(assigned)
    return [sizes[fold] for fold in range(count)]


@given(
    labels=LABELS, count=st.integers(2, 6), repeats=st.integers(1, 3), seed=st.integers(0, 2**31 - 1), data=st.data()
)
def test_every_row_validates_once_in_each_repeat_and_no_fold_is_empty(
    labels: list[str], count: int, repeats: int, seed: int, data: st.DataObject
) -> None:
    size = len(labels)
    groups = data.draw(st.none() | st.lists(st.integers(0, 9).map(str), min_size=size, max_size=size))
    assume(count <= (size if groups is None else len(set(groups))))
    stratify = data.draw(st.none() | st.just(labels))
    plan = folds.plan(size, count, repeats=repeats, seed=seed, labels=stratify, groups=groups)
    assert len(plan.units) == count * repeats
    for repeat in range(repeats):
        parts = [plan.split(repeat, fold) for fold in range(count)]
        assert sorted(row for _, validation in parts for row in validation) == list(range(size))
        for train, validation in parts:
            assert train
            assert validation
            assert sorted(train + validation) == list(range(size))
            if groups is not None:
                assert not {groups[row] for row in train} & {groups[row] for row in validation}


@given(labels=LABELS, count=st.integers(2, 6), seed=st.integers(0, 99))
def test_stratified_shares_differ_by_at_most_one_row_whatever_is_rare(labels: list[str], count: int, seed: int) -> None:
    assume(count <= len(labels))
    (assigned,) = folds.plan(len(labels), count, seed=seed, labels=labels).assignment
    for label in set(labels):
        shares = each_fold(tuple(fold for fold, at in zip(assigned, labels, strict=True) if at == label), count)
        assert max(shares) - min(shares) <= 1
    sizes = each_fold(assigned, count)
    assert max(sizes) - min(sizes) <= 1


def test_grouped_and_stratified_folds_are_nearly_even() -> None:
    labels = [("a", "b", "b")[row % 3] for row in range(120)]
    groups = [str(row // 4) for row in range(120)]
    (assigned,) = folds.plan(120, 5, labels=labels, groups=groups).assignment
    shares = each_fold(tuple(fold for fold, at in zip(assigned, labels, strict=True) if at == "a"), 5)
    assert max(shares) - min(shares) <= 2
    assert each_fold(assigned, 5) == [24] * 5


def test_the_plan_is_a_function_of_its_seed_and_repeats_differ() -> None:
    labels = list("ab" * 20)
    plan = folds.plan(40, 4, repeats=2, seed=3, labels=labels)
    assert plan == folds.plan(40, 4, repeats=2, seed=3, labels=labels)
    assert plan.digest() != folds.plan(40, 4, repeats=2, seed=4, labels=labels).digest()
    assert plan.assignment[0] != plan.assignment[1]


@pytest.mark.parametrize(
    ("labels", "groups", "expected"),
    [
        (None, None, "da37eba6"),
        (list("ab" * 10), None, "84813d62"),
        (list("aaab" * 5), [str(row // 2) for row in range(20)], "fd053993"),
        (None, [str(row // 2) for row in range(20)], "fbd0adc1"),
        (list("abcdefghij" * 2), None, "403cb02c"),
    ],
)
def test_plans_stay_what_they_are(labels: list[str] | None, groups: list[str] | None, expected: str) -> None:
    """A launched study must find its folds again with every later version."""
    assert folds.plan(20, 4, seed=7, labels=labels, groups=groups).digest()[:8] == expected


def test_too_many_folds_are_an_error_and_rare_classes_a_caution() -> None:
    assert folds.problems(3, 4, None, None) == (["folds: 4 but only 3 rows"], [])
    assert folds.problems(9, 4, None, list("aaabbbccc"))[0] == [
        "folds: 4 but only 3 groups of rows that belong together"
    ]
    errors, cautions = folds.problems(9, 4, list("aaaaaaabb"), None)
    assert (errors, len(cautions)) == ([], 1)
    assert "1 of 2 classes have fewer rows than there are folds: 'b' (2)" in cautions[0]
    with pytest.raises(ValueError, match="folds: 4 but only 3 rows"):
        folds.plan(3, 4)
