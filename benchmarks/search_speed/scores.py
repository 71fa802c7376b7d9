"""Numbers from logits, and the meter of tokens; for both sides alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.search_speed.account import Tokens, Winner


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax in float64, (rows, classes)."""
    wide = logits.astype(np.float64)
    powers = np.exp(wide - wide.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def nats_and_hits(logits: np.ndarray, truth: Sequence[int]) -> tuple[float | None, int]:
    """Summed negative log-likelihood, None where it is not finite, and rows whose class comes first."""
    wide = logits.astype(np.float64)
    top = wide.max(-1)
    nats = float((np.log(np.exp(wide - top[:, None]).sum(-1)) + top - wide[np.arange(len(truth)), truth]).sum())
    hits = int((logits.argmax(-1) == np.array(truth)).sum())
    return (nats if np.isfinite(nats) else None), hits


def winner(trial: int, cv_loss: float, fold_logits: Sequence[np.ndarray], truth: Sequence[int]) -> Winner:
    """The winner on the test part: mean of its fold models' probabilities."""
    mean = np.mean([probabilities(logits) for logits in fold_logits], axis=0)
    of_truth = mean[np.arange(len(truth)), truth]
    return Winner(
        trial=trial,
        cv_loss=cv_loss,
        test_loss=float(-np.log(np.maximum(of_truth, 1e-12)).mean()),
        test_accuracy=float((mean.argmax(-1) == np.array(truth)).mean()),
    )


class Meter:
    """Counts what passes a model's embeddings. Inactive until `tokens` is set."""

    def __init__(self) -> None:
        self.tokens: Tokens | None = None

    def watch(self, model: Any, size: Callable[[torch.Tensor], int] = torch.Tensor.numel) -> None:
        """Count this model's tokens from now on. size: how many its layers compute for such input ids."""

        def count(_: Any, arguments: tuple[torch.Tensor, ...]) -> None:
            if self.tokens is not None and arguments:
                self.tokens.saw(size(arguments[0]), torch.is_grad_enabled())

        model.get_input_embeddings().register_forward_pre_hook(count)
