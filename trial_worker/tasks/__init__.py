"""Tasks: how rows become tokens and targets, and outputs become numbers. See `interface`."""

from __future__ import annotations

from collections.abc import Sequence

from trial_worker.tasks.causal_lm import CausalLm
from trial_worker.tasks.classification import Classification
from trial_worker.tasks.interface import Task
from trial_worker.tasks.rows import Rows, read_snapshot

__all__ = ["CausalLm", "Classification", "Rows", "Task", "read_snapshot", "task_named"]


def task_named(name: str, labels: Sequence[str]) -> Task:
    """The task of a study.

    Raises:
        ValueError: no such task, or labels that do not fit it.
    """
    if name == "classification":
        return Classification(labels)
    if name == "causal_lm":
        return CausalLm()
    raise ValueError(f"task must be classification or causal_lm, got {name!r}")
