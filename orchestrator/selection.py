"""What the best of several trials is worth on other rows than those that it was chosen by (pure but for numpy)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from orchestrator.statistics import VANISHING, Estimate, resamples

CONTENDS = 3.0  # standard errors of the paired difference to the best, up to which a trial might be as good


@dataclass(frozen=True)
class Winner:
    """The trial with the lowest loss of those that were judged on every row.

    trial: its place. seen: its loss on the rows that it was chosen by. loss: corrected for that, with its interval.
    contenders: how many might as well have been chosen, itself among them.
    """

    trial: int
    seen: float
    loss: Estimate
    contenders: int


def winner(sums: np.ndarray, clusters: np.ndarray, complete: np.ndarray, *, level: float = 0.95) -> Winner:
    """The best of several trials, and its loss as other rows would show it.

    The choice itself is drawn again: in each draw of rows some trial is best, and how far its loss there is from its
    own truth is the error that choosing makes. The truths that draws are centred on are the trials' losses, those of
    the contenders shrunk towards each other by the share of their spread that chance alone would give to equals (the
    positive-part rule of James and Stein; Efron and Morris 1973). Without that, chance would be counted twice and the
    correction be too small (compare B. Efron, "Tweedie's formula and selection bias", JASA 2011). Errors are
    studentised as in `statistics`.

    sums: (trials, rows, 2) sums and items; a trial that was stopped has no items on some rows. It is taken to be as far
    from the others there as where it was judged, and to vary as much. clusters: (rows,) int, see `statistics`.
    complete: (trials,) bool, those that were not stopped, one at least; they are judged on every row.
    """
    nats, items = _by_cluster(_completed(sums), clusters)
    count = len(nats)
    losses = nats.sum(0) / items.sum(0)
    # what was stopped is not chosen, and might have been on other rows; with repeats it may have been judged on all
    best = int(np.argmin(np.where(complete, losses, np.inf)))
    errors = (nats - losses * items) / items.sum(0) * math.sqrt(count / max(count - 1, 1))
    own_error = float(np.sqrt(_squares(errors[:, best])))
    if count < 2 or not own_error > 0:
        return Winner(best, float(losses[best]), Estimate(float(losses[best]), math.nan, math.nan), 1)
    contends = np.abs(losses - losses[best]) <= CONTENDS * np.sqrt(_squares(errors - errors[:, [best]]))
    truths = losses.copy()
    truths[contends] = _shrunk(losses[contends], errors[:, contends])
    shifts, studentised = [], []
    for weights in resamples(count, len(losses)):
        shift, error = _errors_of_choosing(weights, nats, items, truths - losses, losses)
        kept = error > VANISHING * own_error
        shifts.append(shift)
        studentised.append(shift[kept] / error[kept])
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(studentised), [tail, 1 - tail])
    seen = float(losses[best])
    corrected = Estimate(
        value=seen - float(np.concatenate(shifts).mean()),
        low=seen - float(high) * own_error,
        high=seen - float(low) * own_error,
    )
    return Winner(best, seen, corrected, int(contends.sum()))


def _errors_of_choosing(
    weights: np.ndarray, nats: np.ndarray, items: np.ndarray, centred: np.ndarray, losses: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of each draw: the chosen trial's loss less its own truth, and the standard error of that loss, both (draws,)."""
    drawn_items = weights @ items
    drawn = (weights @ nats) / drawn_items
    chosen = np.argmin(drawn + centred, 1)
    places = np.arange(len(weights))
    own, own_items = drawn[places, chosen], drawn_items[places, chosen]
    squares = np.zeros(len(weights))
    for trial in np.unique(chosen):
        at = chosen == trial
        residuals = nats[:, trial] - own[at, None] * items[:, trial]
        squares[at] = (weights[at] * residuals**2).sum(1)
    count = weights.shape[1]
    return own - losses[chosen], np.sqrt(squares * count / max(count - 1, 1)) / own_items


def _by_cluster(sums: np.ndarray, clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(clusters, trials) nats and items."""
    _, place = np.unique(clusters, return_inverse=True)
    totals = np.zeros((int(place.max()) + 1, len(sums), 2))
    np.add.at(totals, place, sums.transpose(1, 0, 2))
    return totals[..., 0], totals[..., 1]


def _squares(errors: np.ndarray) -> np.ndarray:
    total: np.ndarray = np.sum(errors**2, 0)
    return total


def _shrunk(losses: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Losses of contenders, nearer to their mean. errors: (clusters, contenders)."""
    count = len(losses)
    if count < 3:
        return losses
    apart = errors - errors.mean(1, keepdims=True)  # what is hard for all of them orders none
    noise = float(_squares(apart).mean()) * count / (count - 1)
    spread = float(np.var(losses, ddof=1))
    share = math.sqrt(max(0.0, 1 - noise / spread)) if spread > 0 else 0.0
    nearer: np.ndarray = losses.mean() + share * (losses - losses.mean())
    return nearer


def _completed(sums: np.ndarray) -> np.ndarray:
    """Every trial on every row: what was not judged is made of the others' mean there and of its own differences."""
    judged = sums[..., 1] > 0
    if judged.all():
        return sums
    reference = sums[judged.all(1)].mean(0)
    filled, random = sums.copy(), np.random.default_rng(1)
    for trial in np.flatnonzero(~judged.all(1)):
        own = judged[trial]
        apart = sums[trial, own, 0] / sums[trial, own, 1] - reference[own, 0] / reference[own, 1]
        drawn, items = random.choice(apart, int((~own).sum())), reference[~own, 1]
        filled[trial, ~own] = np.stack([reference[~own, 0] + drawn * items, items], 1)
    return filled
