"""Which rows a fold stops by: a function of its training rows, a share of each kind, groups whole."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.stopping import expected, held_out
from orchestrator.texts import fingerprint

SHARES = st.floats(0.02, 0.5)
ROW = st.fixed_dictionaries(
    {"text": st.text("abc", max_size=6), "label": st.sampled_from("xyz")}, optional={"group": st.sampled_from("12345")}
)


def texts(count: int, classes: int = 3) -> dict[int, dict[str, Any]]:
    return {3 * n: {"text": f"text {n}", "label": str(n % classes)} for n in range(count)}


def together(row: dict[str, Any]) -> str:
    return row["group"] if "group" in row else fingerprint(row)


@given(drawn=st.lists(ROW, min_size=2, max_size=60), share=SHARES)
def test_neither_part_is_empty_and_no_group_or_text_stands_on_both_sides(
    drawn: list[dict[str, Any]], share: float
) -> None:
    rows = dict(enumerate(drawn))
    if len({together(row) for row in drawn}) < 2:
        with pytest.raises(ValueError, match="belong together"):
            held_out(rows, share)
        return
    held = held_out(rows, share)
    assert held == held_out(rows, share) == tuple(sorted(set(held)))
    rest = rows.keys() - set(held)
    assert held
    assert rest
    assert not {together(rows[n]) for n in held} & {together(rows[n]) for n in rest}


@given(count=st.integers(10, 200), classes=st.integers(1, 5), share=SHARES)
def test_of_single_rows_each_class_gives_its_share_to_a_row(count: int, classes: int, share: float) -> None:
    rows = texts(count, classes)
    held = held_out(rows, share)
    assert abs(len(held) - share * count) <= 1
    whole, part = (Counter(rows[n]["label"] for n in numbers) for numbers in (rows, held))
    assert all(abs(part[label] - share * whole[label]) <= 1.5 for label in whole)


def test_other_rows_are_parted_otherwise_and_labels_aside_nothing_else_counts() -> None:
    rows = texts(60)
    assert held_out(rows, 0.2) != held_out({n + 1: row for n, row in rows.items()}, 0.2)
    assert held_out(rows, 0.2) == held_out(dict(rows), 0.2)
    assert set(held_out(rows, 0.1)) != set(held_out(rows, 0.3))


@pytest.mark.parametrize("rows", [{"labels": ["a", "b"]}, {"number": 1.5}, {"tags": ["O"]}, {"target": "b"}])
def test_rows_of_every_task_can_be_parted(rows: dict[str, Any]) -> None:
    found = held_out({n: {"text": f"text {n}", **rows} for n in range(40)}, 0.25)
    assert len(found) == 10


@given(rows=st.integers(20, 400), folds=st.integers(2, 10), share=SHARES)
def test_what_check_expects_is_what_a_fold_holds_out(rows: int, folds: int, share: float) -> None:
    smallest = rows - -(-rows // folds)
    assert abs(expected(rows, folds, share) - len(held_out(texts(smallest), share))) <= 1
