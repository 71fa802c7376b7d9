"""What augmentation asks of a study's rows, said before anything is spent. Pure."""

from __future__ import annotations

import json

from orchestrator.cross_checks import DISTURBING
from orchestrator.dataset import Snapshot
from orchestrator.errors import Problem
from orchestrator.study_file import LoadedStudy


def problems(loaded: LoadedStudy, snapshot: Snapshot) -> list[Problem]:
    """What these rows cannot have."""
    columns = json.loads(snapshot.content.partition(b"\n")[0])
    if loaded.spec.task != "causal_lm" or "text" not in columns:
        return []
    rule = "needs rows of prompt with completion, or messages: of rows of text all is learnt, and so would be the noise"
    return [
        loaded.problem(_place(loaded, name), "augmentation", f"'{name}' {rule}")
        for name in DISTURBING
        if loaded.spec.training.get(name) or name in loaded.spec.space
    ]


def _place(loaded: LoadedStudy, name: str) -> tuple[str, ...]:
    return ("search", "space", name) if name in loaded.spec.space else ("training", name)
