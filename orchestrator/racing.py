"""Which trials earn more folds, and which stop (pure).

A trial is compared with the *incumbent*: the best complete trial, the default configuration included. Without one
nothing stops. What a rule compares are values of the study's objective, in its own direction.

forgiving: the objective pooled over the finished folds is worse than the incumbent's worst fold. E. Bergman,
    L. Purucker, F. Hutter, "Don't Waste Your Time: Early Stopping Cross-Validation", AutoML 2024, arXiv 2405.03389.
paired: on the folds that both have finished, the trial is worse by more than chance explains; see `_paired`.
hopeless: under either rule, a fold that trains is given up, and its trial with it; see `_hopeless`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist, fmean, variance

from orchestrator import objective
from orchestrator.objective import MAXIMIZE, Tallies
from orchestrator.words import number

OF_LOSS = frozenset({"validation_loss", "perplexity"})  # objectives that order trials as their losses do
TIE = 1e-6  # relative; losses of items are float32, and a smaller difference may be their rounding
NORMAL_FROM = 200  # degrees of freedom from which Student's tail is computed from the normal one


@dataclass(frozen=True, kw_only=True)
class Rules:
    """A study's rule, and what it needs to know of the study."""

    rule: str  # "forgiving" or "paired"
    objective: str  # a key of `objective.MAXIMIZE`
    folds: int  # of one repeat
    first_folds: int = 1  # finished folds before a trial is judged by them
    confidence: float = 0.975  # of the paired rule, one-sided
    hopeless: bool = True


@dataclass(frozen=True, kw_only=True)
class Fold:
    """What one fold of a trial has reported.

    epochs: epoch (1-based) -> tallies; of a finished fold the last one at least. rows: the row that each validation
    item is of. nats, counts: its loss summed over its labels or tokens, and how many these are, at the last epoch.
    These three of shape (items,), empty where no rule asks for them.
    """

    done: bool
    epochs: Mapping[int, Tallies]
    rows: Sequence[int] = ()
    nats: Sequence[float] = ()
    counts: Sequence[float] = ()

    @property
    def last(self) -> Tallies:
        """At the last reported epoch."""
        return self.epochs[max(self.epochs)]


Folds = Mapping[tuple[int, int], Fold]  # (repeat, fold) -> what it reported


@dataclass(frozen=True, kw_only=True)
class Incumbent:
    """The best complete trial. name: as in "the worst fold of ..."."""

    name: str
    folds: Folds


def reason_to_stop(rules: Rules, trial: Folds, incumbent: Incumbent) -> str | None:
    """Why an open trial earns no more folds, in words; None: it goes on.

    Decides from what it is given alone, in whatever order that arrived. A trial that has finished as many folds as the
    incumbent goes on: it is complete.
    """
    done = {place: fold for place, fold in trial.items() if fold.done}
    if len(done) >= len(incumbent.folds):
        return None
    reason = None
    if len(done) >= rules.first_folds:
        judge = _paired if rules.rule == "paired" else _forgiving
        reason = judge(rules, done, incumbent)
    if reason is None and rules.hopeless:
        reason = _hopeless(rules, trial, incumbent)
    return reason


# --- by folds ---------------------------------------------------------------------------------------------------


def _forgiving(rules: Rules, done: Folds, incumbent: Incumbent) -> str | None:
    """The running objective is worse than the incumbent's worst fold."""
    running = _pooled(rules, done.values())
    bar = _worst(rules, [_score(rules, fold.last) for fold in incumbent.folds.values()])
    if bar is None or not _worse(rules, running, bar):
        return None
    said = f"{_shown(rules, running)} after {_count(done)}"
    return f"{said}, worse than {number(bar)}, the worst fold of {incumbent.name}"


def _paired(rules: Rules, done: Folds, incumbent: Incumbent) -> str | None:
    """One-sided test of "worse than the incumbent" on the folds that both have finished.

    Objectives that follow the loss are compared item by item. Let D be the difference of the pooled losses
    R = sum(nats) / sum(counts). Its variance over n rows, each the sum of its items over the repeats, is that of a
    difference of ratios, linearised (W. Cochran, "Sampling Techniques", 3rd ed. 1977, chapter 6):

        V_items = n / (n - 1) * sum_r [ (nats_r - R counts_r) / sum(counts) of the trial - the same of the incumbent ]^2

    That takes the trained models as given. How they vary from fold to fold shows from the second fold on; training sets
    overlap, so the variance of the J folds' differences d_j is corrected as for the resampled t (C. Nadeau, Y. Bengio,
    "Inference for the Generalization Error", Machine Learning 52, 2003), with n_test / n_train = 1 / (folds - 1):

        V_folds = (1 / J + 1 / (folds - 1)) * sum_j (d_j - mean d)^2 / (J - 1)

    t = D / sqrt(max(V_items, V_folds)), n - 1 degrees of freedom: of two estimates of the noise the larger counts, and
    a spread of two folds that is small by luck stops nobody. Other objectives (accuracy, f1, calibration_error) are no
    means over items: t = mean d / sqrt(V_folds), J - 1 degrees of freedom, so nothing stops on one fold.

    The incumbent is the best of several and looks better than it is; and every further fold is one more look. Hence a
    confidence above the usual one.
    """
    pairs = [(fold, incumbent.folds[place]) for place, fold in done.items() if place in incumbent.folds]
    by_items = rules.objective in OF_LOSS and bool(pairs) and all(mine.nats and its.nats for mine, its in pairs)
    metric = "validation_loss" if by_items else rules.objective
    sign = -1.0 if MAXIMIZE[metric] else 1.0
    differences = [sign * (_metric(metric, mine.last) - _metric(metric, its.last)) for mine, its in pairs]
    noise, freedom = 0.0, len(pairs) - 1
    if len(pairs) > 1:
        noise = (1 / len(pairs) + 1 / (rules.folds - 1)) * variance(differences)
    if by_items:
        worse_by, of_items, rows = _difference_of_ratios(pairs)
        noise, freedom = max(noise, of_items), rows - 1
        scope = f"the same {rows} rows"
    else:
        worse_by = fmean(differences) if differences else 0.0
        scope = f"the same {_count(pairs)}"
    size = abs(_metric(metric, objective.add(its.last for _, its in pairs))) if pairs else 0.0
    if freedom < 1 or not math.isfinite(noise) or noise <= 0 or not worse_by > TIE * size:
        return None  # differences without any spread say nothing of chance
    if student_tail(worse_by / math.sqrt(noise), freedom) >= 1 - rules.confidence:
        return None
    said = f"{_shown(rules, _pooled(rules, done.values()))} after {_count(done)}"
    unit = " nats" if by_items else ""
    return f"{said}, {number(worse_by)} ± {number(math.sqrt(noise))}{unit} worse than {incumbent.name} on {scope}"


def _difference_of_ratios(pairs: Sequence[tuple[Fold, Fold]]) -> tuple[float, float, int]:
    """(pooled loss of the first of each pair minus the second's, its variance over rows, rows), see `_paired`."""
    sides = []
    for side in (0, 1):
        nats, counts = _Sums(), _Sums()
        for pair in pairs:
            nats.add(pair[side].rows, pair[side].nats)
            counts.add(pair[side].rows, pair[side].counts)
        total = math.fsum(counts.of.values())
        if not total > 0:
            return math.nan, math.nan, 0
        sides.append((math.fsum(nats.of.values()) / total, total, nats.of, counts.of))
    (mine, my_total, my_nats, my_counts), (its, its_total, its_nats, its_counts) = sides
    rows = [row for row, count in its_counts.items() if count > 0 and row in my_counts]
    errors = [
        (my_nats[row] - mine * my_counts[row]) / my_total - (its_nats[row] - its * its_counts[row]) / its_total
        for row in rows
    ]
    if len(rows) < 2:
        return mine - its, math.nan, len(rows)
    return mine - its, len(rows) / (len(rows) - 1) * math.fsum(error * error for error in errors), len(rows)


@dataclass(frozen=True)
class _Sums:
    """Sums by row: in several repeats a row is validated several times, and these items are no independent ones."""

    of: dict[int, float] = field(default_factory=dict)

    def add(self, rows: Sequence[int], values: Sequence[float]) -> None:
        for row, value in zip(rows, values, strict=True):
            self.of[row] = self.of.get(row, 0.0) + value


# --- by epochs --------------------------------------------------------------------------------------------------


def _hopeless(rules: Rules, trial: Folds, incumbent: Incumbent) -> str | None:
    """A fold that still trains can no longer be expected to save its trial.

    All of this must hold: the last two epochs are worse than the worst that the incumbent showed on any fold at the
    same or an earlier epoch; so is the last one pooled with the trial's finished folds; and the last is no better than
    the best before it. A slow start is thus compared with the incumbent's own start, good folds speak for a bad one,
    and what still improves goes on.
    """
    done = [fold.last for fold in trial.values() if fold.done]
    for (repeat, fold), running in sorted(trial.items(), key=lambda item: item[0]):
        if running.done or len(running.epochs) < 2:
            continue
        *earlier, (epoch, tallies) = sorted(running.epochs.items())
        before, now = [_score(rules, each) for _, each in earlier], _score(rules, tallies)
        seen = [
            _score(rules, each) for its in incumbent.folds.values() for at, each in its.epochs.items() if at <= epoch
        ]
        bar, best = _worst(rules, seen), _best(rules, before)
        if bar is None or best is None or _worse(rules, best, now):
            continue
        pooled = _score(rules, objective.add([*done, tallies]))
        if all(_worse(rules, value, bar) for value in (before[-1], now, pooled)):
            where = f"fold {fold + 1}" + (f" of repeat {repeat + 1}" if repeat else "")
            return (
                f"{_shown(rules, now)} on {where} after epoch {epoch}, no longer improving and worse than "
                f"{number(bar)}, the worst that {incumbent.name} had shown by then"
            )
    return None


# --- values -----------------------------------------------------------------------------------------------------


def _metric(name: str, tallies: Tallies) -> float:
    return objective.metrics(tallies)[name]


def _score(rules: Rules, tallies: Tallies) -> float:
    return _metric(rules.objective, tallies)


def _pooled(rules: Rules, folds: Iterable[Fold]) -> float:
    return _score(rules, objective.add(fold.last for fold in folds))


def _worse(rules: Rules, value: float, than: float) -> bool:
    """Never of a value that is not finite: that is an outcome of its own, and not racing's to judge."""
    if not (math.isfinite(value) and math.isfinite(than)):
        return False
    return value < than if MAXIMIZE[rules.objective] else value > than


def _worst(rules: Rules, values: Iterable[float]) -> float | None:
    pick = min if MAXIMIZE[rules.objective] else max
    return pick((value for value in values if math.isfinite(value)), default=None)


def _best(rules: Rules, values: Iterable[float]) -> float | None:
    pick = max if MAXIMIZE[rules.objective] else min
    return pick((value for value in values if math.isfinite(value)), default=None)


def _shown(rules: Rules, value: float) -> str:
    if rules.objective == "validation_loss":
        return f"{number(value)} nats"
    return f"{rules.objective} {number(value)}"


def _count(folds: Sequence[object] | Folds) -> str:
    return f"{len(folds)} fold" + "s" * (len(folds) != 1)


def student_tail(t: float, freedom: int) -> float:
    """P(T > t) of Student's t; t >= 0, freedom (degrees of freedom) >= 1.

    The finite series of Abramowitz and Stegun 26.7.3 and 26.7.4, beyond which their 26.7.8 is off by 1e-5 at most;
    scipy takes a third of a second to import.
    """
    if freedom >= NORMAL_FROM:
        return NormalDist().cdf(-t * (1 - 1 / (4 * freedom)) / math.sqrt(1 + t * t / (2 * freedom)))
    angle = math.atan(t / math.sqrt(freedom))
    cos2, odd = math.cos(angle) ** 2, freedom % 2
    term = total = 0.0 if freedom == 1 else (math.cos(angle) if odd else 1.0)
    for k in range(2 + odd, freedom - 1, 2):
        term *= (k - 1) / k * cos2
        total += term
    inside = math.sin(angle) * total
    if odd:
        inside = 2 / math.pi * (angle + inside)
    return max(0.0, (1 - inside) / 2)
