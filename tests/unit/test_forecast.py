"""A forecast is a range, counts what a study's keys cost, and says where it comes from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import forecast, study_file
from orchestrator.contract import Settings
from orchestrator.forecast import Given, Span
from orchestrator.sizes import ModelSize
from orchestrator.spec import StudySpec
from orchestrator.tokens import Tokens
from tests.unit.study_text import folder, study

MINILM = ModelSize(layers=10_600_000, embeddings=11_900_000, bytes=91_000_000, count=6, hidden=384)
TOKENS = Tokens(exact=True, number=(0, 1), whole=(10, 20), target=(0, 0), first=(0, 0))
EPOCHS = st.integers(1, 9)
GIVEN = Given(rows=20, classes=2)
MANY = Given(rows=300)


def spec(where: Path, **sections: str | None) -> StudySpec:
    """A study without baselines and racing, unless a section says otherwise."""
    plain: dict[str, str | None] = {"baselines": "[]", "racing": "{rule: none}", "search": fixed("batch_size: [8]")}
    return study_file.load(folder(where, study(**{**plain, **sections}))).spec


def fixed(entries: str, sampler: str = "grid") -> str:
    return f"{{sampler: {sampler}, space: {{{entries}}}}}"


@given(epochs=EPOCHS, folds=st.integers(2, 10))
def test_a_unit_costs_its_training_rows_thrice_or_twice_and_its_validation_rows_once(epochs: int, folds: int) -> None:
    part = (folds - 1) / folds
    cost = {
        method: forecast.passes(Settings(epochs=epochs, method=method), folds, GIVEN)
        for method in ("lora", "head", "full")
    }
    assert cost["lora"] == pytest.approx(epochs * (2 * part + 1 / folds))
    assert cost["head"] == pytest.approx(epochs * (part + 1 / folds))
    assert cost["full"] == pytest.approx(epochs * (3 * part + 1 / folds))


@pytest.mark.parametrize(
    "more",
    [
        {"char_noise": 0.1},
        {"char_noise": 0.1, "augment_copies": 3},
        {"paraphrases": 1},
        {"r_drop_alpha": 1.0},
        {"pseudo_rounds": 1},
        {"pseudo_rounds": 2},
        {"synthetic": 1},
        {"epochs": 4},
    ],
)
def test_what_makes_an_epoch_longer_makes_the_forecast_longer(more: dict[str, Any]) -> None:
    assert forecast.passes(replace(Settings(), **more), 5, GIVEN) > forecast.passes(Settings(), 5, GIVEN)


def test_a_study_is_its_trials_its_default_and_its_baselines(tmp_path: Path) -> None:
    each = 4 * forecast.passes(Settings(epochs=2), 4, GIVEN)
    default = 4 * forecast.passes(Settings(), 4, GIVEN)
    search = fixed("epochs: [2], batch_size: [4, 8, 16]")
    wanted = spec(tmp_path, search=search)
    found = forecast.work(wanted, GIVEN)
    assert found.trial == pytest.approx(each)
    assert found.study.low == found.study.high == pytest.approx(3 * each + default)
    with_baselines = forecast.work(
        spec(tmp_path, search=fixed("epochs: [2], batch_size: [4, 8, 16]"), baselines=None), GIVEN
    )
    assert with_baselines.study.low == pytest.approx(3 * each + default + forecast.BASELINE_PASSES)


def test_racing_may_save_and_never_costs(tmp_path: Path) -> None:
    search = fixed("epochs: [1, 2]", "tpe")
    plain = forecast.work(spec(tmp_path, search=search), GIVEN)
    raced = forecast.work(spec(tmp_path, search=search, racing="{rule: forgiving}"), GIVEN)
    assert raced.study.high == plain.study.high
    assert 0.4 * plain.study.high < raced.study.low < 0.6 * plain.study.high


def test_epochs_of_a_range_count_by_their_mean_and_shared_ones_once(tmp_path: Path) -> None:
    search = fixed("epochs: {low: 1, high: 5, step: 1}")
    shared = {"share_epochs": "true", "training": "{lr_schedule: constant, warmup_ratio: 0}"}
    alone = forecast.work(spec(tmp_path, search=search), GIVEN)
    once = forecast.work(spec(tmp_path, search=search, **shared), GIVEN)
    default = 4 * forecast.passes(Settings(), 4, GIVEN)
    assert alone.trial == pytest.approx(4 * forecast.passes(Settings(epochs=3), 4, GIVEN), rel=0.1)
    assert once.study.high == pytest.approx(4 * forecast.passes(Settings(epochs=5), 4, GIVEN) + default)


def test_what_is_inactive_costs_nothing(tmp_path: Path) -> None:
    search = fixed("method: [lora, head], epochs: {choices: [60], when: {method: head}}")
    found = forecast.work(spec(tmp_path, search=search), GIVEN)
    lora, head = (forecast.passes(Settings(method=m, epochs=e), 4, GIVEN) for m, e in (("lora", 3), ("head", 60)))
    assert found.trial == pytest.approx(4 * (lora + head) / 2, rel=0.15)


def test_rows_that_are_written_for_each_class_are_trained_on(tmp_path: Path) -> None:
    plain, more = (forecast.passes(Settings(epochs=1, synthetic=n), 4, GIVEN) for n in (0, 10))
    assert more - plain == pytest.approx(2 * 10 * GIVEN.classes / GIVEN.rows)


def test_of_several_models_the_forecast_is_the_mean_and_memory_the_most(tmp_path: Path) -> None:
    larger = replace(MINILM, layers=85_000_000, hidden=768, count=12)
    small, large = (forecast.by_formula(spec(tmp_path), MANY, TOKENS, size, "cpu", 2) for size in (MINILM, larger))
    both = forecast.mean([small, large])
    assert both == replace(forecast.mean([large, small]), basis=both.basis)
    assert both.memory == large.memory
    assert both.seconds is not None
    assert small.seconds is not None
    assert large.seconds is not None
    assert both.seconds.high == (small.seconds.high + large.seconds.high) / 2
    assert forecast.mean([small, replace(large, seconds=None, memory=None)]).seconds is None


def test_on_a_cpu_the_time_follows_from_sizes_and_workers(tmp_path: Path) -> None:
    wanted = spec(tmp_path)
    one, two = (forecast.by_formula(wanted, MANY, TOKENS, MINILM, "cpu", workers) for workers in (1, 2))
    assert one.seconds is not None
    assert two.seconds is not None
    assert one.seconds.low < one.seconds.high
    assert two.seconds.high - forecast.START[1] == pytest.approx((one.seconds.high - forecast.START[1]) / 2)
    operations = 2 * 300 * 15 * MINILM.layers
    assert forecast.pass_operations(wanted, 300, TOKENS, MINILM) == pytest.approx(operations, rel=0.02)
    assert one.memory is not None
    assert 500 * 2**20 < one.memory < 700 * 2**20  # measured: 665 MiB at batches of 32


def test_on_a_gpu_no_time_is_invented(tmp_path: Path) -> None:
    found = forecast.by_formula(spec(tmp_path), MANY, TOKENS, MINILM, "cuda", 1)
    assert (found.seconds, found.trial_seconds) == (None, None)
    assert str(found).startswith(
        "how long it takes on 1 GPU worker is not known here, `foldtune check --probe` measures"
    )


def test_hours_bound_the_forecast(tmp_path: Path) -> None:
    slow = Span(low=1e5, high=2e5)
    wanted = spec(tmp_path, budget="{hours: 2}", search=fixed("batch_size: [8]"))
    found = forecast.by_pace(
        wanted, forecast.work(wanted, GIVEN), slow, basis="probe", device="cpu", workers=2, memory=None
    )
    assert found.seconds is not None
    assert found.seconds.high == 3600 + forecast.START[1]


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (10, 25, "about 10 to 25 seconds"),
        (110, 290, "about 1.8 to 4.8 minutes"),
        (3600, 3600, "about 60 minutes"),
        (3600 * 9, 3600 * 30, "about 9 to 30 hours"),
        (86400 * 3, 86400 * 20, "about 3 to 20 days"),
    ],
)
def test_a_duration_has_two_digits_and_one_unit(low: float, high: float, said: str, tmp_path: Path) -> None:
    found = replace(
        forecast.by_formula(spec(tmp_path), MANY, TOKENS, MINILM, "cpu", 2),
        seconds=Span(low=low, high=high),
        memory=None,
    )
    assert str(found) == f"forecast: {said} on 2 CPU workers of this machine (by rule of thumb)"


def test_more_rows_longer_rows_and_larger_models_take_longer_and_more_memory(tmp_path: Path) -> None:
    wanted = spec(tmp_path)
    base = forecast.by_formula(wanted, MANY, TOKENS, MINILM, "cpu", 1)
    longer = replace(TOKENS, whole=(100, 120))
    larger = replace(MINILM, layers=85_000_000, hidden=768, count=12)
    for tokens, size in ((longer, MINILM), (TOKENS, larger)):
        other = forecast.by_formula(wanted, MANY, tokens, size, "cpu", 1)
        assert other.seconds is not None
        assert base.seconds is not None
        assert other.seconds.low > base.seconds.low
        assert (other.memory or 0) > (base.memory or 0)
