"""What a unit's model says of its validation rows."""

from __future__ import annotations

import base64
from collections.abc import Generator, Sequence

import numpy as np
import torch

from orchestrator.contract import Predictions
from trial_worker.engine.adapter import Network
from trial_worker.engine.base import Base
from trial_worker.engine.errors import is_out_of_memory
from trial_worker.engine.memory import MicroSteps
from trial_worker.tasks.interface import Item, Scores, collate, score


def evaluate(
    network: Network, base: Base, items: Sequence[Item], micro: MicroSteps, keep_logits: bool
) -> Generator[None, None, Scores]:
    """Scores of the items in their order; yields between batches, so that a caller can stop.

    Rows are grouped by length; a row's score does not depend on its group beyond rounding.

    Raises:
        UnitStopped: INFEASIBLE, a single row does not fit.
    """
    network.draws.keys = None
    left = list(range(len(items)))
    found: dict[int, tuple[Scores, int]] = {}
    while left:
        note = ""
        for group in micro.split([items[i] for i in left]):
            chosen = [left[i] for i in group]
            try:
                scores = _score(network, base, [items[i] for i in chosen], keep_logits)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                note = str(error).splitlines()[0]
                break
            found.update({i: (scores, place) for place, i in enumerate(chosen)})
            yield
        left = [i for i in left if i not in found]
        if note:
            micro.shrink([items[i] for i in left], note)
    return _in_order([found[i] for i in range(len(items))], keep_logits)


@torch.inference_mode()
def _score(network: Network, base: Base, items: list[Item], keep_logits: bool) -> Scores:
    batch = collate(items, int(base.tokenizer.pad_token_id or 0), base.device)
    return score(network.logits(batch), batch, keep_logits)


def _in_order(found: list[tuple[Scores, int]], keep_logits: bool) -> Scores:
    return Scores(
        nats=np.array([scores.nats[i] for scores, i in found]),
        counts=np.array([scores.counts[i] for scores, i in found]),
        correct=np.array([scores.correct[i] for scores, i in found]),
        logits=np.stack([scores.logits[i] for scores, i in found if scores.logits is not None])
        if keep_logits
        else None,
    )


def pack_predictions(scores: Scores, with_logits: bool) -> Predictions:
    """Per-item scores as the contract sends them: little-endian, base64."""
    logits = None
    if with_logits and scores.logits is not None:
        # beyond float16 a class is certain anyway; infinities would poison what is computed from them
        logits = _base64(np.clip(scores.logits, -65504, 65504), "<f2")
    return Predictions(nats=_base64(scores.nats, "<f4"), counts=_base64(scores.counts, "<f4"), logits=logits)


def _base64(values: np.ndarray, kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype=kind).tobytes()).decode("ascii")
