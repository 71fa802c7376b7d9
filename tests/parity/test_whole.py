"""A unit with method full against the same unit written plainly: the model's own weights, torch's AdamW."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from orchestrator.contract import EpochDone, Outcome, Progress, TrainUnit, UnitEnded
from tests import tiny_models
from tests.parity.test_against_peft import CASES, SETTINGS, causal_loss, class_loss, fresh, pack_of, textbook, train
from trial_worker.engine import Pack
from trial_worker.engine.optimizer import decays

FULL: dict[str, Any] = {**SETTINGS, "epochs": 4, "method": "full", "learning_rate": 1e-3}


def plain(pack: Pack, unit: TrainUnit, start: dict[str, torch.Tensor]) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of every step and the final weights of the textbook loop."""
    model = copy.deepcopy(pack.base.model)
    trained = {name: p for name, p in model.named_parameters() if name in start}
    for name, p in trained.items():
        p.data = start[name].clone()
        p.requires_grad_()
    loss_of = class_loss if pack.rows.task.labels else causal_loss
    return textbook(model, trained, [name for name in trained if decays(name)], pack, unit, loss_of)


@pytest.mark.parametrize("variant", [{}, {"top_layers": 1}], ids=["whole", "top layer"])
@pytest.mark.parametrize("case", CASES)
def test_full_fine_tuning_equals_the_textbook_loop(case: str, variant: dict[str, Any], tmp_path: Path) -> None:
    save, causal = CASES[case]
    unit = dataclasses.replace(tiny_models.unit(**FULL, **variant), scratch=str(tmp_path))
    pack = pack_of(save, causal, tmp_path, double=True, slots=3)
    before = {name: tensor.clone() for name, tensor in pack.base.model.state_dict().items()}
    start = fresh(pack, unit)
    # units with adapters around it wait for it, and it for them
    others = [tiny_models.unit(number=n, seed=n, epochs=1) for n in (100, 101)]
    losses, epochs = train(pack, unit, others)
    while pack.free < pack.slots:
        pack.advance()
    assert all(torch.equal(tensor, before[name]) for name, tensor in pack.base.model.state_dict().items())
    expected, weights = plain(pack_of(save, causal, tmp_path, double=True, streams=False), unit, start)
    assert losses == pytest.approx(expected, rel=1e-9)
    assert epochs[-1].checkpoint is not None
    end = load_file(epochs[-1].checkpoint.path)
    assert len(end) == len(weights)
    for name, value in weights.items():
        if name.endswith(("key.bias", "c_attn.bias")):
            continue  # a key's bias has no gradient but rounding, which AdamW makes as large as any
        torch.testing.assert_close(end[f"weight/{name}"], value, rtol=0, atol=1e-8 * float(value.abs().max()), msg=name)


def test_a_mean_pooled_encoder_is_trained_whole_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    def run(pack: Pack, unit: TrainUnit) -> list[EpochDone]:
        pack.add(unit)
        found: list[EpochDone] = []
        while pack.free < pack.slots:
            for event in pack.advance():
                if isinstance(event, EpochDone):
                    found.append(event)
                elif isinstance(event, UnitEnded):
                    assert event.outcome == Outcome.DONE, event.evidence or event.reason
        return found

    unit = dataclasses.replace(tiny_models.unit(**{**FULL, "pooling": "mean"}), scratch=str(tmp_path))
    whole = run(pack_of(tiny_models.save_bert, False, tmp_path), unit)
    assert whole[0].tallies["nats"] != whole[-1].tallies["nats"]
    rest = run(pack_of(tiny_models.save_bert, False, tmp_path), dataclasses.replace(unit, resume=whole[1].checkpoint))
    assert [event.predictions for event in rest] == [event.predictions for event in whole[2:]]


def test_weights_in_another_precision_are_not_trained(tmp_path: Path) -> None:
    pack = pack_of(tiny_models.save_bert, False, tmp_path, precision="bfloat16")
    pack.add(tiny_models.unit(method="full"))
    (event,) = [event for event in pack.advance() if not isinstance(event, Progress)]
    assert isinstance(event, UnitEnded)
    assert (
        event.reason
        == "ValueError: method full trains the weights themselves, which must be float32: the base is bfloat16"
    )
