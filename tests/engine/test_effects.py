"""No accepted key is without effect: each hyperparameter, changed alone, changes what a unit computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.contract import EpochDone, UnitEnded
from orchestrator.hyperparameters import FIELDS
from tests import tiny_models
from tests.scripted import Scripted
from trial_worker.engine import Base, Pack, Rows, Staged
from trial_worker.tasks import Classification

OTHER = {
    "learning_rate": 1e-2,
    "batch_size": 4,
    "epochs": 3,
    "lora_rank": 2,
    "lora_alpha": 1.0,
    "lora_dropout": 0.5,
    "target_modules": ("query",),
    "weight_decay": 5.0,
    "warmup_ratio": 0.9,
    "warmup_steps": 7,
    "lr_schedule": "constant",
    "max_grad_norm": 1e-3,
    "max_length": 4,
    "pooling": "mean",
    "method": "head",
    "lora_scaling": "rslora",
    "top_layers": 1,
    "dropout": 0.3,
    "label_smoothing": 0.3,
    "neftune_alpha": 10.0,
    "token_dropout": 0.4,
    "mixup_alpha": 0.5,
    "r_drop_alpha": 3.0,
    "class_weights": "balanced",
    "augment_copies": 2,
    "char_noise": 0.3,
    "word_noise": 0.3,
    "synonyms": 1.0,
    "paraphrases": 1,
    "synthetic": 2,
    "pseudo_rounds": 1,
    "pseudo_threshold": 0.0,
    "patience": 1,
    "stopping_share": 0.4,
}


BESIDE = {
    "r_drop_alpha": {"lora_dropout": 0.3},  # without any dropout both copies of a row are equal
    "augment_copies": {"word_noise": 0.2},
    "pseudo_rounds": {"pseudo_threshold": 0.0},
    "pseudo_threshold": {"pseudo_rounds": 1},
    "stopping_share": {"patience": 1},
}


@pytest.fixture(scope="session")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, Any]], list[str]]:
    folder: Path = tiny_models.save_bert(tmp_path_factory.mktemp("bert"))
    base = Base.load(tiny_models.pin(folder), "sequence", 3)
    rows = tiny_models.uneven_rows()
    pool = [{"text": f"{row['text']} wood"} for row in rows[:6]]
    writers = {
        "paraphraser": Scripted(lambda asked: f"well, {asked.prompt}"),
        "generator": Scripted(lambda asked: f"{asked.prompt.split()[-1]} and joy of bread", "$label $examples"),
    }
    task = Classification(tiny_models.LABELS)
    pack = Staged(Pack(base, Rows(task, rows, base.tokenizer, pool)), writers, None)

    def train(settings: dict[str, Any]) -> list[str]:
        pack.add(tiny_models.unit(**settings))
        seen: list[str] = []
        while True:
            for event in pack.advance():
                if isinstance(event, EpochDone):
                    seen.append(event.predictions.nats)
                elif isinstance(event, UnitEnded):
                    assert event.outcome == "done", event.evidence
                    return seen

    return train


def test_the_table_names_every_hyperparameter() -> None:
    assert set(OTHER) == set(FIELDS)


@pytest.mark.parametrize("name", OTHER)
def test_a_hyperparameter_changed_alone_changes_the_predictions(
    name: str, outcome: Callable[[dict[str, Any]], list[str]]
) -> None:
    beside = BESIDE.get(name, {})
    assert outcome({name: OTHER[name], **beside}) != outcome(beside)
