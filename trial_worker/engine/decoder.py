"""A model with an encoder and a decoder, asked for the tokens of its targets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trial_worker.engine.choices import choice_scores
from trial_worker.engine.heads import Answer, Reader, picking
from trial_worker.tasks.interface import Answers, Batch, answers


@contextmanager
def reading_decoder(model: PreTrainedModel, answer: Answer) -> Iterator[Reader]:
    """The family's own code, the states of supervised tokens picked before the head.

    A decoder's grid is padded at the right, where nothing real looks: it needs no mask. answer: of a batch with
    choices, what their scores say.
    """

    def read(batch: Batch) -> Answers:
        if batch.choices is not None:
            chosen[:] = [torch.arange(batch.rows * len(batch.choices.ids), device=batch.ids.device)]
            return answer(choice_scores(model, batch), batch)
        labels, places = target_grid(batch)
        chosen[:] = [places]
        decoder_ids: Tensor = model.prepare_decoder_input_ids_from_labels(labels)  # type: ignore[operator]
        out: Tensor = model(**batch.inputs, decoder_input_ids=decoder_ids).logits
        return replace(answers(out.squeeze(0), batch), logits=None)

    with picking(model) as chosen:
        yield read


def target_grid(batch: Batch) -> tuple[Tensor, Tensor]:
    """Targets side by side (rows, width), -100 behind them, and the place of each in the flattened grid (targets,)."""
    counts = torch.bincount(batch.owners, minlength=batch.rows)
    starts = counts.cumsum(0) - counts
    inside = torch.arange(len(batch.targets), device=batch.targets.device) - starts[batch.owners]
    width = int(counts.max())
    places = batch.owners * width + inside
    labels = batch.targets.new_full((batch.rows * width,), -100)
    labels[places] = batch.targets
    return labels.view(batch.rows, width), places
