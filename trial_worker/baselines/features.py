"""The model's frozen states as features: mean over a row's tokens, of length 1."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
import torch

from trial_worker.baselines.counting import linear
from trial_worker.baselines.job import TOKENS, Job, Run
from trial_worker.engine.base import Base
from trial_worker.engine.batches import split_by_length
from trial_worker.tasks.interface import padded


def regression(job: Job) -> Run:
    """Logistic regression on frozen features."""
    found = yield from embeddings(job)
    seen, unseen = (np.stack([found[n] for n in part]) for part in (job.unit.train, job.unit.validation))
    return (yield from linear(job, seen, unseen))


def embeddings(job: Job) -> Generator[None, None, dict[int, np.ndarray]]:
    """row number -> (hidden,) float32 of length 1, of the unit's rows; each is computed once for all folds."""
    missing = [n for n in (*job.unit.train, *job.unit.validation) if n not in job.embeddings]
    items = job.items
    lengths = [items[number].length for number in missing]
    for group in split_by_length(lengths, len(missing), TOKENS, 64) if missing else ():
        numbers = [missing[place] for place in group]
        vectors = embed(job.base, [items[number].ids for number in numbers])
        job.embeddings.update(zip(numbers, vectors, strict=True))
        yield
    return job.embeddings


@torch.inference_mode()
def embed(base: Base, rows: Sequence[torch.Tensor]) -> np.ndarray:
    """(rows, hidden) float32 of length 1, from token ids (length,) each."""
    ids, mask = (part.to(base.device) for part in padded(rows))
    model = base.model
    encoder = model.get_encoder() if model.config.is_encoder_decoder else model.base_model
    states = encoder(input_ids=ids, attention_mask=mask).last_hidden_state.float()
    real = mask.unsqueeze(-1)
    pooled = (states * real).sum(1) / real.sum(1)
    return np.asarray(torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy())
