"""The one number, and the metrics beside it (pure).

A trainer reports *tallies*: sums that can be added over items, folds and repeats. Every metric is a function of
such a sum, divided once. A mean of batch means would move with the batch size, and with batch size in the search
space the search would optimise it (unequal row lengths, same per-token losses: 2.33, 1.84, 1.71, 1.70 nats for
batches of 1, 4, 16, 64 against 1.69 always).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orchestrator.forms import ONE_CLASS

MAXIMIZE: Mapping[str, bool] = {
    "validation_loss": False,
    "accuracy": True,
    "f1": True,
    "weighted_f1": True,
    "micro_f1": True,
    "entity_f1": True,
    "calibration_error": False,
    "mse": False,
    "mae": False,
    "r2": True,
    "exact_match": True,
    "answer_f1": True,
    "chrf": True,
    "perplexity": False,
}
OF_TASK: Mapping[str, tuple[str, ...]] = {  # which tasks may ask for it
    "accuracy": (*ONE_CLASS, "multi_label", "token_classification"),
    "f1": (*ONE_CLASS, "multi_label"),
    "weighted_f1": (*ONE_CLASS, "multi_label"),
    "micro_f1": ("multi_label",),
    "entity_f1": ("token_classification",),
    "calibration_error": ONE_CLASS,
    "mse": ("regression",),
    "mae": ("regression",),
    "r2": ("regression",),
    "exact_match": ("question_answering", "seq2seq", "causal_lm"),
    "answer_f1": ("question_answering",),
    "chrf": ("seq2seq", "causal_lm"),
    "perplexity": ("causal_lm", "seq2seq"),
}

Tallies = Mapping[str, Any]


def add(tallies: Iterable[Tallies]) -> dict[str, Any]:
    """The sum of tallies, key by key; lists add element by element."""
    total: dict[str, Any] = {}
    for tally in tallies:
        for key, value in tally.items():
            total[key] = _plus(total[key], value) if key in total else value
    return total


def validation_loss(tallies: Tallies) -> float:
    """Mean negative log-likelihood in nats per item (class label or supervised token). NaN without items."""
    return float(tallies["nats"]) / float(tallies["items"]) if tallies["items"] else math.nan


def metrics(tallies: Tallies) -> dict[str, float]:
    """Every metric of the tallies' task; those of `MAXIMIZE` by name.

    accuracy: share of items whose most likely label or token is right; of several labels all must be. f1: macro F1 over
    classes that occur or are predicted. weighted_f1: the classes' F1, each counted as often as it occurs. micro_f1: of
    all labels of all rows together. calibration_error: expected calibration error, 15 equal-width bins (Guo et al.
    2017, eq. 3). mse, mae, r2: in the data's own units; r2 is the share of the variance over all items that is
    explained. entity_f1: of all entities together, right where type and both ends are. exact_match, answer_f1: means
    over rows, as SQuAD 1.1. perplexity: exp of the loss, per supervised token. nats_per_byte, byte_perplexity: of the
    supervised text in UTF-8, the second exp of the first, which models of different tokenizers share. Of texts that a
    language model wrote: exact_match, the share of rows; chrf, see there.
    """
    loss = validation_loss(tallies)
    if "squared_errors" in tallies:
        return {"validation_loss": loss, **_of_numbers(tallies)}
    values = {"validation_loss": loss, "accuracy": _share(tallies["correct"], tallies["items"])}
    if "tp" in tallies:
        counts = tallies["tp"], tallies["fp"], tallies["fn"]
        values |= {"f1": _macro_f1(*counts), "weighted_f1": _weighted_f1(*counts)}
        if "bins" in tallies:
            values["calibration_error"] = _calibration_error(tallies["bins"])
        else:
            values["micro_f1"] = f1(*(sum(each) for each in counts))
        return values
    if "entities" in tallies:
        return {**values, "entity_f1": f1(*tallies["entities"])}
    if "overlap" in tallies:
        answered = {"exact_match": tallies["exact"], "answer_f1": tallies["overlap"]}
        return {**values, **{name: _share(sum_, tallies["rows"]) for name, sum_ in answered.items()}}
    values["perplexity"] = _exp(loss)
    if tallies.get("bytes"):
        values["nats_per_byte"] = float(tallies["nats"]) / float(tallies["bytes"])
        values["byte_perplexity"] = _exp(values["nats_per_byte"])
    if "matches" in tallies:
        values["exact_match"] = _share(tallies["matches"], tallies["answered"])
    if "chrf" in tallies:
        values["chrf"] = chrf(tallies["chrf"])
    return values


def chrf(counts: Sequence[int]) -> float:
    """chrF2, 0 to 100 (Popović 2015, W15-3049), from sums over any rows, as sacrebleu scores a corpus of these rows.

    counts: for n-grams of 1, 2, ... characters those written, those of the reference, and those of both.
    """
    orders = [counts[at : at + 3] for at in range(0, len(counts), 3)]
    known = [(both / written, both / wanted) for written, wanted, both in orders if written and wanted]
    if not known:
        return 0.0
    precision, recall = (sum(each) / len(known) for each in zip(*known, strict=True))
    return 100 * 5 * precision * recall / (4 * precision + recall) if precision + recall else 0.0


def f1(tp: float, fp: float, fn: float) -> float:
    """Harmonic mean of precision and recall; NaN where there is nothing to find and nothing was found."""
    return 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else math.nan


def value(name: str, folds: Iterable[Tallies]) -> float | None:
    """The objective over all folds of a trial; None where it is not finite, which is an outcome of its own."""
    number = metrics(add(folds))[name]
    return number if math.isfinite(number) else None


def majority(labels: Sequence[str], folds: Iterable[tuple[Sequence[int], Sequence[int]]]) -> dict[str, float]:
    """What class frequencies alone reach on the same folds: loss and accuracy.

    For every (train, validation) pair the training part's class shares, with one row added to each class so that
    an unseen class has a finite loss (Laplace), predict the validation part.
    """
    classes = sorted(set(labels))
    nats, correct, items = 0.0, 0, 0
    for train, validation in folds:
        counts = dict.fromkeys(classes, 1)
        for row in train:
            counts[labels[row]] += 1
        total, best = sum(counts.values()), max(classes, key=lambda label: counts[label])
        nats += sum(-math.log(counts[labels[row]] / total) for row in validation)
        correct += sum(labels[row] == best for row in validation)
        items += len(validation)
    return {"validation_loss": nats / items, "accuracy": correct / items}


def _plus(left: Any, right: Any) -> Any:
    if isinstance(left, list):
        return [_plus(a, b) for a, b in zip(left, right, strict=True)]
    return left + right


def _share(part: float, whole: float) -> float:
    return float(part) / float(whole) if whole else math.nan


def _exp(nats: float) -> float:
    return math.inf if nats >= 700 else math.exp(nats)


def _macro_f1(tp: Sequence[int], fp: Sequence[int], fn: Sequence[int]) -> float:
    seen = [f1(*counts) for counts in zip(tp, fp, fn, strict=True) if any(counts)]
    return sum(seen) / len(seen) if seen else math.nan


def _weighted_f1(tp: Sequence[int], fp: Sequence[int], fn: Sequence[int]) -> float:
    """NaN where no class occurs."""
    occur = [(t + n, f1(t, p, n)) for t, p, n in zip(tp, fp, fn, strict=True) if t + n]
    return _share(sum(often * score for often, score in occur), sum(often for often, _ in occur))


def _of_numbers(tallies: Tallies) -> dict[str, float]:
    items, squares = float(tallies["items"]), float(tallies["squared_errors"])
    spread = tallies["squared_numbers"] - tallies["numbers"] ** 2 / items if items else 0.0
    return {
        "mse": _share(squares, items),
        "mae": _share(tallies["absolute_errors"], items),
        "r2": 1 - squares / spread if spread > 0 else math.nan,
    }


def _calibration_error(bins: Sequence[Sequence[float]]) -> float:
    items = sum(count for count, _, _ in bins)
    return sum(abs(confidence - correct) for _, confidence, correct in bins) / items if items else math.nan
