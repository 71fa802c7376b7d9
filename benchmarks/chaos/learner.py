"""A small real learner in numpy: softmax regression on hashed words through a low-rank update, by AdamW (pure).

Every draw is a function of seed, step and row, and every number of one machine's: a unit that is trained again, or
goes on from a checkpoint, gives the same bits.
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.contract import Settings, derive_seed

FEATURES = 64
BINS = 15  # of confidence, as `objective.metrics` counts them
Floats = NDArray[np.float64]
State = dict[str, Floats]  # weights under their own names, AdamW's moments as m.NAME and v.NAME


@dataclass(frozen=True, kw_only=True)
class Examples:
    """x: (rows, FEATURES) counts of hashed words, each row of length 1. y: (rows,) numbers of labels."""

    x: Floats
    y: NDArray[np.int64]
    classes: int


def examples(rows: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> Examples:
    """The rows of a snapshot.

    Raises:
        ValueError: a row's label is not one of the study's.
    """
    x = np.zeros((len(rows), FEATURES))
    for number, row in enumerate(rows):
        for word in str(row["text"]).lower().split():
            x[number, zlib.crc32(word.encode()) % FEATURES] += 1.0
    x /= np.maximum(np.sqrt((x * x).sum(axis=1, keepdims=True)), 1e-12)
    return Examples(x=x, y=np.array([labels.index(row["label"]) for row in rows], dtype=np.int64), classes=len(labels))


def begin(settings: Settings, seed: int, classes: int) -> State:
    """The state before the first step."""
    draw = np.random.Generator(np.random.Philox(derive_seed(seed, "weights")))
    weights = {
        "a": draw.standard_normal((FEATURES, settings.lora_rank)) / math.sqrt(FEATURES),
        "b": np.zeros((settings.lora_rank, classes)),
        "bias": np.zeros((1, classes)),
    }
    moments = {f"{kind}.{name}": np.zeros_like(value) for name, value in weights.items() for kind in "mv"}
    return {**weights, **moments}


def weights(state: State) -> State:
    """What a trained unit is, without AdamW's moments."""
    return {name: value for name, value in state.items() if "." not in name}


def order(rows: Sequence[int], seed: int, epoch: int) -> list[int]:
    """The rows in the order of this epoch (1-based)."""
    shuffled = list(rows)
    random.Random(derive_seed(seed, "order", epoch)).shuffle(shuffled)
    return shuffled


def scale(settings: Settings) -> float:
    """What the low-rank update is multiplied by: alpha / rank."""
    alpha = settings.lora_alpha
    if isinstance(alpha, str):
        return float(alpha.removesuffix("r") or 1)
    return alpha / settings.lora_rank


def rate(settings: Settings, step: int, steps: int) -> float:
    """The learning rate of `step` (0-based) of `steps`."""
    warmup = settings.warmup(steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    course = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}
    return settings.learning_rate * course[settings.lr_schedule]


def dropout(rows: Sequence[int], p: float, seed: int, step: int) -> Floats:
    """(rows, FEATURES): what each input is multiplied by; a hash of seed, step and row, whoever stands beside it."""
    if p == 0:
        return np.ones((len(rows), FEATURES))
    masks = [np.random.Generator(np.random.Philox(derive_seed(seed, "dropout", step, row))) for row in rows]
    return np.stack([mask.random(FEATURES) >= p for mask in masks]) / (1 - p)


def step(
    state: State, data: Examples, rows: Sequence[int], settings: Settings, seed: int, number: int, steps: int
) -> float:
    """One optimizer step (`number` is 1-based) over these rows, in place; its training loss in nats, summed."""
    x = data.x[list(rows)] * dropout(rows, settings.lora_dropout, seed, number)
    y, s = data.y[list(rows)], scale(settings)
    hidden = x @ state["a"]
    chances = softmax(s * (hidden @ state["b"]) + state["bias"])
    nats = -np.log(np.maximum(chances[np.arange(len(y)), y], 1e-300)).sum()
    wrong = chances
    wrong[np.arange(len(y)), y] -= 1.0
    wrong /= len(y)
    gradients = {
        "a": s * (x.T @ (wrong @ state["b"].T)),
        "b": s * (hidden.T @ wrong),
        "bias": wrong.sum(axis=0, keepdims=True),
    }
    norm = math.sqrt(sum(float((gradient * gradient).sum()) for gradient in gradients.values()))
    shrink = min(1.0, settings.max_grad_norm / norm) if settings.max_grad_norm and norm else 1.0
    for name, gradient in gradients.items():
        decay = 0.0 if name == "bias" else settings.weight_decay
        adamw(state, name, gradient * shrink, rate(settings, number - 1, steps), decay, number)
    return float(nats)


def adamw(state: State, name: str, gradient: Floats, learning_rate: float, decay: float, number: int) -> None:
    """AdamW with betas (0.9, 0.999) and eps 1e-8, in place."""
    m, v = state[f"m.{name}"], state[f"v.{name}"]
    m += 0.1 * (gradient - m)
    v += 0.001 * (gradient * gradient - v)
    update = (m / (1 - 0.9**number)) / (np.sqrt(v / (1 - 0.999**number)) + 1e-8)
    state[name] -= learning_rate * (update + decay * state[name])


def logits(state: State, data: Examples, rows: Sequence[int], settings: Settings) -> Floats:
    """(rows, classes)."""
    return scale(settings) * (data.x[list(rows)] @ state["a"] @ state["b"]) + state["bias"]


def softmax(scores: Floats) -> Floats:
    """Along the last axis."""
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def nats_of(scores: Floats, truth: NDArray[np.int64]) -> Floats:
    """(rows,): the negative log-likelihood of each row's label."""
    top = scores.max(axis=-1)
    return np.asarray(np.log(np.exp(scores - top[:, None]).sum(axis=-1)) + top - scores[np.arange(len(truth)), truth])


def tallies(scores: Floats, truth: NDArray[np.int64]) -> dict[str, Any]:
    """What `objective.metrics` reads of a classification, additive over folds."""
    chances, classes = softmax(scores), scores.shape[1]
    said = scores.argmax(axis=-1)
    hit = said == truth
    sure = chances[np.arange(len(said)), said]
    place = np.minimum((sure * BINS).astype(np.int64), BINS - 1)
    count = [np.bincount(part, minlength=classes).tolist() for part in (truth[hit], said[~hit], truth[~hit])]
    bins = [(int((place == b).sum()), float(sure[place == b].sum()), int(hit[place == b].sum())) for b in range(BINS)]
    return {
        "nats": float(nats_of(scores, truth).sum()),
        "items": len(truth),
        "correct": int(hit.sum()),
        **dict(zip(("tp", "fp", "fn"), count, strict=True)),
        "bins": [list(one) for one in bins],
    }
