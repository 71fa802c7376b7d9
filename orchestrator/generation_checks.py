"""What a study file says of texts that models write, and cannot have."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from orchestrator import baselines
from orchestrator.cross_checks import section
from orchestrator.document import Document
from orchestrator.errors import Problem

if TYPE_CHECKING:
    from orchestrator.dataset import Snapshot
    from orchestrator.study_file import LoadedStudy

TASKS = ("seq2seq", "causal_lm")
PLACE = ("generation", "metrics")
ANSWERED = "needs rows with something to answer: prompt and completion, or messages"


def check(doc: Document, raw: Mapping[str, Any]) -> Iterator[Problem]:
    """Contradictions between keys."""
    given, task, wanted = section(raw, "generation"), raw.get("task"), raw.get("objective")
    metrics = given.get("metrics") or []
    if not isinstance(metrics, list):  # `StudySpec` says so
        return
    if metrics and isinstance(task, str) and task not in TASKS:
        message = f"'generation.metrics' needs task {' or '.join(TASKS)} — got {task}"
        yield doc.problem(PLACE, "generation", message)
    if metrics and task == "causal_lm" and section(raw, "data").get("text") is not None:
        yield doc.problem(PLACE, "generation", f"'generation.metrics' {ANSWERED} — got data.text")
    if len({str(name) for name in metrics}) < len(metrics):
        yield doc.problem(PLACE, "generation", "a metric is named twice")
    if not metrics and "max_new_tokens" in given:
        place = ("generation", "max_new_tokens")
        yield doc.problem(place, "no-effect", "'generation.max_new_tokens' has no effect without generation.metrics")
    if wanted in ("chrf", "exact_match") and task in TASKS:
        yield from _objective(doc, raw, str(wanted), metrics)


def _objective(doc: Document, raw: Mapping[str, Any], wanted: str, metrics: list[Any]) -> Iterator[Problem]:
    if wanted not in metrics:
        help = f"write generation: {{metrics: [{wanted}]}}"
        message = f"objective {wanted} is of texts that the models write, and none are asked for"
        yield doc.problem(("objective",), "generation", message, help)
    run = raw.get("baselines")
    names = run.get("run") if isinstance(run, dict) else run
    if names and raw.get("task") in baselines.OF_TASK:
        message = f"baselines write nothing, so that they have no {wanted}"
        yield doc.problem(("baselines",), "generation", message, "leave baselines out")


def problems(loaded: LoadedStudy, snapshot: Snapshot) -> Iterator[Problem]:
    """What these rows cannot have."""
    columns = json.loads(snapshot.content.partition(b"\n")[0])
    if loaded.spec.generation.metrics and loaded.spec.task == "causal_lm" and "text" in columns:
        yield loaded.problem(PLACE, "generation", f"'generation.metrics' {ANSWERED} — got rows of text")
