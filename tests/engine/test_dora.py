"""DoRA: what a unit exports is plain PEFT's, and dropout, ranks and company change none of its numbers."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from orchestrator.contract import EpochDone, Outcome, Settings
from tests import tiny_models
from tests.parity import test_against_peft as textbook
from tests.parity import test_company as company
from trial_worker.engine import Base, Pack, Rows
from trial_worker.engine.dora import Directed, norms
from trial_worker.engine.survey import Kind, lora_config
from trial_worker.tasks import CausalLm, Classification

SAVE: dict[str, tuple[Callable[[Path], Path], bool]] = {
    "bert": (tiny_models.save_bert, False),
    "gpt2": (tiny_models.save_gpt2, True),
    "t5": (tiny_models.save_t5, False),
}


def pack_of(name: str, folder: Path, slots: int = 1) -> Pack:
    save, causal = SAVE[name]
    base = Base.load(tiny_models.pin(save(folder)), *(("causal", 0) if causal else ("sequence", 3)))
    rows = tiny_models.causal_rows() if causal else tiny_models.classification_rows()
    task = CausalLm() if causal else Classification(tiny_models.LABELS)
    return Pack(base, Rows(task, rows, base.tokenizer), slots)


@pytest.mark.parametrize("name", SAVE)
def test_what_is_exported_gives_plain_peft_the_same_losses(name: str, tmp_path: Path) -> None:
    """Loaded by PEFT itself, from a file with its names, into a model that foldtune never touched."""
    pack = pack_of(name, tmp_path / "model")
    unit = dataclasses.replace(
        tiny_models.unit(method="dora", lora_scaling="rslora", learning_rate=1e-2, epochs=3), scratch=str(tmp_path)
    )
    _, epochs = textbook.train(pack, unit)
    assert epochs[-1].checkpoint is not None
    weights = {n.removeprefix("weight/"): t for n, t in load_file(epochs[-1].checkpoint.path).items()}
    assert sum("lora_magnitude_vector" in n for n in weights) == sum("lora_A" in n for n in weights) > 0
    other = pack_of(name, tmp_path / "again")
    kind = Kind.of(other.base, unit.settings, other.rows.task.outputs)
    config = lora_config(other.base, kind, rank=4, alpha=8)
    config.use_rslora = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(other.base.model, config)
    exported = {n.replace(".default", ""): t for n, t in weights.items()}
    exported = {n.replace("lora_magnitude_vector.weight", "lora_magnitude_vector"): t for n, t in exported.items()}
    exported = {n.replace("modules_to_save.", ""): t for n, t in exported.items()}
    loaded = peft.set_peft_model_state_dict(model, exported)
    assert loaded.unexpected_keys == []
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == set(weights)
    model.eval()
    items = other.rows.items(128)
    chosen = [items[row] for row in unit.validation]
    with torch.no_grad():
        loss, _ = (textbook.causal_loss if SAVE[name][1] else textbook.class_loss)(model, other.base, chosen, 0.0)
    tallies = epochs[-1].tallies
    assert float(loss) == pytest.approx(tallies["nats"] / tallies["items"], rel=1e-4)


class Dropped(nn.Module):
    """Dropout of a fixed mask, so that PEFT's layer and ours drop the same."""

    def __init__(self, kept: torch.Tensor, rate: float) -> None:
        super().__init__()
        self.kept, self.rate = kept, rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.kept / (1 - self.rate)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("conv", [False, True], ids=["Linear", "Conv1D"])
def test_a_layers_output_and_gradients_are_pefts_with_dropout_too(
    conv: bool, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trial_worker.engine import dora, lora, stream

    torch.manual_seed(1)
    base = (Conv1D(5, 7) if conv else nn.Linear(7, 5)).double().requires_grad_(False)
    nn.init.normal_(base.bias)
    config = peft.LoraConfig(
        r=3, lora_alpha=7, use_dora=True, lora_dropout=dropout, target_modules=["0"], fan_in_fan_out=conv
    )
    reference = peft.get_peft_model(nn.Sequential(base), config).double().base_model.model[0]
    a, b = (torch.randn(3, n, dtype=torch.float64) for n in (7, 5))
    magnitude = torch.rand(5, dtype=torch.float64) + 0.5
    reference.lora_A.default.weight.data, reference.lora_B.default.weight.data = a.clone(), b.t().clone()
    reference.lora_magnitude_vector.default.weight.data = magnitude.clone()
    x = torch.randn(2, 4, 7, dtype=torch.float64, requires_grad=True)
    kept = (torch.rand(2, 4, 7) > dropout).double()
    if dropout:
        reference.lora_dropout["default"] = Dropped(kept, dropout)
    reference.train()
    weights = torch.randn(2, 4, 5, dtype=torch.float64)
    expected = reference(x)
    (expected * weights).sum().backward()
    gradient, x.grad = x.grad, None

    zeros = [torch.zeros_like(each) for each in (a, b, magnitude)]
    factors = lora.Factors(a, b, zeros[0], zeros[1], 7 / 3, dropout)
    slots = type("One", (), {})()
    slots.anchor = torch.zeros((), dtype=torch.float64)
    slots.factors = lambda site, slot: factors
    slots.directed = lambda site, slot: Directed.of(factors, magnitude, zeros[2])
    layer = dora.SlotDora(base, 0, "0", slots)
    masks = [kept.reshape(8, 7)] if dropout else [None]
    monkeypatch.setattr(layer, "_masks", lambda *_: masks)
    with stream.computing(stream.Stream(parts=((0, 2),), lengths=(4, 4), device=torch.device("cpu"), keys=None)):
        found = layer(x)
    (found * weights).sum().backward()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert gradient is not None
    torch.testing.assert_close(x.grad, gradient, rtol=1e-11, atol=1e-11)
    theirs = (
        reference.lora_A.default.weight.grad,
        reference.lora_B.default.weight.grad.t(),
        reference.lora_magnitude_vector.default.weight.grad,
    )
    for mine, their in zip(zeros, theirs, strict=True):
        torch.testing.assert_close(mine, their, rtol=1e-11, atol=1e-11)


def test_the_length_of_a_row_is_that_of_the_whole_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, a, b = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((6, 9), (2, 9), (2, 6)))
    one = Directed(a, b, torch.ones(6), 1.7)
    whole = weight + 1.7 * b.t() @ a
    found = norms(weight, weight.square().sum(1), one)
    torch.testing.assert_close(found, whole.norm(dim=1), rtol=1e-12, atol=0)
    undone = Directed(a, torch.zeros_like(b), torch.ones(6), 1.7)
    torch.testing.assert_close(norms(weight, weight.square().sum(1), undone), weight.norm(dim=1))


@pytest.mark.parametrize("name", SAVE)
def test_units_have_the_same_numbers_alone_and_in_company(name: str, tmp_path: Path) -> None:
    """Of many ranks, so that the memory grows while others train, beside dropout and slots that are refilled."""
    pack = pack_of(name, tmp_path, slots=3)
    pack.base.model.double()
    units = [
        tiny_models.unit(
            16, number=n, seed=n, lora_rank=1 + 3 * n, batch_size=3 + 4 * n, lora_dropout=0.3 * (n % 2), method="dora"
        )
        for n in range(5)
    ]
    pack.capacity.most_tokens, pack.capacity.most_rows = 40, 3
    company.equal(company.train(pack, units), company.alone(pack.base, pack.rows, units))


def test_units_with_and_without_magnitudes_take_turns(tmp_path: Path) -> None:
    pack = pack_of("bert", tmp_path, slots=3)
    pack.base.model.double()
    units = [tiny_models.unit(16, number=n, method=method) for n, method in enumerate(["lora", "dora", "dora", "lora"])]
    together = company.train(pack, units)
    company.equal(together, company.alone(pack.base, pack.rows, units))
    assert together[0] != together[1]
    assert together[0][0] == pytest.approx(together[1][0])  # both begin as the base alone
    assert together[0] == pytest.approx(together[3])


def test_in_half_precision_a_unit_begins_as_the_base_too(tmp_path: Path) -> None:
    """A magnitude that is rounded to the weights' type would be off by up to 0.4 % of each output from the start."""
    base = Base.load(tiny_models.pin(tiny_models.save_llama(tmp_path), precision="bfloat16"), "causal", 0)
    pack = Pack(base, Rows(CausalLm(), tiny_models.causal_rows(), base.tokenizer))
    pack.add(tiny_models.unit(16, method="dora"))
    pack.advance()
    network = pack._network
    assert network is not None
    for number, site in enumerate(network.survey.sites):
        one, layer = network.directed(number, 0), base.model.get_submodule(site.name)
        assert one.magnitude.dtype == layer.squares.dtype == torch.float32
        start = one.a.new_zeros(one.b.shape)
        size = one.magnitude / norms(layer.weight, layer.squares, Directed(one.a, start, one.magnitude, one.scale))
        torch.testing.assert_close(size, torch.ones_like(size), rtol=1e-6, atol=0)
    pack.drop(1, "seen")


def test_layers_computed_anew_and_a_break_change_no_number(tmp_path: Path) -> None:
    base = Base.load(
        tiny_models.pin(tiny_models.save_llama(tmp_path / "model"), gradient_checkpointing=True), "causal", 0
    )
    kept = Base.load(tiny_models.pin(tmp_path / "model"), "causal", 0)
    rows = Rows(CausalLm(), tiny_models.causal_rows(), base.tokenizer)
    unit = dataclasses.replace(tiny_models.unit(16, method="dora", lora_dropout=0.2), scratch=str(tmp_path))
    assert company.train(Pack(base, rows, 1), [unit]) == company.train(Pack(kept, rows, 1), [unit])
    pack, seen = Pack(kept, rows, 1), []
    pack.add(unit)
    for _ in range(3):
        pack.advance()
    (end,) = pack.drop(unit.unit, "break", keep=True)
    pack.add(dataclasses.replace(unit, resume=end.checkpoint, lease_epoch=2))
    while pack.free == 0:
        seen += [event.tallies["nats"] for event in pack.advance() if isinstance(event, EpochDone)]
    assert seen[-1] == company.train(Pack(kept, rows, 1), [unit])[1][-1]


def test_a_magnitude_decays_as_the_rest(tmp_path: Path) -> None:
    pack = pack_of("bert", tmp_path)
    weights: list[Any] = []
    for decay in (0.0, 5.0):
        unit = tiny_models.unit(method="dora", weight_decay=decay, warmup_ratio=0.0, learning_rate=1e-3)
        pack.add(unit)
        pack.advance()
        network = pack._network
        assert network is not None
        named = network.memory.named(0)
        weights.append({n: t.clone() for n, t in named.items() if "magnitude" in n})
        assert pack.drop(unit.unit, "seen")[0].outcome == Outcome.DROPPED
    assert all(not torch.equal(weights[0][n], weights[1][n]) for n in weights[0])


def test_settings_name_it_and_others_have_no_trace_of_it() -> None:
    assert Settings(method="dora").identity() == {**Settings().identity(), "method": "dora"}
