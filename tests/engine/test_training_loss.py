"""Training loss is the quantity that validation loss is: without any learning, both are equal on the same rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator import objective
from orchestrator.contract import EpochDone
from tests import tiny_models
from trial_worker.engine import Base, Pack, Rows
from trial_worker.tasks import task_named

Case = tuple[Callable[[Path], Path], list[Any]]
CASES: dict[str, Case] = {
    "classification": (tiny_models.save_bert, tiny_models.uneven_rows()),
    "multi_label": (tiny_models.save_bert, tiny_models.labels_rows()),
    "regression": (tiny_models.save_bert, tiny_models.number_rows()),
    "token_classification": (tiny_models.save_bert, tiny_models.tagged_rows()),
    "question_answering": (tiny_models.save_roberta, tiny_models.question_rows()),
    "causal_lm": (tiny_models.save_gpt2, tiny_models.causal_rows()),
    "seq2seq": (tiny_models.save_t5, tiny_models.rewriting_rows()),
}
LABELS = {"multi_label": tiny_models.LABELS, "token_classification": tiny_models.TAGS}
OF_TRAINING: list[tuple[str, dict[str, Any]]] = [
    *((task, {}) for task in CASES),
    *((task, {"label_smoothing": 0.4}) for task in CASES if task != "regression"),
    ("classification", {"class_weights": "balanced"}),
    ("classification", {"mixup_alpha": 1.0}),
    ("classification", {"r_drop_alpha": 2.0, "lora_dropout": 0.3, "batch_size": 4}),
    ("classification", {"mixup_alpha": 1.0, "label_smoothing": 0.2, "class_weights": "balanced", "batch_size": 5}),
]


@pytest.mark.parametrize(("task", "settings"), OF_TRAINING, ids=str)
def test_what_training_makes_small_is_no_part_of_training_loss(
    task: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    save, rows = CASES[task]
    learning = task_named(task, LABELS.get(task, tiny_models.LABELS if task == "classification" else ()))
    base = Base.load(tiny_models.pin(save(tmp_path)), learning.family, learning.outputs)
    pack = Pack(base, Rows(learning, rows, base.tokenizer))
    unit = tiny_models.unit(epochs=1, learning_rate=1e-12, **settings)
    pack.add(replace(unit, validation=unit.train))
    done: list[EpochDone] = []
    while not done:
        done = [event for event in pack.advance() if isinstance(event, EpochDone)]
    assert done[0].train_loss == pytest.approx(objective.validation_loss(done[0].tallies), rel=1e-5)
