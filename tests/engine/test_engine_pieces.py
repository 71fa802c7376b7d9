"""The engine's small parts: grouping, schedules, dropout, LoRA's alpha, where models lie."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import get_scheduler

from orchestrator.contract import ModelPin, Settings
from trial_worker.engine.base import locate
from trial_worker.engine.batches import effective_batches, epoch_order, split_by_length, steps_per_epoch
from trial_worker.engine.dropout import mask, row_keys, salt
from trial_worker.engine.errors import UnusableModel, is_out_of_memory
from trial_worker.engine.optimizer import schedule_factor
from trial_worker.engine.stream import Stream
from trial_worker.engine.survey import resolve_alpha

CPU = torch.device("cpu")


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=40),
    rows=st.integers(1, 50),
    tokens=st.integers(1, 400),
    overhead=st.integers(0, 200),
)
@settings(deadline=None, max_examples=60)
def test_groups_hold_every_row_once_within_their_bounds(
    lengths: list[int], rows: int, tokens: int, overhead: int
) -> None:
    groups = split_by_length(lengths, rows, tokens, overhead)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) <= rows
        assert len(group) == 1 or len(group) * max(lengths[i] for i in group) <= tokens


def test_groups_are_made_where_padding_costs_more_than_another_group() -> None:
    lengths = [5, 50, 5, 50]
    assert split_by_length(lengths, 10, 1000, 20) == [[1, 3], [0, 2]]
    assert split_by_length(lengths, 10, 1000, 200) == [[1, 3, 0, 2]]


def test_an_epochs_order_depends_on_seed_and_epoch_only() -> None:
    rows = list(range(100, 150))
    assert epoch_order(rows, 3, 1) == epoch_order(rows, 3, 1)
    assert sorted(epoch_order(rows, 3, 1)) == rows
    assert epoch_order(rows, 3, 1) != epoch_order(rows, 3, 2)
    assert epoch_order(rows, 3, 1) != epoch_order(rows, 4, 1)


def test_the_last_smaller_batch_makes_its_own_step() -> None:
    batches = list(effective_batches(range(10), 4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert steps_per_epoch(10, 4) == 3


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
@pytest.mark.parametrize(
    ("ratio", "given"), [(0.0, 0), (0.05, 0), (0.3, 0), (1.0, 0), (0.05, 9), (0.0, 36), (0.0, 100)]
)
def test_schedules_equal_transformers(name: str, ratio: float, given: int) -> None:
    steps, settings = 37, Settings(lr_schedule=name, warmup_ratio=ratio, warmup_steps=given)
    theirs = "constant_with_warmup" if name == "constant" else name
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    warmup = given or -int(-steps * ratio // 1)
    scheduler = get_scheduler(theirs, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    for step in range(steps):
        assert schedule_factor(settings, step, steps) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        scheduler.step()


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="wave"):
        schedule_factor(Settings(lr_schedule="wave"), 1, 2)


@pytest.mark.parametrize(
    ("alpha", "number"), [(16, 16), (0.5, 0.5), ("2r", 8), ("r", 4), ("1.5 * r", 6), ("0.5R", 2), ("32", 32)]
)
def test_alpha_is_a_number_or_a_multiple_of_the_rank(alpha: float | str, number: float) -> None:
    assert resolve_alpha(alpha, 4) == number


@pytest.mark.parametrize("alpha", ["two r", "r2", ""])
def test_other_alphas_are_refused(alpha: str) -> None:
    with pytest.raises(ValueError, match="lora_alpha"):
        resolve_alpha(alpha, 4)


# --- dropout -----------------------------------------------------------------------------------------------


def kept(rows: list[int], step: int = 1, name: str = "layer", length: int = 6, features: int = 8) -> torch.Tensor:
    """(rows, length, features) bool."""
    stream = Stream(parts=((0, len(rows)),), lengths=(length,) * len(rows), device=CPU, keys=row_keys(5, step, rows))
    own, positions = stream.spots((1, len(rows) * length, features))
    assert stream.keys is not None
    return mask(stream.keys[own], positions, salt(name), features, 0.3).view(len(rows), length, features)


def test_a_rows_mask_depends_on_neither_neighbours_nor_padding() -> None:
    together = kept([3, 8, 20])
    assert torch.equal(kept([8])[0], together[1])
    assert torch.equal(kept([20, 3])[1], together[0])
    assert torch.equal(kept([8], length=9)[0, :6], together[1])


def test_a_row_has_the_same_mask_in_a_stream_and_in_a_grid() -> None:
    stream = Stream(parts=((0, 2),), lengths=(5, 3), device=CPU, keys=row_keys(5, 1, [3, 8]))
    assert stream.keys is not None
    flowing, standing = (
        mask(stream.keys[rows], positions, salt("layer"), 8, 0.3)
        for rows, positions in (stream.spots((1, 8, 8)), stream.spots((2, 5, 8)))
    )
    assert torch.equal(flowing, standing[stream.places])


def test_masks_differ_by_step_row_layer_and_token() -> None:
    here = kept([3], features=64)[0]
    assert not torch.equal(here, kept([3], step=2, features=64)[0])
    assert not torch.equal(here, kept([4], features=64)[0])
    assert not torch.equal(here, kept([3], name="other", features=64)[0])
    assert not torch.equal(here[0], here[1])


def test_dropout_keeps_its_share() -> None:
    dropped = (~kept(list(range(64)), length=50, features=100)).float()
    # 320,000 draws: the standard error of a share of 0.3 is 0.0008
    assert dropped.mean() == pytest.approx(0.3, abs=0.004)
    for dimension in range(3):
        others = [d for d in range(3) if d != dimension]
        share = dropped.mean(others)
        assert share.std() < 4 * (0.21 / (dropped.numel() / len(share))) ** 0.5
    neighbours = dropped[:, :, 1:] * dropped[:, :, :-1]
    assert neighbours.mean() == pytest.approx(0.09, abs=0.004)


def test_a_layer_refuses_what_is_neither_stream_nor_grid() -> None:
    stream = Stream(parts=((0, 2),), lengths=(5, 3), device=CPU)
    with pytest.raises(ValueError, match=r"neither \(1, 8, features\) nor \(2, ..., features\)"):
        stream.bounds((12, 4))


# --- memory and places -------------------------------------------------------------------------------------


def test_what_allocators_raise_is_known_as_out_of_memory() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 62, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


def place(path: str, origin: str, root: str | None = None) -> ModelPin:
    return ModelPin(path=path, origin=origin, pin="abc", pooling="first", normalize=False, root=root)


def test_a_hub_model_is_loaded_at_its_commit() -> None:
    assert locate(place("org/model", "hub")) == ("org/model", {"revision": "abc"})


def test_a_relative_folder_is_found_from_the_studys_own(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    assert locate(place("m", "local", str(tmp_path)))[0] == str(tmp_path / "m")


def test_a_package_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "boxed_model" / "model").mkdir(parents=True)
    (tmp_path / "boxed_model" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert locate(place("package:boxed_model/model", "package"))[0] == str(tmp_path / "boxed_model" / "model")
    with pytest.raises(UnusableModel, match="stay inside"):
        locate(place("package:boxed_model/..", "package"))


@pytest.mark.parametrize(
    ("path", "origin", "words"),
    [
        ("package:no_such_package_here/model", "package", "not installed"),
        ("package:os.path/model", "package", "not installed"),
        ("/no/such/folder", "local", "no model folder"),
    ],
)
def test_a_model_that_is_not_there_is_named(path: str, origin: str, words: str) -> None:
    with pytest.raises(UnusableModel, match=words):
        locate(place(path, origin))
