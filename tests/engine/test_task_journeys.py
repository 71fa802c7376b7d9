"""From a user's rows to the objective, for every task: check, snapshot, folds, training, tallies, metrics."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator import folds, forms, objective, prepare, study_file
from orchestrator.contract import EpochDone, OpenStudy, Settings, TrainUnit, UnitEnded
from tests import tiny_models
from tests.unit.study_text import jsonl, study
from trial_worker.engine.pack import open_study
from trial_worker.units import generation_of

SPANS = [
    {"text": row["text"], "spans": [{"start": 0, "end": len(row["text"].split()[0]), "label": "first"}]}
    for row in tiny_models.classification_rows()
]
ROWS: dict[str, tuple[Callable[[Path], Path], list[Any], dict[str, str]]] = {
    "classification": (tiny_models.save_bert, tiny_models.pair_rows(), {"text_pair": "text_pair"}),
    "seq2seq_classification": (tiny_models.save_t5, tiny_models.pair_rows(), {"text_pair": "text_pair"}),
    "multi_label": (
        tiny_models.save_bert,
        [{"text": row["text"], "label": row["labels"]} for row in tiny_models.labels_rows()],
        {},
    ),
    "regression": (
        tiny_models.save_roberta,
        [{"text": row["text"], "height": row["number"]} for row in tiny_models.number_rows()],
        {"label": "height"},
    ),
    "token_classification": (tiny_models.save_bert, SPANS, {}),
    "question_answering": (
        tiny_models.save_roberta,
        [{**row, "answer_start": row["start"]} for row in tiny_models.question_rows()],
        {"group": "context"},
    ),
    "causal_lm": (tiny_models.save_llama, tiny_models.causal_rows(), {}),
    "seq2seq": (tiny_models.save_t5, tiny_models.rewriting_rows(), {}),
}


def test_every_task_is_here() -> None:
    assert set(ROWS) == set(forms.TASKS)


@pytest.mark.parametrize("task", ROWS)
def test_rows_of_a_file_are_learnt_and_scored_by_every_metric_of_their_task(task: str, tmp_path: Path) -> None:
    save, rows, columns = ROWS[task]
    save(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text(jsonl(rows), encoding="utf-8")
    named = "".join(f", {key}: {column}" for key, column in columns.items())
    written = "{metrics: [chrf, exact_match], max_new_tokens: 8}" if task in ("causal_lm", "seq2seq") else None
    (tmp_path / "study.yaml").write_text(
        study(task=task, data=f"{{path: rows.jsonl{named}}}", cross_validation="{folds: 3}", generation=written),
        encoding="utf-8",
    )
    loaded = study_file.load(tmp_path / "study.yaml")
    snapshot = prepare.read(loaded)
    (tmp_path / "snapshot.jsonl").write_bytes(snapshot.content)
    plan = folds.plan(snapshot.rows, 3, labels=snapshot.strata, groups=snapshot.groups)
    pack = open_study(
        OpenStudy(
            study=1,
            name=task,
            task=task,
            model=tiny_models.pin(tmp_path / "model"),
            data=str(tmp_path / "snapshot.jsonl"),
            labels=snapshot.classes,
            generation=generation_of(loaded.spec),
        ),
        torch.device("cpu"),
    )
    tallies, losses = [], []
    for fold in range(3):
        train, validation = plan.split(0, fold)
        settings = Settings(learning_rate=1e-2, batch_size=6, epochs=4, lora_rank=4)
        unit = TrainUnit(
            study=1,
            unit=fold,
            lease_epoch=1,
            trial=1,
            repeat=0,
            fold=fold,
            seed=fold,
            settings=settings,
            train=train,
            validation=validation,
        )
        done = trained(pack, unit)
        tallies.append(done[-1].tallies)
        losses.append([each.train_loss for each in done])
    assert all(each[-1] < each[0] for each in losses)
    values = objective.metrics(objective.add(tallies))
    wanted = {name for name, tasks in objective.OF_TASK.items() if task in tasks}
    assert wanted <= set(values)
    assert all(math.isfinite(values[name]) for name in (*wanted, "validation_loss"))


def trained(pack: Any, unit: TrainUnit) -> list[EpochDone]:
    pack.add(unit)
    done = []
    while True:
        for event in pack.advance():
            if isinstance(event, EpochDone):
                done.append(event)
            elif isinstance(event, UnitEnded):
                assert event.outcome == "done", event.evidence
                return done
