"""What shares a pack with a unit, and how much fits at once, changes none of its numbers beyond rounding."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.contract import EpochDone, Outcome, Progress, TrainUnit, UnitEnded
from tests import tiny_models
from trial_worker.engine import Base, Pack, Rows, lora_grouped, micro_step
from trial_worker.tasks import CausalLm, Classification

Numbers = Mapping[int, list[float]]  # unit -> training loss of every step, then validation nats of every epoch


@pytest.fixture(scope="session")
def packs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Base, Rows]]:
    root = tmp_path_factory.mktemp("models")
    found = {}
    for name, save, causal in (
        ("bert", tiny_models.save_bert, False),
        ("t5", tiny_models.save_t5, False),
        ("llama", tiny_models.save_llama, True),
    ):
        family, labels = ("causal", 0) if causal else ("sequence", 3)
        base = Base.load(tiny_models.pin(save(root / name)), family, labels)
        base.model.double()
        rows = tiny_models.causal_rows() if causal else tiny_models.classification_rows()
        task = CausalLm() if causal else Classification(tiny_models.LABELS)
        found[name] = base, Rows(task, rows, base.tokenizer)
    return found


def train(pack: Pack, units: Sequence[TrainUnit]) -> Numbers:
    """Refill slots as they come free, until all are done."""
    queue = list(units)
    numbers: dict[int, list[float]] = {unit.unit: [] for unit in units}
    while queue or pack.free < pack.slots:
        while queue and pack.free > 0:
            pack.add(queue.pop(0))
        for event in pack.advance():
            if isinstance(event, Progress):
                numbers[event.unit].append(event.loss)
            elif isinstance(event, EpochDone):
                numbers[event.unit].append(event.tallies["nats"])
            elif isinstance(event, UnitEnded):
                assert event.outcome == Outcome.DONE, event.evidence or event.reason
    return numbers


def equal(found: Numbers, expected: Numbers, rel: float = 1e-9) -> None:
    assert found.keys() == expected.keys()
    for unit, values in expected.items():
        assert found[unit] == pytest.approx(values, rel=rel), unit


def alone(base: Base, rows: Rows, units: Sequence[TrainUnit]) -> Numbers:
    return {number: values for unit in units for number, values in train(Pack(base, rows, 1), [unit]).items()}


UNIT = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**40),
        "batch_size": st.integers(1, 20),
        "epochs": st.integers(1, 2),
        "lora_rank": st.integers(1, 12),
        "lora_dropout": st.sampled_from([0.0, 0.3]),
        "lora_alpha": st.sampled_from(["2r", "r", 3.0]),
        "learning_rate": st.sampled_from([1e-3, 2e-2]),
        "weight_decay": st.sampled_from([0.0, 0.3]),
        "max_grad_norm": st.sampled_from([0.0, 0.1]),
        "label_smoothing": st.sampled_from([0.0, 0.2]),
        "neftune_alpha": st.sampled_from([0.0, 5.0]),
        "token_dropout": st.sampled_from([0.0, 0.3]),
        "char_noise": st.sampled_from([0.0, 0.2]),
        "lora_scaling": st.sampled_from(["standard", "rslora"]),
        "dropout": st.sampled_from([0.0, 0.2]),
        "mixup_alpha": st.sampled_from([0.0, 0.4]),
        "r_drop_alpha": st.sampled_from([0.0, 1.0]),
    }
)
NOT_OF_LLAMA = ("dropout", "mixup_alpha", "r_drop_alpha")


@given(
    name=st.sampled_from(["bert", "llama", "t5"]),
    chosen=st.lists(UNIT, min_size=2, max_size=6),
    slots=st.integers(2, 4),
    most_tokens=st.sampled_from([20, 90, 100000]),
    most_rows=st.sampled_from([3, 4096]),
)
@settings(deadline=None, max_examples=8)
def test_a_unit_has_the_same_numbers_alone_and_in_any_company(
    name: str,
    chosen: list[dict[str, Any]],
    slots: int,
    most_tokens: int,
    most_rows: int,
    packs: dict[str, tuple[Base, Rows]],
) -> None:
    without = dict.fromkeys(NOT_OF_LLAMA, 0.0) if name == "llama" else {}
    units = [tiny_models.unit(16, number=i, **{**each, **without}) for i, each in enumerate(chosen)]
    together = Pack(*packs[name], slots)
    together.capacity.most_tokens, together.capacity.most_rows = most_tokens, most_rows
    equal(train(together, units), alone(*packs[name], units))


@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_layers_that_are_computed_anew_change_no_number(name: str, packs: dict[str, tuple[Base, Rows]]) -> None:
    """Bit for bit, alone and in company, with dropout and without."""
    kept, rows = packs[name]
    family, labels = ("causal", 0) if name == "llama" else ("sequence", 3)
    base = Base.load(dataclasses.replace(kept.pin, gradient_checkpointing=True), family, labels)
    base.model.double()
    assert base.streams == kept.streams
    units = [
        tiny_models.unit(16, number=i, seed=i, lora_rank=3 * i + 1, batch_size=4 + 3 * i, lora_dropout=0.3 * (i % 2))
        for i in range(4)
    ]
    for slots in (1, 3):
        assert train(Pack(base, rows, slots), units) == train(Pack(kept, rows, slots), units)


@pytest.mark.parametrize("anew", [False, True], ids=["layers kept", "layers computed anew"])
def test_grouped_products_of_all_slots_give_the_same_numbers(
    anew: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU computes in half precision, here in single on the CPU: slots empty, full, and refilled."""
    pin = tiny_models.pin(tiny_models.save_llama(tmp_path), gradient_checkpointing=anew)
    base = Base.load(pin, "causal", 0)
    rows = Rows(CausalLm(), tiny_models.causal_rows(), base.tokenizer)
    units = [
        tiny_models.unit(16, number=i, seed=i, lora_rank=3 * i + 1, batch_size=4 + 3 * i, epochs=1 + i % 2)
        for i in range(5)
    ]
    used = []
    monkeypatch.setattr(lora_grouped, "is_worth_it", lambda x, bounds: used.append(len(bounds)) or True)
    together = train(Pack(base, rows, 3), units)
    assert max(used) == 3
    monkeypatch.undo()
    equal(together, alone(base, rows, units), rel=1e-4)


def test_units_that_are_read_in_another_way_take_turns(packs: dict[str, tuple[Base, Rows]]) -> None:
    units = [
        tiny_models.unit(16, number=i, pooling=pooling)
        for i, pooling in enumerate(["first", "mean", "mean", "first", "mean"])
    ]
    equal(train(Pack(*packs["bert"], 3), units), alone(*packs["bert"], units))


class Scarce:
    """A device that cannot take more than so many tokens at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
        self.refused = 0
        collate = micro_step.collate

        def limited(items: Any, *rest: Any) -> Any:
            if len(items) > 1 and sum(item.length for item in items) > tokens:
                self.refused += 1
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
            return collate(items, *rest)

        monkeypatch.setattr(micro_step, "collate", limited)


EPOCHS = {"bert": 2, "llama": 1, "t5": 1}


@pytest.mark.parametrize("name", EPOCHS)
def test_running_out_of_memory_in_company_changes_no_number(
    name: str, packs: dict[str, tuple[Base, Rows]], monkeypatch: pytest.MonkeyPatch
) -> None:
    units = [
        tiny_models.unit(
            number=i, seed=i, lora_dropout=0.2, batch_size=4 + 5 * i, lora_rank=3 * i + 1, epochs=EPOCHS[name]
        )
        for i in range(4)
    ]
    expected = alone(*packs[name], units)
    scarce = Scarce(monkeypatch, tokens=40)
    equal(train(Pack(*packs[name], 4), units), expected)
    assert 0 < scarce.refused < 12  # it learns


def test_a_row_that_fits_no_shared_device_gets_it_alone(
    packs: dict[str, tuple[Base, Rows]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The others are given back with their states, as if their worker had left."""
    pack = Pack(*packs["bert"], 3)
    collate = micro_step.collate

    def limited(items: Any, *rest: Any) -> Any:
        if pack.free < 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        return collate(items, *rest)

    monkeypatch.setattr(micro_step, "collate", limited)
    for number in range(3):
        pack.add(dataclasses.replace(tiny_models.unit(number=number), scratch=str(tmp_path)))
    events = []
    while not any(isinstance(event, UnitEnded) for event in events):
        events += pack.advance()
    ends = [event for event in events if isinstance(event, UnitEnded)]
    assert [end.outcome for end in ends] == [Outcome.DROPPED] * 2
    assert all(end.checkpoint is not None and end.checkpoint.step == 0 for end in ends)
    assert (pack.slots, pack.free) == (1, 0)
    (last,) = {0, 1, 2} - {end.unit for end in ends}
    pack.drop(last, "seen enough")


def test_whose_fault_an_exception_is_shows_when_each_computes_alone(
    packs: dict[str, tuple[Base, Rows]], monkeypatch: pytest.MonkeyPatch
) -> None:
    units = [tiny_models.unit(number=i, seed=i, batch_size=5 + i, epochs=1) for i in range(3)]
    expected = alone(*packs["bert"], units)
    lay_out = micro_step.lay_out

    def poisoned(chosen: Any, *rest: Any) -> Any:
        if any(slot.unit.unit == 1 and slot.at.step == 1 for slot, _ in chosen):
            raise RuntimeError("poison")
        return lay_out(chosen, *rest)

    monkeypatch.setattr("trial_worker.engine.pack.lay_out", poisoned)
    pack, losses, ends = Pack(*packs["bert"], 3), {0: [], 2: []}, {}
    for unit in units:
        pack.add(unit)
    while pack.free < pack.slots:
        for event in pack.advance():
            if isinstance(event, UnitEnded):
                ends[event.unit] = event
            elif event.unit != 1:
                losses[event.unit].append(event.loss if isinstance(event, Progress) else event.tallies["nats"])
    assert {number: end.outcome for number, end in ends.items()} == {
        0: Outcome.DONE,
        1: Outcome.FAILED,
        2: Outcome.DONE,
    }
    assert "poison" in ends[1].reason
    equal(losses, {number: expected[number] for number in (0, 2)})
