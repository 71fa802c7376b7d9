"""A unit in company against the same unit written plainly: PEFT, torch AdamW, transformers schedule, padded batches."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import get_scheduler

from orchestrator.contract import EpochDone, Outcome, Progress, TrainUnit, UnitEnded
from tests import tiny_models
from trial_worker.engine import Base, Pack, Rows
from trial_worker.engine.batches import effective_batches, epoch_order
from trial_worker.tasks import CausalLm, Classification
from trial_worker.tasks.interface import Item

SETTINGS: dict[str, Any] = {
    "learning_rate": 5e-3,
    "batch_size": 7,  # 18 training rows: the last step of an epoch has 4
    "epochs": 17,  # 51 steps
    "lora_alpha": "3r",
    "weight_decay": 0.1,
    "warmup_ratio": 0.2,
    "lr_schedule": "cosine",
    "max_grad_norm": 0.3,
}
CASES = {
    "bert": (tiny_models.save_bert, False),
    "roberta": (tiny_models.save_roberta, False),
    "gpt2-classifier": (tiny_models.save_gpt2, False),
    "t5-classifier": (tiny_models.save_t5, False),
    "gpt2": (tiny_models.save_gpt2, True),
    "llama": (tiny_models.save_llama, True),
}
STREAMS = {"bert": True, "roberta": True, "gpt2-classifier": True, "t5-classifier": False, "gpt2": True, "llama": True}


def company(count: int = 3, **settings: Any) -> list[TrainUnit]:
    """Units unlike the one that is looked at, which end and are replaced while it trains."""
    shapes = [(1, 3, 2), (16, 20, 5), (8, 1, 3)]
    return [
        tiny_models.unit(number=100 + i, seed=i, lora_rank=r, batch_size=b, epochs=e, learning_rate=1e-2, **settings)
        for i, (r, b, e) in enumerate((shapes * count)[:count])
    ]


def train(pack: Pack, unit: TrainUnit, others: Sequence[TrainUnit] = ()) -> tuple[list[float], list[EpochDone]]:
    """Losses of every step and the epochs of a unit; its slot is the second one if it has company."""
    queue = [*others[:1], unit, *others[1:]]
    losses, epochs = [], []
    while True:
        while queue and pack.free:
            pack.add(queue.pop(0))
        for event in pack.advance():
            if event.unit != unit.unit:
                assert not isinstance(event, UnitEnded) or event.outcome == Outcome.DONE, event
            elif isinstance(event, Progress):
                losses.append(event.loss)
            elif isinstance(event, EpochDone):
                epochs.append(event)
            else:
                assert event.outcome == Outcome.DONE, event
                return losses, epochs


def crossed(logits: torch.Tensor, truth: torch.Tensor, smoothing: float) -> tuple[torch.Tensor, torch.Tensor]:
    """What is shown, and what is made small."""
    cross_entropy = torch.nn.functional.cross_entropy
    return cross_entropy(logits, truth), cross_entropy(logits, truth, label_smoothing=smoothing)


Losses = tuple[torch.Tensor, torch.Tensor]  # what is shown, and what is made small


def grid(base: Base, items: Sequence[Item]) -> dict[str, torch.Tensor]:
    """Padded ids and their mask."""
    length = max(item.length for item in items)
    ids = torch.full((len(items), length), base.tokenizer.pad_token_id)
    mask = torch.zeros_like(ids)
    for place, item in enumerate(items):
        ids[place, : item.length] = item.ids
        mask[place, : item.length] = 1
    return {"input_ids": ids, "attention_mask": mask}


def class_loss(model: Any, base: Base, items: Sequence[Item], smoothing: float) -> Losses:
    truth = torch.tensor([int(item.targets) for item in items])
    return crossed(model(**grid(base, items)).logits, truth, smoothing)


def causal_loss(model: Any, base: Base, items: Sequence[Item], smoothing: float) -> Losses:
    inputs = grid(base, items)
    labels = torch.full_like(inputs["input_ids"], -100)
    for place, item in enumerate(items):
        labels[place, item.positions + 1] = item.targets
    logits = model(**inputs).logits
    # transformers' own causal loss rounds logits to float32 whatever the model computes in
    return crossed(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), smoothing)


def plain(
    pack: Pack,
    unit: TrainUnit,
    start: dict[str, torch.Tensor],
    loss_of: Callable[[Any, Base, Sequence[Item], float], Losses] | None = None,
    task_type: str | None = None,
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of every step and the final adapter of the textbook loop, from the same fresh weights."""
    settings, base = unit.settings, pack.base
    causal = not pack.rows.task.labels
    loss_of = loss_of or (causal_loss if causal else class_loss)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(
            base.model,
            peft.LoraConfig(
                task_type=task_type or ("CAUSAL_LM" if causal else "SEQ_CLS"),
                r=settings.lora_rank,
                lora_alpha=3 * settings.lora_rank,
                use_rslora=settings.lora_scaling == "rslora",
                use_dora=settings.method == "dora",
                target_modules="all-linear",
                modules_to_save=list(base.heads) or None,
            ),
        )
    model.eval()  # no dropout
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if settings.method == "head" or settings.top_layers:  # adapters that no step touches stay without effect
        trained = {name: p for name, p in trained.items() if name in start}
    assert trained.keys() == start.keys()
    for name, p in trained.items():
        p.data = start[name].clone()
    decayed = [name for name in trained if "bias" not in name]
    return textbook(model, trained, decayed, pack, unit, loss_of)


def textbook(
    model: Any,
    trained: dict[str, torch.Tensor],
    decayed: Sequence[str],
    pack: Pack,
    unit: TrainUnit,
    loss_of: Callable[[Any, Base, Sequence[Item], float], Losses],
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of every step and the final weights. trained: parameters of the model; decayed: those that decay."""
    settings, items = unit.settings, pack.rows.items(unit.settings.max_length)
    adamw = torch.optim.AdamW(
        [
            {"params": [p for n, p in trained.items() if n in decayed], "weight_decay": settings.weight_decay},
            {"params": [p for n, p in trained.items() if n not in decayed], "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
    )
    steps = 3 * settings.epochs
    schedule = get_scheduler(settings.lr_schedule, adamw, -int(-steps * settings.warmup_ratio // 1), steps)
    losses = []
    for epoch in range(1, settings.epochs + 1):
        for rows in effective_batches(epoch_order(unit.train, unit.seed, epoch), settings.batch_size):
            loss, smooth = loss_of(model, pack.base, [items[row] for row in rows], settings.label_smoothing)
            adamw.zero_grad()
            smooth.backward()
            torch.nn.utils.clip_grad_norm_(trained.values(), settings.max_grad_norm)
            adamw.step()
            schedule.step()
            losses.append(float(loss.detach()))
    return losses, {name: p.detach().clone() for name, p in trained.items()}


def same_weights(epochs: Sequence[EpochDone], adapter: dict[str, torch.Tensor], share: float) -> None:
    """share: of each tensor's largest number."""
    assert epochs[-1].checkpoint is not None
    end = load_file(epochs[-1].checkpoint.path)
    for name, value in adapter.items():
        scale = float(value.abs().max())
        torch.testing.assert_close(end[f"weight/{name}"], value, rtol=0, atol=share * scale, msg=name)


VARIANTS = [
    ("bert", {"label_smoothing": 0.2}),
    ("gpt2", {"label_smoothing": 0.2}),
    ("bert", {"lora_scaling": "rslora"}),
    ("gpt2", {"top_layers": 1}),
    ("roberta", {"top_layers": 1}),
    ("bert", {"method": "head"}),
    *((case, {"method": "dora"}) for case in CASES),  # Linear and Conv1D, streams and padding
    ("gpt2", {"method": "dora", "top_layers": 1, "lora_scaling": "rslora"}),
]


def named(case: str, variant: dict[str, Any]) -> str:
    return f"{case} {' '.join(f'{name} {value}' for name, value in variant.items())}"


@pytest.mark.parametrize(("case", "variant"), VARIANTS, ids=[named(*each) for each in VARIANTS])
def test_a_regularised_unit_equals_the_textbook_loop(case: str, variant: dict[str, Any], tmp_path: Path) -> None:
    equal_to_the_textbook_loop(case, tmp_path, variant, rel=1e-9, part=1e-8, double=True)


@pytest.mark.parametrize("case", ["bert", "gpt2"])
def test_dora_in_single_precision_does_too(case: str, tmp_path: Path) -> None:
    equal_to_the_textbook_loop(case, tmp_path, {"method": "dora"}, rel=1e-4, part=1e-3)


@pytest.mark.parametrize(("case", "double"), [*((case, True) for case in CASES), ("bert", False), ("gpt2", False)])
def test_losses_and_adapter_equal_the_textbook_loop(case: str, double: bool, tmp_path: Path) -> None:
    rel, part = (1e-9, 1e-8) if double else (1e-4, 1e-3)
    equal_to_the_textbook_loop(case, tmp_path, {}, rel=rel, part=part, double=double)


@pytest.mark.parametrize("variant", [{}, {"method": "dora"}], ids=["lora", "dora"])
@pytest.mark.parametrize(
    "case", ["bert", "llama", *(pytest.param(each, marks=pytest.mark.slow) for each in ("gpt2", "t5-classifier"))]
)
def test_on_a_base_in_4_bits_they_equal_the_textbook_loop_on_that_base(
    case: str, variant: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'foldtune[quantized]'")
    equal_to_the_textbook_loop(case, tmp_path, variant, rel=1e-4, part=1e-3, quantization="nf4")


def equal_to_the_textbook_loop(
    case: str, folder: Path, variant: dict[str, Any], *, rel: float, part: float, **holding: Any
) -> None:
    """Alone and in company; the loop itself is run once. part: of the largest value of a weight."""
    save, causal = CASES[case]
    chosen = {**SETTINGS, **({"epochs": 5, **variant} if variant else {})}
    unit = dataclasses.replace(tiny_models.unit(**chosen), scratch=str(folder))
    packs = [(pack_of(save, causal, folder, slots=slots, **holding), others) for slots, others in ((1, 0), (3, 8))]
    start = fresh(packs[0][0], unit)
    expected, adapter = plain(pack_of(save, causal, folder, streams=False, **holding), unit, start)
    assert len(expected) == 3 * chosen["epochs"]
    assert expected[-1] != expected[0]
    for pack, others in packs:
        assert pack.base.streams == STREAMS[case]
        assert all(torch.equal(value, start[name]) for name, value in fresh(pack, unit).items())
        losses, epochs = train(pack, unit, company(others, **variant))
        assert losses == pytest.approx(expected, rel=rel), f"beside {others}"
        assert epochs[-1].checkpoint is not None
        end = load_file(epochs[-1].checkpoint.path)
        for name, value in adapter.items():
            most = part * float(value.abs().max())
            torch.testing.assert_close(end[f"weight/{name}"], value, rtol=0, atol=most, msg=f"{name} beside {others}")


def pack_of(
    save: Callable[[Path], Path],
    causal: bool,
    folder: Path,
    *,
    double: bool = False,
    slots: int = 1,
    streams: bool = True,
    **holding: Any,
) -> Pack:
    place = folder / "model"
    if not place.exists():
        save(place)
    family, labels = ("causal", 0) if causal else ("sequence", 3)
    base = Base.load(tiny_models.pin(place, **holding), family, labels, streams=streams)
    if double:
        base.model.double()
    rows = tiny_models.causal_rows() if causal else tiny_models.classification_rows()
    task = CausalLm() if causal else Classification(tiny_models.LABELS)
    return Pack(base, Rows(task, rows, base.tokenizer), slots=slots)


def fresh(pack: Pack, unit: TrainUnit) -> dict[str, torch.Tensor]:
    """The weights that a unit begins with."""
    pack.add(unit)
    pack._admit()
    assert pack._network is not None
    start = {name: tensor.clone() for name, tensor in pack._network.memory.named(0).items()}
    pack.drop(unit.unit, "only to look")
    return start
