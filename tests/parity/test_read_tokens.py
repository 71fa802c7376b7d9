"""Computing only the tokens that are read, behind the last layer's attention, changes no number of any unit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests import tiny_models
from tests.parity.test_company import equal, train
from trial_worker.engine import Base, Pack, Rows
from trial_worker.engine.narrow import reads_of_head
from trial_worker.tasks import CausalLm, Classification

READS = {
    "bert": "first",
    "roberta": "first",
    "gpt2": "last",
    "llama": "last",
    "gpt2-causal": "targets",
    "llama-causal": "targets",
}


def load(case: str, folder: Path) -> tuple[Base, Rows]:
    name, _, causal = case.partition("-")
    save = getattr(tiny_models, f"save_{name}")
    base = Base.load(tiny_models.pin(save(folder)), "causal" if causal else "sequence", 0 if causal else 3)
    base.model.double()
    if causal:
        return base, Rows(CausalLm(), tiny_models.causal_rows(), base.tokenizer)
    return base, Rows(Classification(tiny_models.LABELS), tiny_models.classification_rows(), base.tokenizer)


@pytest.mark.parametrize("case", READS)
def test_the_tokens_that_a_head_reads_are_found_and_the_numbers_stay(case: str, tmp_path: Path) -> None:
    base, rows = load(case, tmp_path)
    units = [
        tiny_models.unit(
            number=n, seed=n, lora_rank=2 + n, lora_dropout=0.2, target_modules="all-linear", learning_rate=1e-2
        )
        for n in (1, 2, 3)
    ]
    assert base.reads == READS[case]
    expected = train(Pack(dataclasses.replace(base, reads="all"), rows, 2), units)
    equal(train(Pack(base, rows, 2), units), expected)


def test_of_the_last_layer_a_classifier_computes_one_token_of_each_row(tmp_path: Path) -> None:
    base, rows = load("bert", tmp_path)
    seen = []
    last = base.model.get_submodule("bert.encoder.layer.1")
    first = base.model.get_submodule("bert.encoder.layer.0")
    for layer in (first, last):
        layer.get_submodule("intermediate").register_forward_hook(lambda _, __, out: seen.append(out.shape[1]))
    train(Pack(base, rows, 1), [tiny_models.unit(batch_size=6, epochs=1)])
    steps = list(zip(seen[::2], seen[1::2], strict=True))
    assert steps
    assert all(tokens > 6 >= read for tokens, read in steps)


def test_a_text_may_end_with_the_pad_token(tmp_path: Path) -> None:
    base, _ = load("gpt2", tmp_path)
    texts = [{**row, "text": row["text"] + "</s>" * (n % 3)} for n, row in enumerate(tiny_models.classification_rows())]
    rows = Rows(Classification(tiny_models.LABELS), texts, base.tokenizer)
    assert any(int(item.ids[-1]) == base.tokenizer.pad_token_id for item in rows.items(64))
    units = [tiny_models.unit()]
    expected = train(Pack(dataclasses.replace(base, reads="all"), rows, 1), units)
    equal(train(Pack(base, rows, 1), units), expected)


class Averaged(nn.Module):
    """A pooler that reads every token."""

    def forward(self, states: torch.Tensor, *_: Any) -> torch.Tensor:
        return states.mean(1)


def test_a_head_that_reads_every_token_is_left_alone(tmp_path: Path) -> None:
    base, _ = load("bert", tmp_path)
    base.model.set_submodule("bert.pooler", Averaged())
    assert reads_of_head(base.model, base.model.get_submodule("bert.encoder.layer.1")) == "all"
