"""The one number, and the metrics beside it."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import objective

DYADIC = st.integers(0, 4096).map(lambda number: number / 16)  # adds without rounding, in any order
COUNTS = st.lists(st.integers(0, 9), min_size=3, max_size=3)
TALLIES = st.fixed_dictionaries(
    {
        "nats": DYADIC,
        "items": st.integers(1, 50),
        "correct": st.integers(0, 50),
        "tp": COUNTS,
        "fp": COUNTS,
        "fn": COUNTS,
        "bins": st.lists(st.tuples(st.integers(0, 9), DYADIC, st.integers(0, 9)).map(list), min_size=15, max_size=15),
    }
)
LANGUAGE = {"nats": 40.0, "items": 20, "correct": 5}


@given(parts=st.lists(TALLIES, min_size=2, max_size=6), cut=st.integers(1, 5))
def test_tallies_add_in_any_grouping_and_order(parts: list[dict[str, Any]], cut: int) -> None:
    whole = objective.add(parts)
    assert objective.add([objective.add(parts[:cut]), objective.add(parts[cut:])]) == whole
    assert objective.add(reversed(parts)) == whole
    assert objective.add([whole]) == whole


@given(losses=st.lists(DYADIC, min_size=1, max_size=40), sizes=st.lists(st.integers(1, 7), min_size=1))
def test_validation_loss_does_not_depend_on_the_batches(losses: list[float], sizes: list[int]) -> None:
    batches, at = [], 0
    while at < len(losses):
        size = sizes[len(batches) % len(sizes)]
        batches.append(losses[at : at + size])
        at += size
    tallies = [{"nats": sum(batch), "items": len(batch)} for batch in batches]
    assert objective.validation_loss(objective.add(tallies)) == sum(losses) / len(losses)


def test_a_mean_of_batch_means_would_depend_on_them() -> None:
    """What the definition avoids: uneven rows, the same losses for each token, other batches."""
    draw = random.Random(0)
    rows = [(tokens, tokens * (1 + 4 / tokens)) for tokens in (draw.randint(1, 40) for _ in range(64))]
    naive, pooled = set(), set()
    for size in (1, 4, 16, 64):
        batches = [rows[at : at + size] for at in range(0, 64, size)]
        means = [sum(nats for _, nats in batch) / sum(tokens for tokens, _ in batch) for batch in batches]
        naive.add(round(sum(means) / len(means), 6))
        tallies = [{"nats": sum(n for _, n in batch), "items": sum(t for t, _ in batch)} for batch in batches]
        pooled.add(round(objective.validation_loss(objective.add(tallies)), 6))
    assert len(naive) == 4
    assert len(pooled) == 1


def test_folds_are_pooled_and_not_averaged() -> None:
    small, large = {**LANGUAGE, "nats": 10.0, "items": 1}, {**LANGUAGE, "nats": 9.0, "items": 9}
    assert objective.value("validation_loss", [small, large]) == 1.9


def test_metrics_are_those_of_the_definitions() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    draw = random.Random(1)
    truth = [draw.randrange(3) for _ in range(200)]
    said = [label if draw.random() < 0.6 else draw.randrange(3) for label in truth]
    pairs = list(zip(truth, said, strict=True))
    tallies = {
        "nats": 100.0,
        "items": 200,
        "correct": sum(t == s for t, s in pairs),
        "tp": [sum(t == s == c for t, s in pairs) for c in range(3)],
        "fp": [sum(s == c != t for t, s in pairs) for c in range(3)],
        "fn": [sum(t == c != s for t, s in pairs) for c in range(3)],
        "bins": [[0, 0.0, 0]] * 7 + [[100, 50.0, 60], [100, 55.0, 40]] + [[0, 0.0, 0]] * 6,
    }
    values = objective.metrics(tallies)
    assert values["f1"] == pytest.approx(sklearn.f1_score(truth, said, average="macro"))
    assert values["accuracy"] == sklearn.accuracy_score(truth, said)
    assert values["calibration_error"] == pytest.approx((10 + 15) / 200)
    assert values["validation_loss"] == 0.5
    assert "perplexity" not in values


def test_a_class_that_neither_occurs_nor_is_predicted_does_not_lower_f1() -> None:
    tallies = {"nats": 1.0, "items": 2, "correct": 2, "tp": [2, 0], "fp": [0, 0], "fn": [0, 0], "bins": [[2, 2.0, 2]]}
    assert objective.metrics(tallies)["f1"] == 1.0


@given(pairs=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60))
def test_weighted_f1_is_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    """Classes that never occur, never are predicted, or neither, among them."""
    sklearn = pytest.importorskip("sklearn.metrics")
    tallies = {
        "nats": 1.0,
        "items": len(pairs),
        "correct": sum(truth == said for truth, said in pairs),
        "tp": [sum(truth == said == each for truth, said in pairs) for each in range(4)],
        "fp": [sum(said == each != truth for truth, said in pairs) for each in range(4)],
        "fn": [sum(truth == each != said for truth, said in pairs) for each in range(4)],
        "bins": [[len(pairs), 1.0, 0]],
    }
    wanted = sklearn.f1_score(*zip(*pairs, strict=True), average="weighted", zero_division=0.0)
    assert objective.metrics(tallies)["weighted_f1"] == pytest.approx(wanted, abs=1e-12)


@given(rows=st.lists(st.tuples(*[st.booleans()] * 6), min_size=1, max_size=30))
def test_weighted_f1_of_several_labels_is_scikit_learns(rows: list[tuple[bool, ...]]) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    truth, said = [row[:3] for row in rows], [row[3:] for row in rows]
    both = [list(zip(t, s, strict=True)) for t, s in zip(truth, said, strict=True)]
    tallies = {
        "nats": 1.0,
        "items": len(rows),
        "correct": 0,
        "tp": [sum(row[each] == (True, True) for row in both) for each in range(3)],
        "fp": [sum(row[each] == (False, True) for row in both) for each in range(3)],
        "fn": [sum(row[each] == (True, False) for row in both) for each in range(3)],
    }
    found = objective.metrics(tallies)["weighted_f1"]
    if not any(any(row) for row in truth):
        assert math.isnan(found)
        return
    wanted = sklearn.f1_score(truth, said, average="weighted", zero_division=0.0)
    assert found == pytest.approx(wanted, abs=1e-12)


def test_perplexity_is_exp_of_the_loss_and_bytes_are_counted_where_there_are_any() -> None:
    assert objective.metrics(LANGUAGE)["perplexity"] == math.exp(2.0)
    of_bytes = objective.metrics({**LANGUAGE, "bytes": 80})
    assert of_bytes["nats_per_byte"] == 0.5
    assert of_bytes["byte_perplexity"] == math.exp(0.5)
    assert not {"nats_per_byte", "byte_perplexity"} & objective.metrics(LANGUAGE).keys()
    assert objective.metrics({**LANGUAGE, "nats": 1e9, "bytes": 1})["byte_perplexity"] == math.inf


@pytest.mark.parametrize("nats", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["validation_loss", "perplexity"])
def test_a_number_that_is_not_finite_is_no_value(nats: float, name: str) -> None:
    assert objective.value(name, [LANGUAGE, {**LANGUAGE, "nats": nats}]) is None


def test_a_metric_the_task_does_not_have_is_an_error_and_never_another_metric() -> None:
    with pytest.raises(KeyError):
        objective.value("f1", [LANGUAGE])


def test_every_objective_has_a_direction() -> None:
    classes = {**LANGUAGE, "tp": [1], "fp": [0], "fn": [0], "bins": [[1, 1.0, 1]]}
    several = {name: value for name, value in classes.items() if name != "bins"}
    numbers = dict.fromkeys(("squared_errors", "absolute_errors", "numbers", "squared_numbers"), 1.0)
    words = {**LANGUAGE, "rows": 3, "entities": [1, 0, 0]}
    ends = {**LANGUAGE, "rows": 3, "exact": 1, "overlap": 1.5}
    written = {**LANGUAGE, "answered": 3, "matches": 1, "chrf": [4, 4, 2] * 6}
    kinds = (LANGUAGE, classes, several, {**LANGUAGE, **numbers}, words, ends, written)
    assert set(objective.MAXIMIZE) == set().union(*(objective.metrics(each) for each in kinds))
    assert set(objective.OF_TASK) == set(objective.MAXIMIZE) - {"validation_loss"}


def test_metrics_of_texts_that_a_model_wrote() -> None:
    written = {**LANGUAGE, "answered": 4, "matches": 1, "chrf": [10, 8, 4, 5, 4, 0, *[0, 3, 0] * 4]}
    found = objective.metrics(written)
    assert found["exact_match"] == 0.25
    precision, recall = (4 / 10 + 0) / 2, (4 / 8 + 0) / 2  # of the two orders that both have
    assert found["chrf"] == pytest.approx(100 * 5 * precision * recall / (4 * precision + recall))
    assert objective.metrics({**LANGUAGE, "answered": 4, "chrf": [0] * 18})["chrf"] == 0.0
    assert not {"chrf", "exact_match"} & objective.metrics(LANGUAGE).keys()


def test_the_floor_is_the_majority_class_on_the_same_folds() -> None:
    labels = list("aaab")
    floor = objective.majority(labels, [((0, 1, 3), (2,)), ((0, 1, 2), (3,))])
    assert floor["accuracy"] == 0.5
    assert floor["validation_loss"] == pytest.approx((-math.log(3 / 5) - math.log(1 / 5)) / 2)
