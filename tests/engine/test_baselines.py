"""Baselines: what they reach follows from the training part alone, and they run beside units that train."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator import baselines, objective
from orchestrator.contract import EpochDone, Outcome, Settings, TrainUnit, UnitEnded
from tests import tiny_models
from trial_worker.engine import Base, Pack, Rows
from trial_worker.tasks import CausalLm, Classification


def pack_of(name: str, folder: Path, *, causal: bool = False, rows: Sequence[Any] | None = None, **more: Any) -> Pack:
    save = getattr(tiny_models, f"save_{name}")
    base = Base.load(tiny_models.pin(save(folder / name)), "causal" if causal else "sequence", 0 if causal else 3)
    given = rows or (tiny_models.causal_rows() if causal else tiny_models.classification_rows())
    task = CausalLm() if causal else Classification(tiny_models.LABELS)
    return Pack(base, Rows(task, given, base.tokenizer), **more)


def measure(pack: Pack, name: str, **changed: Any) -> tuple[EpochDone | None, UnitEnded]:
    unit = dataclasses.replace(tiny_models.unit(), settings=Settings(**baselines.params(name)), **changed)
    pack.add(unit)
    done = None
    while True:
        for event in pack.advance():
            if isinstance(event, EpochDone):
                done = event
            elif isinstance(event, UnitEnded) and event.unit == unit.unit:
                return done, event


def reached(pack: Pack, name: str, **changed: Any) -> dict[str, float]:
    done, ended = measure(pack, name, **changed)
    assert ended.outcome == Outcome.DONE, ended.evidence or ended.reason
    assert done is not None
    return objective.metrics(done.tallies)


@pytest.mark.parametrize("name", baselines.CLASSIFICATION)
@pytest.mark.parametrize("model", ["bert", "gpt2", "llama"])
def test_every_baseline_of_classes_says_something_finite_of_every_row(model: str, name: str, tmp_path: Path) -> None:
    found = reached(pack_of(model, tmp_path, shots=1), name)
    assert math.isfinite(found["validation_loss"])
    assert 0 <= found["accuracy"] <= 1


def test_class_frequencies_are_those_that_the_launch_computes(tmp_path: Path) -> None:
    pack, unit = pack_of("bert", tmp_path), tiny_models.unit()
    labels = [row["label"] for row in (pack.rows.raw[i] for i in range(len(pack.rows)))]
    expected = objective.majority(labels, [(unit.train, unit.validation)])
    assert reached(pack, "majority")["validation_loss"] == pytest.approx(expected["validation_loss"])


def test_words_that_name_their_class_are_learnt_by_counting(tmp_path: Path) -> None:
    names = tiny_models.LABELS
    rows = [{"text": f"{names[i % 3]} {names[i % 3]} baked", "label": names[i % 3]} for i in range(48)]
    pack = pack_of("bert", tmp_path, rows=rows)
    unit = tiny_models.unit(48)
    found = reached(pack, "tfidf", train=unit.train, validation=unit.validation)
    assert found["accuracy"] == 1.0
    assert found["validation_loss"] < 0.2


@pytest.mark.parametrize("name", baselines.LANGUAGE)
@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_every_baseline_of_tokens_is_scored_on_the_same_targets(model: str, name: str, tmp_path: Path) -> None:
    pack = pack_of(model, tmp_path, causal=True, shots=1)
    done, ended = measure(pack, name)
    assert ended.outcome == Outcome.DONE, ended.reason
    assert done is not None
    validation = tiny_models.unit().validation
    assert done.tallies["items"] == sum(pack.rows.items(128)[row].weight for row in validation)
    assert math.isfinite(done.tallies["nats"])


def test_the_model_as_it_is_has_the_loss_that_training_begins_from(tmp_path: Path) -> None:
    pack = pack_of("gpt2", tmp_path, causal=True)
    unit = tiny_models.unit(learning_rate=1e-12, epochs=1)
    pack.add(unit)
    trained = [event for _ in range(30) for event in pack.advance() if isinstance(event, EpochDone)]
    assert reached(pack, "zero-shot")["validation_loss"] == pytest.approx(
        objective.metrics(trained[0].tallies)["validation_loss"], rel=1e-5
    )


@pytest.mark.parametrize("name", ["tfidf", "features", "zero-shot", "few-shot"])
def test_nothing_of_a_baseline_depends_on_the_labels_it_is_scored_by(name: str, tmp_path: Path) -> None:
    unit, rows = tiny_models.unit(), tiny_models.classification_rows()
    turned = [dict(row) for row in rows]
    for place, row in enumerate(unit.validation):
        turned[row]["label"] = rows[unit.validation[(place + 1) % len(unit.validation)]]["label"]
    said = [measure(pack_of("bert", tmp_path / str(i), rows=given), name)[0] for i, given in enumerate((rows, turned))]
    assert said[0] is not None and said[1] is not None  # noqa: PT018
    assert said[0].predictions.logits == said[1].predictions.logits
    assert said[0].tallies != said[1].tallies


def test_shown_rows_are_of_the_training_part_and_of_every_class(tmp_path: Path) -> None:
    from trial_worker.baselines import Job

    pack, unit = pack_of("bert", tmp_path), tiny_models.unit()
    shown = Job(unit, pack.base, pack.rows, 2, "{text}{label}").shown()
    assert set(shown) <= set(unit.train)
    assert sorted(pack.rows.raw[row]["label"] for row in shown) == sorted(2 * tiny_models.LABELS)


@pytest.mark.parametrize(
    ("model", "causal", "name", "words"),
    [
        ("t5", False, "few-shot", "no decoder to prompt"),
        ("gpt2", True, "few-shot", "use fewer shots"),
        ("gpt2", False, "few-shot", "use fewer shots"),
    ],
)
def test_what_does_not_apply_says_why(model: str, causal: bool, name: str, words: str, tmp_path: Path) -> None:
    done, ended = measure(pack_of(model, tmp_path, causal=causal, shots=8), name)
    assert done is None
    assert ended.outcome == Outcome.INFEASIBLE
    assert ended.reason.startswith("not applicable: ")
    assert words in ended.reason


def test_rows_of_plain_text_cannot_be_shown_others(tmp_path: Path) -> None:
    rows = [{"text": text} for text in tiny_models.CORPUS * 4]
    _, ended = measure(pack_of("gpt2", tmp_path, causal=True, rows=rows), "few-shot")
    assert "rows of plain text have no prompt" in ended.reason


def test_a_baseline_beside_a_unit_changes_none_of_its_bits(tmp_path: Path) -> None:
    alone = [event for event in everything(pack_of("bert", tmp_path / "a"), []) if isinstance(event, EpochDone)]
    base = [dataclasses.replace(unit_of("few-shot"), unit=7), dataclasses.replace(unit_of("features"), unit=8)]
    beside = everything(pack_of("bert", tmp_path / "b", slots=3), base)
    mine = [event for event in beside if isinstance(event, EpochDone) and event.unit == 1]
    assert [event.predictions for event in mine] == [event.predictions for event in alone]
    assert {event.unit for event in beside if isinstance(event, UnitEnded)} == {1, 7, 8}


def unit_of(name: str) -> TrainUnit:
    return dataclasses.replace(tiny_models.unit(), settings=Settings(**baselines.params(name)))


def everything(pack: Pack, others: Sequence[TrainUnit]) -> list[Any]:
    for unit in (tiny_models.unit(), *others):
        pack.add(unit)
    events: list[Any] = []
    while pack.free < pack.slots:
        events += pack.advance()
    return events


def test_a_dropped_baseline_frees_its_slot(tmp_path: Path) -> None:
    pack = pack_of("bert", tmp_path)
    pack.add(unit_of("features"))
    assert pack.free == pack.slots - 1
    pack.advance()
    assert [event.outcome for event in pack.drop(1, "the lease is gone")] == [Outcome.DROPPED]  # type: ignore[union-attr]
    assert pack.free == pack.slots


def test_frozen_features_are_computed_once_for_all_folds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trial_worker.baselines import features

    counted = []
    embed = features.embed
    monkeypatch.setattr(features, "embed", lambda base, rows: counted.append(len(rows)) or embed(base, rows))
    pack = pack_of("bert", tmp_path)
    for _ in range(2):
        reached(pack, "features")
    assert sum(counted) == len(pack.rows)


def test_label_scores_do_not_depend_on_padding(tmp_path: Path) -> None:
    from trial_worker.baselines import prompting

    pack = pack_of("gpt2", tmp_path)
    head = prompting._language_head(pack.base)
    rows = [
        prompting._continued(pack.base.tokenizer, "a feeling of\nCategory: ", label) for label in tiny_models.LABELS
    ]
    together = prompting._likelihoods(pack.base, head, rows)
    apart = np.concatenate([prompting._likelihoods(pack.base, head, [row]) for row in rows])
    np.testing.assert_allclose(together, apart, rtol=1e-5)
