"""Shared epochs: one epoch for all folds, from what is pooled over them; and a grid's families."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import epochs, objective, space
from orchestrator.contract import Settings

LOSSES = st.lists(st.lists(st.floats(0.01, 10), min_size=4, max_size=4), min_size=1, max_size=5)


def tallies(loss: float, items: int = 10) -> dict[str, Any]:
    return {
        "nats": loss * items,
        "items": items,
        "correct": 5,
        "tp": [3, 2],
        "fp": [3, 2],
        "fn": [2, 3],
        "bins": [[0, 0.0, 0]] * 15,
    }


def folds(losses: list[list[float]]) -> list[dict[int, Any]]:
    return [{epoch: tallies(loss) for epoch, loss in enumerate(fold, start=1)} for fold in losses]


@given(LOSSES)
def test_the_chosen_epoch_is_the_best_of_the_pooled_curve(losses: list[list[float]]) -> None:
    found = epochs.best_epoch("validation_loss", folds(losses), range(1, 5))
    pooled = [objective.validation_loss(objective.add(fold[epoch] for fold in folds(losses))) for epoch in range(1, 5)]
    assert found == pooled.index(min(pooled)) + 1


def test_it_is_one_for_all_folds_and_not_each_folds_own() -> None:
    # the folds' own best epochs are 1 and 3; both together are best at 2
    assert epochs.best_epoch("validation_loss", folds([[0.1, 0.2, 0.9], [0.9, 0.2, 0.1]]), (1, 2, 3)) == 2


def test_of_equals_the_fewest_epochs_win() -> None:
    assert epochs.best_epoch("validation_loss", folds([[0.5, 0.2, 0.2]]), (1, 2, 3)) == 2


def test_only_epochs_of_the_space_are_chosen() -> None:
    assert epochs.best_epoch("validation_loss", folds([[0.5, 0.1, 0.2, 0.3]]), (1, 3)) == 3


def test_only_epochs_that_every_fold_has_are_compared() -> None:
    ragged = [*folds([[0.5, 0.4]]), *folds([[0.5, 0.6, 0.1]])]
    assert sorted(epochs.pooled_curve("validation_loss", ragged)) == [1, 2]
    assert epochs.best_epoch("validation_loss", ragged, (1, 2, 3)) in (1, 2)
    assert epochs.best_epoch("validation_loss", [], (1, 2, 3)) is None


def test_a_metric_that_grows_is_maximised() -> None:
    better = [{1: tallies(0.5), 2: {**tallies(0.5), "correct": 9}}]
    assert epochs.best_epoch("accuracy", better, (1, 2)) == 2


@pytest.mark.parametrize(
    ("settings", "shares"),
    [
        ({"lr_schedule": "constant", "warmup_ratio": 0.0}, True),
        ({"lr_schedule": "constant", "warmup_steps": 5}, True),
        ({"lr_schedule": "constant"}, False),
        ({"lr_schedule": "linear", "warmup_ratio": 0.0}, False),
        ({"lr_schedule": "cosine", "warmup_steps": 5}, False),
    ],
)
def test_a_run_is_shared_where_its_rate_does_not_depend_on_its_length(settings: dict[str, Any], shares: bool) -> None:
    assert epochs.shareable(Settings(**settings)) is shares


def test_families_are_together_and_their_longest_first() -> None:
    grid = list(space.grid({"epochs": space.Choices(choices=(1, 3, 2)), "lora_rank": space.Choices(choices=(4, 8))}))
    found = [(point["lora_rank"], point["epochs"]) for point in epochs.families(grid)]
    assert found == [(4, 3), (4, 2), (4, 1), (8, 3), (8, 2), (8, 1)]
