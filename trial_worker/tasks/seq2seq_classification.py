"""Sort texts into classes as T5 does it: text to text, the class by its name.

The score of a class is the log-likelihood that the decoder gives its name, closing token included. The softmax over
the classes' scores is the probability of each, given that one of them is written; its loss is nats per row, as that of
any other classifier, and is what is trained. See docs/decisions/0019.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedTokenizerBase

from trial_worker.tasks.classification import Classification
from trial_worker.tasks.interface import Choices, Item, Row


class Seq2SeqClassification(Classification):
    """Single-label classification by an encoder-decoder model; rows as of `Classification`."""

    family = "seq2seq"

    def encode(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> list[Item]:
        """Items with one target each, and the names that the decoder is asked for.

        Raises:
            ValueError: as `Classification.encode`; or two classes have one name to this tokenizer.
        """
        choices = self.choices(tokenizer)
        return [replace(item, choices=choices) for item in super().encode(rows, tokenizer)]

    def choices(self, tokenizer: PreTrainedTokenizerBase) -> Choices:
        """The classes' names as tokens, in logit order. Raises ValueError where two are equal."""
        named: dict[tuple[int, ...], str] = {}
        for label in self.labels:
            ids = tuple(tokenizer(text_target=label)["input_ids"])
            if tokenizer.eos_token_id is not None and ids[-1:] != (tokenizer.eos_token_id,):
                ids = (*ids, tokenizer.eos_token_id)
            if ids in named:
                raise ValueError(f"to this model's tokenizer the labels {named[ids]!r} and {label!r} are the same")
            named[ids] = label
        owners = [number for number, ids in enumerate(named) for _ in ids]
        return Choices(torch.tensor([token for ids in named for token in ids]), torch.tensor(owners))
