"""Tasks: how rows become tokens and targets, and outputs become numbers. See `interface`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from trial_worker.tasks.causal_lm import CausalLm
from trial_worker.tasks.classification import Classification
from trial_worker.tasks.interface import Task
from trial_worker.tasks.multi_label import MultiLabel
from trial_worker.tasks.question_answering import QuestionAnswering
from trial_worker.tasks.regression import Regression
from trial_worker.tasks.rows import Rows, read_snapshot
from trial_worker.tasks.seq2seq import Seq2Seq
from trial_worker.tasks.seq2seq_classification import Seq2SeqClassification
from trial_worker.tasks.token_classification import TokenClassification

__all__ = [
    "CausalLm",
    "Classification",
    "MultiLabel",
    "QuestionAnswering",
    "Regression",
    "Rows",
    "Seq2Seq",
    "Seq2SeqClassification",
    "Task",
    "TokenClassification",
    "read_snapshot",
    "task_named",
]

_LABELLED: Mapping[str, Callable[[Sequence[str]], Task]] = {
    "classification": Classification,
    "multi_label": MultiLabel,
    "seq2seq_classification": Seq2SeqClassification,
    "token_classification": TokenClassification,
}
_OTHERS: Mapping[str, Callable[[], Task]] = {
    "causal_lm": CausalLm,
    "question_answering": QuestionAnswering,
    "regression": Regression,
    "seq2seq": Seq2Seq,
}


def task_named(name: str, labels: Sequence[str]) -> Task:
    """The task of a study.

    Raises:
        ValueError: no such task, or labels that do not fit it.
    """
    if name in _LABELLED:
        return _LABELLED[name](labels)
    if name in _OTHERS:
        return _OTHERS[name]()
    raise ValueError(f"task must be one of {', '.join([*_LABELLED, *_OTHERS])}, got {name!r}")
