"""Scores of validation rows as the contract sends them."""

from __future__ import annotations

import base64

import numpy as np

from orchestrator.contract import Predictions
from trial_worker.tasks.interface import Scores


def pack_predictions(scores: Scores, with_logits: bool) -> Predictions:
    """Per-item scores as the contract sends them: little-endian, base64."""
    logits = None
    if with_logits and scores.logits is not None:
        # beyond float16 a class is certain anyway; infinities would poison what is computed from them
        logits = _base64(np.clip(scores.logits, -65504, 65504), "<f2")
    return Predictions(nats=_base64(scores.nats, "<f4"), counts=_base64(scores.counts, "<f4"), logits=logits)


def _base64(values: np.ndarray, kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype=kind).tobytes()).decode("ascii")
