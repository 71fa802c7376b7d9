"""How the frozen base is held: layers computed anew in the backward pass, weights in 4 bits."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForSequenceClassification
from transformers.modeling_layers import GradientCheckpointingLayer

from orchestrator.contract import ModelPin, OpenStudy, Outcome, Progress, UnitEnded
from tests import tiny_models
from trial_worker.engine import Base, Pack, Rows, UnusableModel, open_study, quantized, recompute
from trial_worker.engine.lora import SlotLinear
from trial_worker.engine.state import identity
from trial_worker.tasks import CausalLm, Classification

CPU = torch.device("cpu")
needs_bitsandbytes = pytest.mark.skipif(
    not quantized.is_bitsandbytes_available(), reason="bitsandbytes is missing: pip install 'foldtune[quantized]'"
)


def classifier(pin: ModelPin, rows: Sequence[Any] | None = None) -> Pack:
    base = Base.load(pin, "sequence", 3)
    task = Classification(tiny_models.LABELS)
    return Pack(base, Rows(task, rows or tiny_models.classification_rows(), base.tokenizer), 2)


def losses(pack: Pack, **settings: Any) -> list[float]:
    """Of each step of a unit."""
    pack.add(tiny_models.unit(**settings))
    found = []
    while pack.free < pack.slots:
        for event in pack.advance():
            if isinstance(event, Progress):
                found.append(event.loss)
            elif isinstance(event, UnitEnded):
                assert event.outcome == Outcome.DONE, event.evidence or event.reason
    return found


def weights(base: Base) -> int:
    """Bytes of the layers' matrices."""
    layers = [part for part in base.model.modules() if isinstance(part, GradientCheckpointingLayer)]
    matrices = [p for layer in layers for p in layer.parameters() if p.dim() == 2]
    return sum(p.numel() * p.element_size() for p in matrices)


def test_a_study_is_opened_with_what_its_pin_says(tmp_path: Path) -> None:
    pin = tiny_models.pin(tiny_models.save_bert(tmp_path / "m"), precision="bfloat16", gradient_checkpointing=True)
    rows = tiny_models.write_rows(tmp_path / "rows.jsonl", tiny_models.classification_rows())
    study = OpenStudy(study=1, name="s", task="classification", model=pin, data=str(rows), labels=tiny_models.LABELS)
    model = open_study(study, CPU).base.model
    assert model.dtype == torch.bfloat16
    assert all("forward" in vars(layer) for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer))


def test_what_moves_no_number_moves_no_states_identity(tmp_path: Path) -> None:
    """A state is good for another worker, and for one that computes layers anew, but for no other weights."""
    unit, pin = tiny_models.unit(), tiny_models.pin(tmp_path)
    same = dataclasses.replace(pin, gradient_checkpointing=True)
    others = [dataclasses.replace(pin, precision="bfloat16"), dataclasses.replace(pin, quantization="nf4")]
    assert identity(unit, same) == identity(unit, pin)
    assert len({identity(unit, one) for one in (pin, *others)}) == 3


# --- layers computed anew ----------------------------------------------------------------------------------


def peak(layers: int, folder: Path, **holding: Any) -> int:
    """Bytes that a training step has at once beyond what was there before it."""
    pin = tiny_models.pin(tiny_models.save_llama(folder / f"{layers}", layers=layers), **holding)
    base = Base.load(pin, "causal", 0)
    pack = Pack(base, Rows(CausalLm(), tiny_models.causal_rows(), base.tokenizer), 1)
    pack.add(tiny_models.unit(batch_size=18))
    pack.advance()  # what is made once
    trace = folder / "trace.json"
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        pack.advance()
    profile.export_chrome_trace(str(trace))
    events = [event for event in json.loads(trace.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    here = most = 0
    for event in sorted(events, key=lambda event: float(event["ts"])):
        here += int(event["args"]["Bytes"])
        most = max(most, here)
    return most


def test_layers_that_are_computed_anew_take_little_memory_each(tmp_path: Path) -> None:
    kept = [peak(layers, tmp_path) for layers in (2, 8)]
    anew = [peak(layers, tmp_path, gradient_checkpointing=True) for layers in (2, 8)]
    assert anew[1] < 0.5 * kept[1]
    assert anew[1] - anew[0] < 0.2 * (kept[1] - kept[0])  # a layer's input instead of all that it computes


def test_nothing_is_computed_anew_where_no_gradient_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = classifier(tiny_models.pin(tiny_models.save_bert(tmp_path), gradient_checkpointing=True))
    monkeypatch.setattr(recompute, "checkpoint", lambda *_, **__: pytest.fail("computed anew"))
    with torch.inference_mode():
        pack.base.model(input_ids=torch.arange(6)[None])


def test_a_model_without_layers_that_can_be_computed_anew_is_refused() -> None:
    with torch.device("meta"):
        model = BertForSequenceClassification._from_config(_bert_without_layers())
    with pytest.raises(UnusableModel, match="gradient_checkpointing: BertForSequenceClassification has no layers"):
        recompute.recompute_layers(model)


def _bert_without_layers() -> Any:
    return BertForSequenceClassification.config_class(hidden_size=16, num_attention_heads=2, num_hidden_layers=0)


# --- 4 bits ------------------------------------------------------------------------------------------------


def test_4_bits_without_bitsandbytes_are_refused_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized, "is_bitsandbytes_available", lambda: False)
    words = (
        r"^model\.quantization: nf4 needs bitsandbytes on every worker, and there is none here .*: "
        r"pip install 'foldtune\[quantized\]'$"
    )
    with pytest.raises(UnusableModel, match=words):
        Base.load(tiny_models.pin(Path("/no/such/folder"), quantization="nf4"), "sequence", 3)


@needs_bitsandbytes
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_a_unit_trains_on_a_base_in_4_bits_that_takes_an_eighth(precision: str, pooling: str, tmp_path: Path) -> None:
    folder = tiny_models.save_bert(tmp_path)
    whole = classifier(tiny_models.pin(folder, pooling=pooling, precision="float32"))
    pack = classifier(tiny_models.pin(folder, pooling=pooling, precision=precision, quantization="nf4"))
    assert weights(pack.base) == weights(whole.base) / 8
    assert pack.base.model.dtype == getattr(torch, precision)
    assert pack.base.streams
    expected = losses(whole, learning_rate=5e-3)
    assert losses(pack, learning_rate=5e-3) == pytest.approx(expected, rel=0.05)


@needs_bitsandbytes
def test_a_layer_in_4_bits_is_multiplied_by_itself_and_comes_through_as_it_was(tmp_path: Path) -> None:
    """Used without a gradient, then with one: on some CPUs bitsandbytes would repack it at the first."""
    pack = classifier(tiny_models.pin(tiny_models.save_bert(tmp_path), quantization="nf4"))
    before = {name: p.detach().clone() for name, p in pack.base.model.named_parameters()}
    first = losses(pack, learning_rate=5e-3)
    assert all(torch.equal(p, before[name]) for name, p in pack.base.model.named_parameters())
    pack.add(tiny_models.unit(learning_rate=5e-3))
    pack.advance()
    slots = [part for part in pack.base.model.modules() if isinstance(part, SlotLinear)]
    quantized_ones = [part for part in slots if part.base.weight.dtype == torch.uint8]
    assert len(quantized_ones) == 12  # and the pooler's, which is whole
    assert all((part.frozen is None) == (part in quantized_ones) for part in slots)
    pack.drop(1, "seen enough")
    assert losses(pack, learning_rate=5e-3) == first


@needs_bitsandbytes
@pytest.mark.parametrize(
    ("save", "heads"),
    [
        (tiny_models.save_bert, ("classifier",)),
        (tiny_models.save_roberta, ("classifier",)),
        (tiny_models.save_gpt2, ("score",)),
        (tiny_models.save_t5, ("classification_head",)),
    ],
)
def test_heads_are_not_quantized(save: Any, heads: tuple[str, ...], tmp_path: Path) -> None:
    base = Base.load(tiny_models.pin(save(tmp_path), quantization="nf4"), "sequence", 3)
    assert base.heads == heads
    whole = [name for name, p in base.model.named_parameters() if p.dtype == torch.float32]
    assert {name.split(".")[0] for name in whole if name.split(".")[0] in heads} == set(heads)
    assert not [name for name, p in base.model.named_parameters() if p.dtype == torch.uint8 and "pooler" in name]
    assert not [name for name in dict(base.model.named_parameters()) if name.startswith(heads) and name not in whole]


@needs_bitsandbytes
def test_a_checkpoint_that_is_quantized_already_is_refused(tmp_path: Path) -> None:
    config = json.loads((tiny_models.save_bert(tmp_path) / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnusableModel, match="quantized already: name the model that it was made from"):
        Base.load(tiny_models.pin(tmp_path, quantization="nf4"), "sequence", 3)
