"""What training makes small: a row's nats, or what mixup and R-Drop make of its logits.

Both compare rows of one effective batch with one another. Rows that are compared are computed together, whatever fits
at once, so that no loss depends on how a batch is divided into micro-steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import kl_div

from orchestrator.contract import Settings, derive_seed
from trial_worker.tasks.interface import Answers, Batch

Sample = tuple[int, int]  # a row, and which copy of it in this step
Bundle = tuple[Sample, ...]  # computed together


def bundles(rows: Sequence[int], settings: Settings, seed: int, step: int) -> list[Bundle]:
    """The samples of an effective batch: neighbours are mixed, copies are compared."""
    size = 2 if settings.mixup_alpha else 1
    if size == 2:
        rows = np.random.default_rng(derive_seed(seed, "mixup", step)).permutation(list(rows)).tolist()
    copies = range(2 if settings.r_drop_alpha else 1)
    groups = [rows[start : start + size] for start in range(0, len(rows), size)]
    return [tuple((row, copy) for row in group for copy in copies) for group in groups]


def share_of(bundle: Bundle, settings: Settings, seed: int, step: int) -> float:
    """How much of itself a row keeps when the bundle's rows are mixed: drawn from Beta(alpha, alpha)."""
    rows = sorted({row for row, _ in bundle})
    if len(rows) < 2:
        return 1.0
    drawn = np.random.default_rng(derive_seed(seed, "share", step, *rows))
    return float(drawn.beta(settings.mixup_alpha, settings.mixup_alpha))


@dataclass(frozen=True, eq=False)
class Compared:
    """For every target of a micro-step, whom it is compared with.

    partners: (targets,) int64, whose logits are mixed into its own; itself: nobody's. shares: (targets,) float64, of
    its own logits. twins: (targets,) int64, the other copy of its row; itself: there is none. pulls: (targets,)
    float64, R-Drop's alpha.
    """

    partners: Tensor
    shares: Tensor
    twins: Tensor
    pulls: Tensor


def training_loss(said: Answers, batch: Batch, compared: Compared | None) -> Tensor:
    """(targets,) float64.

    Mixup (Zhang et al. 2018, arXiv 1710.09412) of the logits, which for a head that ends in a linear layer is mixup of
    that layer's inputs (Verma et al. 2019, arXiv 1806.05236). R-Drop (Liang et al. 2021, arXiv 2106.14448, equation 4):
    the two copies' mean loss and alpha times the symmetric Kullback-Leibler distance between their answers. A row's
    weight multiplies all of its loss; a mixed row's is mixed too.
    """
    if compared is None:
        loss = said.nats if said.smoothed is None else said.smoothed
        return loss if batch.weights is None else loss * batch.weights
    assert said.logits is not None
    own, other = compared.shares[:, None], compared.partners
    logits = said.logits.double()
    likely = (own * logits + (1 - own) * logits[other]).log_softmax(-1)
    wrong = -likely.gather(1, torch.stack([batch.targets, batch.targets[other]], 1))
    loss = torch.lerp(wrong[:, 1], wrong[:, 0], compared.shares)
    if batch.smoothing is not None:
        loss = torch.lerp(loss, -likely.mean(-1), batch.smoothing.double())
    twin = likely[compared.twins]
    apart = [kl_div(a, b, reduction="none", log_target=True).sum(-1) for a, b in ((likely, twin), (twin, likely))]
    loss = loss + compared.pulls * (apart[0] + apart[1]) / 2
    if batch.weights is None:
        return loss
    return loss * torch.lerp(batch.weights[other], batch.weights, compared.shares)
