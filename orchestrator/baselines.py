"""What a study's fine-tunes are measured against, on the same folds: entries that train next to nothing (pure).

A baseline is a configuration whose `method` names it. It is leased, reported and kept like any other, on all folds, is
never raced, and counts neither as a trial nor as the best one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.contract import Settings

# name -> what it is, for people
CLASSIFICATION: Mapping[str, str] = {
    "majority": "class frequencies",
    "tfidf": "TF-IDF and logistic regression",
    "features": "frozen features and logistic regression",
    "zero-shot": "the model, told the labels' names",
    "few-shot": "the model, shown a few rows",
}
LANGUAGE: Mapping[str, str] = {
    "unigram": "token frequencies",
    "zero-shot": "the model as it is",
    "few-shot": "the model, shown a few rows",
}
NAMING: Mapping[str, str] = {  # by an encoder-decoder model; in a prompt it was never shown rows
    **{name: said for name, said in CLASSIFICATION.items() if name not in ("zero-shot", "few-shot")},
    "zero-shot": "the model, asked for the labels' names",
}
OF_TASK: Mapping[str, Mapping[str, str]] = {
    "classification": CLASSIFICATION,
    "seq2seq_classification": NAMING,
    "causal_lm": LANGUAGE,
}
KNOWN = tuple(dict.fromkeys((*CLASSIFICATION, *LANGUAGE)))
FIELDS = ("{text}", "{label}")  # what a template must name


def wanted(task: str, chosen: Sequence[str] | None, *, by_text: bool = False) -> tuple[str, ...]:
    """Names of a study's baselines, in their order.

    chosen: as the study file has them; None: all of its task. by_text: the study is judged by what models write, and
    baselines write nothing.
    """
    if chosen is None:
        return () if by_text else tuple(OF_TASK.get(task, {}))
    return tuple(chosen)


def params(name: str) -> dict[str, Any]:
    """The hyperparameters of a baseline's entry."""
    return {"method": name, "epochs": 1}


def name_of(settings: Settings) -> str | None:
    """Which baseline this is; None: a fine-tune."""
    return settings.method if settings.method in KNOWN else None


def meaning(task: str, name: str) -> str:
    """In a few words."""
    return OF_TASK.get(task, {}).get(name, name)
