"""A unit against the same unit written plainly: PEFT, torch's AdamW, transformers' schedule, padded batches."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import get_scheduler

from orchestrator.contract import TrainUnit
from tests import tiny_models
from trial_worker.engine import Base, Pack, Rows
from trial_worker.engine import unit as unit_module
from trial_worker.engine.adapter import Network, attached
from trial_worker.engine.batches import effective_batches, epoch_order
from trial_worker.tasks import CausalLm, Classification

SETTINGS: dict[str, Any] = {
    "learning_rate": 2e-2,
    "batch_size": 7,  # 18 training rows: the last step of an epoch has 4
    "epochs": 4,
    "lora_alpha": "3r",
    "weight_decay": 0.1,
    "warmup_ratio": 0.2,
    "lr_schedule": "cosine",
    "max_grad_norm": 0.3,
}
CAUSAL_ROWS = [
    {"prompt": tiny_models.CORPUS[i % 6][: 4 + i % 11], "completion": tiny_models.CORPUS[(i + 1) % 6][: 9 + i % 17]}
    for i in range(24)
]
CASES = {
    "bert": (tiny_models.save_bert, False),
    "roberta": (tiny_models.save_roberta, False),
    "gpt2-classifier": (tiny_models.save_gpt2, False),
    "gpt2": (tiny_models.save_gpt2, True),
    "llama": (tiny_models.save_llama, True),
}


def plain(pack: Pack, unit: TrainUnit, start: dict[str, torch.Tensor]) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of every step and the final adapter of the textbook loop, from the same fresh weights."""
    settings, base, items = unit.settings, pack.base, pack.rows.items(unit.settings.max_length)
    causal = not pack.rows.task.labels
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(
            base.model,
            peft.LoraConfig(
                task_type="CAUSAL_LM" if causal else "SEQ_CLS",
                r=settings.lora_rank,
                lora_alpha=3 * settings.lora_rank,
                target_modules="all-linear",
            ),
        )
    model.eval()  # no dropout
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trained.keys() == start.keys()
    for name, p in trained.items():
        p.data.copy_(start[name])
    adamw = torch.optim.AdamW(
        [
            {"params": [p for n, p in trained.items() if "bias" not in n], "weight_decay": settings.weight_decay},
            {"params": [p for n, p in trained.items() if "bias" in n], "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
    )
    steps = 3 * settings.epochs
    schedule = get_scheduler(settings.lr_schedule, adamw, -int(-steps * settings.warmup_ratio // 1), steps)
    losses = []
    for epoch in range(1, settings.epochs + 1):
        for rows in effective_batches(epoch_order(unit.train, unit.seed, epoch), settings.batch_size):
            length = max(items[row].length for row in rows)
            ids = torch.full((len(rows), length), base.tokenizer.pad_token_id)
            mask = torch.zeros_like(ids)
            labels = torch.full_like(ids, -100)
            for place, row in enumerate(rows):
                item = items[row]
                ids[place, : item.length] = item.ids
                mask[place, : item.length] = 1
                if item.positions is not None:
                    labels[place, item.positions + 1] = item.targets
            if causal:
                # transformers' own causal loss rounds logits to float32 whatever the model computes in
                logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
                loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
            else:
                targets = torch.tensor([int(items[row].targets) for row in rows])
                loss = model(input_ids=ids, attention_mask=mask, labels=targets).loss
            adamw.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained.values(), settings.max_grad_norm)
            adamw.step()
            schedule.step()
            losses.append(float(loss.detach()))
    return losses, {name: p.detach().clone() for name, p in trained.items()}


@pytest.mark.parametrize(("case", "double"), [*((case, True) for case in CASES), ("bert", False), ("gpt2", False)])
def test_losses_and_adapter_equal_the_textbook_loop(
    case: str, double: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, causal = CASES[case]
    unit = tiny_models.unit(**SETTINGS)
    pack = _pack(save, causal, tmp_path, double)
    start, end = _watch(monkeypatch)
    pack.add(unit)
    losses = []
    while pack.free < pack.slots:
        losses += [event.loss for event in pack.advance() if hasattr(event, "loss")]
    expected, adapter = plain(pack, unit, start)
    tolerance = 1e-9 if double else 1e-4
    assert losses == pytest.approx(expected, rel=tolerance)
    for name, value in adapter.items():
        scale = float(value.abs().max())
        torch.testing.assert_close(end[name], value, rtol=0, atol=(1e-8 if double else 1e-3) * scale, msg=name)


def _pack(save: Callable[[Path], Path], causal: bool, folder: Path, double: bool) -> Pack:
    base = Base.load(tiny_models.pin(save(folder / "model")), "causal" if causal else "sequence", 3)
    if double:
        base.model.double()
    task = CausalLm() if causal else Classification(tiny_models.LABELS)
    return Pack(base, Rows(task, CAUSAL_ROWS if causal else tiny_models.classification_rows(), base.tokenizer))


def _watch(monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The adapter's fresh weights, and the ones it ended with."""
    start: dict[str, torch.Tensor] = {}
    end: dict[str, torch.Tensor] = {}

    @contextlib.contextmanager
    def watched(*arguments: Any) -> Any:
        with attached(*arguments) as network:
            network = _same_precision(network, arguments[0])
            start.update({name: p.detach().clone() for name, p in network.parameters.items()})
            yield network
            end.update({name: p.detach().clone() for name, p in network.parameters.items()})

    monkeypatch.setattr(unit_module, "attached", watched)
    return start, end


def _same_precision(network: Network, base: Base) -> Network:
    for p in network.parameters.values():
        p.data = p.data.to(base.model.dtype)
    return network
