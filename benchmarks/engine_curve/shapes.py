"""Models by their shapes alone: random weights, which take as long to multiply as trained ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from orchestrator.contract import ModelPin, Settings, TrainUnit
from trial_worker.engine import Base
from trial_worker.engine.heads import has_plain_head
from trial_worker.engine.window import open_window
from trial_worker.tasks import CausalLm
from trial_worker.tasks.interface import Item

SHAPES: dict[str, dict[str, int]] = {
    # hidden, layers, heads, key heads, feed-forward, vocabulary: of models that people fine-tune
    "0.02B": {"hidden": 384, "layers": 6, "heads": 12, "keys": 12, "wide": 1536, "words": 30522},  # MiniLM's
    "0.13B": {"hidden": 576, "layers": 30, "heads": 9, "keys": 3, "wide": 1536, "words": 49152},  # SmolLM2's
    "0.5B": {"hidden": 896, "layers": 24, "heads": 14, "keys": 2, "wide": 4864, "words": 151936},  # Qwen2.5's
    "1.2B": {"hidden": 2048, "layers": 16, "heads": 32, "keys": 8, "wide": 8192, "words": 128256},  # Llama 3.2's
    "8B": {"hidden": 4096, "layers": 32, "heads": 32, "keys": 8, "wide": 14336, "words": 128256},  # Llama 3.1's
}


@dataclass(frozen=True)
class Cost:
    """Floating-point operations of one trained token: twice the frozen weights forward, as much backward.

    layers: of the stack, for every token. head: of the vocabulary, for a supervised one.
    """

    layers: int
    head: int


class Texts:
    """Rows of equal length with every token supervised, as `tasks.Rows` gives them."""

    def __init__(self, rows: int, length: int, words: int) -> None:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(5, words, (rows, length), generator=generator)
        places = torch.arange(length - 1)
        ends = torch.arange(1, length)
        self.task = CausalLm()
        self._items = [Item(ids=row, targets=row[1:], positions=places, size=length, ends=ends) for row in ids]
        self.longest = length
        self.raw = [{"text": ""}] * rows
        self.pool = range(rows, rows)

    def items(self, _: int) -> list[Item]:
        return self._items


def base(shape: str, device: torch.device) -> tuple[Base, Cost]:
    """A frozen model of this shape, bfloat16 on a GPU."""
    one = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=one["words"],
        hidden_size=one["hidden"],
        num_hidden_layers=one["layers"],
        num_attention_heads=one["heads"],
        num_key_value_heads=one["keys"],
        intermediate_size=one["wide"],
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        use_cache=False,
    )
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.eval().requires_grad_(False)
    streams, plain = open_window(model) is not None, has_plain_head(model)
    head = one["hidden"] * one["words"]
    weights = sum(p.numel() for p in model.parameters()) - 2 * head
    tokenizer: Any = SimpleNamespace(pad_token_id=0)
    pin = ModelPin(path=shape, origin="local", pin="0", pooling="first", normalize=False)
    made = Base(model, tokenizer, device, pin, (), 8192, streams, plain, family="causal")
    return made, Cost(layers=4 * weights, head=4 * head)


def units(count: int, rows: int, batch: int, length: int) -> Sequence[TrainUnit]:
    """Units that never end while they are timed; ranks differ, as in a search."""
    return [
        TrainUnit(
            study=1,
            unit=number,
            lease_epoch=1,
            trial=number,
            repeat=0,
            fold=0,
            seed=number,
            settings=Settings(
                batch_size=batch, epochs=1000, max_length=length, lora_rank=(8, 16)[number % 2], learning_rate=1e-5
            ),
            train=tuple(range(rows)),
            validation=(0,),
        )
        for number in range(count)
    ]
