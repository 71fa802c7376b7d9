"""benchmarks.effects: configurations one change apart, and the difference of two with its interval."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks.effects import compare, variations
from orchestrator import prepare, study_file

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def prepared() -> prepare.Prepared:
    made, _ = prepare.prepare(study_file.load(ROOT / "studies" / "novels.yaml"))
    return made


def test_every_choice_is_tried_once_and_one_change_apart(prepared: prepare.Prepared) -> None:
    entries = {"pooling": ("first", "mean"), "class_weights": ("none", "balanced")}
    found = variations.variations(_choices(prepared, entries))
    assert [each.changed for each in found] == [{}, {"pooling": "mean"}, {"class_weights": "balanced"}]
    without = found[0].settings
    for each in found[1:]:
        differing = {name for name in vars(without) if getattr(each.settings, name) != getattr(without, name)}
        assert differing == set(each.changed)


def test_a_fold_has_the_same_seed_and_rows_under_every_choice(prepared: prepare.Prepared) -> None:
    chosen = variations.variations(_choices(prepared, {"pooling": ("first", "mean")}))
    found = list(variations.units(prepared, chosen))
    assert len(found) == 2 * 3
    assert len({unit.unit for unit in found}) == len(found)
    for one, other in zip(found[:3], found[3:], strict=True):
        assert (one.seed, one.train, one.validation) == (other.seed, other.train, other.validation)
        assert one.settings != other.settings
    assert len({unit.seed for unit in found}) == 3


def test_a_range_is_no_list_of_choices(prepared: prepare.Prepared) -> None:
    with pytest.raises(ValueError, match="learning_rate"):
        variations.variations(prepared)


def test_an_unknown_name_is_refused(prepared: prepare.Prepared) -> None:
    with pytest.raises(ValueError, match="not searched: dropout"):
        variations.variations(_choices(prepared, {"pooling": ("first", "mean")}), ["dropout"])


def test_an_effect_is_the_paired_difference_with_its_interval() -> None:
    draw = np.random.default_rng(3)
    against = np.stack([draw.gamma(2, 0.5, 150), np.ones(150)])
    change = draw.normal(-0.1, 0.4, 150)
    found = compare.effect(against + np.stack([change, np.zeros(150)]), against, np.arange(150))
    low, high = stats.t.interval(0.95, 149, change.mean(), stats.sem(change))
    assert found.difference == pytest.approx(change.mean())
    assert found.loss == pytest.approx(against[0].mean() + change.mean())
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.015)


def test_rows_that_are_validated_twice_count_once_with_both_losses() -> None:
    twice = [(np.array([0, 2]), np.array([1.0, 2.0]), np.ones(2)), (np.array([2, 1]), np.array([4.0, 8.0]), np.ones(2))]
    assert compare.by_row(3, twice).tolist() == [[1.0, 8.0, 6.0], [1.0, 1.0, 2.0]]


def _choices(prepared: prepare.Prepared, entries: dict[str, tuple[str, ...]]) -> prepare.Prepared:
    spec = prepared.loaded.spec
    raw = {name: {"choices": list(values)} for name, values in entries.items()}
    fixed = {"learning_rate": 1e-3, "batch_size": 8, "epochs": 1, "lora_rank": 4, "pooling": "first"}
    training = {name: value for name, value in {**spec.training, **fixed}.items() if name not in entries}
    search = spec.search.model_copy(update={"space": raw})
    loaded = dataclasses.replace(prepared.loaded, spec=spec.model_copy(update={"search": search, "training": training}))
    return dataclasses.replace(prepared, loaded=loaded)
