"""What augmentation asks of a study's file, rows and models, said before anything is spent; and what it pins."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from orchestrator import dataset, models
from orchestrator.augmentation_checks import DISTURBING
from orchestrator.contract import WriterPin
from orchestrator.dataset import Snapshot
from orchestrator.errors import Problem
from orchestrator.spec import DataSource
from orchestrator.study_file import LoadedStudy

PROMPTS: Mapping[str, str] = {
    "paraphraser": "Rewrite this text in other words. Keep its meaning. Answer with the new text only.\n\n$text",
    "back_translator": "$text",
    "generator": "Here are examples of the class $label, one a line. Write one more, different from all of them.\n\n"
    "$examples\n$label:",
}


@dataclasses.dataclass(frozen=True)
class Pool:
    """Rows without labels, frozen as a `Snapshot` is."""

    content: bytes  # canonical JSONL, UTF-8: {"text": ...}
    sha256: str
    rows: int


def pool(source: DataSource, folder: Path) -> Pool | None:
    """The study's pool, if it names one.

    Raises:
        BadInput: it cannot be read, or a row has no text (exit code 65).
    """
    if source.pool is None:
        return None
    content, rows = dataset.texts(DataSource(path=source.pool, text=source.text), folder)
    return Pool(content, hashlib.sha256(content).hexdigest(), rows)


def pins(loaded: LoadedStudy) -> dict[str, WriterPin]:
    """The study's writers, resolved for good. Raises as `models.pin`."""
    writers = loaded.spec.augmentation.writers
    defaults = dict(PROMPTS)
    if "back_translator" in writers:  # it translates, which such models do unasked
        defaults["paraphraser"] = defaults["back_translator"]
    return {name: models.pin_writer(each, defaults[name], loaded.folder) for name, each in writers.items()}


def model_problems(loaded: LoadedStudy) -> list[Problem]:
    """What is wrong with the writers, as far as can be said without a network."""
    return [
        loaded.problem(("augmentation", name, "path"), found.code, found.message, found.help)
        for name, each in loaded.spec.augmentation.writers.items()
        for found in models.check(each.model, loaded.folder, loaded.document.file, wanted=name)
    ]


def problems(loaded: LoadedStudy, snapshot: Snapshot) -> Iterator[Problem]:
    """What these rows cannot have."""
    columns = json.loads(snapshot.content.partition(b"\n")[0])
    if loaded.spec.task != "causal_lm" or "text" not in columns:
        return
    rule = (
        "needs rows of prompt with completion, or messages: of rows of text all is learnt, and so would be the change"
    )
    for name in (*DISTURBING, "paraphrases"):
        if loaded.spec.training.get(name) or name in loaded.spec.space:
            place = ("search", "space", name) if name in loaded.spec.space else ("training", name)
            yield loaded.problem(place, "augmentation", f"'{name}' {rule}")
