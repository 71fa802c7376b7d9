"""Rows that are made are made of a unit's training rows, and nothing of its validation rows ever reaches training."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.contract import EpochDone, Outcome, Progress, TrainUnit, UnitEnded
from tests import tiny_models
from trial_worker.augment.made import Fold, Made
from trial_worker.engine import Base, Pack, Rows, pack, training_part
from trial_worker.tasks import CausalLm, Classification

NOISE = {"augment_copies": 2, "char_noise": 0.2, "word_noise": 0.2, "synonyms": 1.0}
ROWS = 20
# each row is written with a letter of its own, which noise can only repeat: what is read tells whom it descends from
MARKED = [
    {"text": f"{chr(97 + i) * 3} {chr(97 + i) * (1 + i % 4)}", "label": tiny_models.LABELS[i % 3]} for i in range(ROWS)
]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tiny_models.save_roberta(tmp_path_factory.mktemp("roberta"))
    return Base.load(tiny_models.pin(folder), "sequence", 3)


def packed(base: Base, rows: list[dict[str, str]]) -> Pack:
    return Pack(base, Rows(Classification(tiny_models.LABELS), rows, base.tokenizer))


def train(pack: Pack, unit: TrainUnit) -> tuple[list[Progress], list[EpochDone], UnitEnded]:
    pack.add(unit)
    steps, epochs = [], []
    while True:
        for event in pack.advance():
            if isinstance(event, UnitEnded):
                return steps, epochs, event
            (steps if isinstance(event, Progress) else epochs).append(event)


def texts_trained_on(pack_: Pack, unit: TrainUnit, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text that a training step computes, in order."""
    seen: list[str] = []
    lay_out = pack.lay_out

    def spy(parts: Any, base: Base, reads: Any) -> Any:
        for slot, bundles in parts:
            ids = [slot.items[row].ids for bundle in bundles for row, _ in bundle]
            seen.extend(base.tokenizer.decode(one, skip_special_tokens=True) for one in ids if not slot.evaluating)
        return lay_out(parts, base, reads)

    monkeypatch.setattr(pack, "lay_out", spy)
    assert train(pack_, unit)[-1].outcome == Outcome.DONE
    monkeypatch.undo()
    return seen


@pytest.mark.parametrize("fold", range(4))
def test_no_descendant_of_a_validation_row_is_trained_on(
    fold: int, bert: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = dataclasses.replace(
        tiny_models.unit(ROWS, **NOISE, epochs=1),
        train=tuple(i for i in range(ROWS) if i % 4 != fold),
        validation=tuple(i for i in range(ROWS) if i % 4 == fold),
    )
    texts = texts_trained_on(packed(bert, MARKED), unit, monkeypatch)
    assert len(texts) == 3 * len(unit.train)
    letters = set("".join(texts)) - {" "}
    assert letters == {chr(97 + i) for i in unit.train}


def test_labels_of_validation_rows_change_no_bit_of_what_is_trained(bert: Base, tmp_path: Path) -> None:
    unit = tiny_models.unit(ROWS, **NOISE)
    turned = [
        {**row, "label": tiny_models.LABELS[(i + 1) % 3]} if i in unit.validation else row
        for i, row in enumerate(MARKED)
    ]
    found = []
    for name, rows in (("as they are", MARKED), ("turned", turned)):
        pack = packed(bert, rows)
        (tmp_path / name).mkdir()
        steps, epochs, end = train(pack, dataclasses.replace(unit, scratch=str(tmp_path / name)))
        assert end.outcome == Outcome.DONE
        adapters = [Path(epoch.checkpoint.path).read_bytes() for epoch in epochs if epoch.checkpoint]
        assert len(adapters) == 2
        made = training_part.made_rows(pack.rows, unit)
        trained = (made, adapters, [step.loss for step in steps], epochs[-1].predictions.logits)
        found.append((trained, epochs[-1].tallies["nats"]))
    assert found[0][0] == found[1][0]
    assert found[0][1] != found[1][1]  # the labels were read, where they may be


def leaky(fold: Fold) -> Iterator[Made]:
    """Descends from row 0, which is validated on in fold 0."""
    yield Made(fold.rows[1], (1, 0), "a planted leak")


def test_a_planted_leak_ends_the_unit_before_anything_is_computed(bert: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_part, "AUGMENTERS", (*training_part.AUGMENTERS, leaky))
    steps, epochs, end = train(packed(bert, MARKED), tiny_models.unit(ROWS, **NOISE))
    assert (steps, epochs, end.outcome) == ([], [], Outcome.FAILED)
    assert end.reason == "Leak: a row made by a planted leak descends from rows [0], which are not trained on"


def test_an_augmenter_has_no_validation_row_to_read(bert: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    def peeping(fold: Fold) -> Iterator[Made]:
        yield Made(fold.rows[0], (1,), "a look at row 0")

    monkeypatch.setattr(training_part, "AUGMENTERS", (peeping,))
    _, _, end = train(packed(bert, MARKED), tiny_models.unit(ROWS))
    assert (end.outcome, end.reason) == (Outcome.FAILED, "KeyError: 0")


def test_a_made_row_that_says_what_a_validation_row_says_is_left_out(
    bert: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [MARKED[0]["text"].upper(), "aaa  A", "something else"]

    def lying(fold: Fold) -> Iterator[Made]:
        yield from (Made({"text": text, "label": "food"}, (1,), "a lie") for text in texts)

    monkeypatch.setattr(training_part, "AUGMENTERS", (lying,))
    seen = texts_trained_on(packed(bert, MARKED), tiny_models.unit(ROWS, epochs=1), monkeypatch)
    assert "something else" in seen
    assert not {text.casefold() for text in seen} & {"aaa a", "aaa  a"}
    assert len(seen) == 15 + 1


def test_steps_and_schedule_count_made_rows(bert: Base) -> None:
    steps, epochs, _ = train(packed(bert, MARKED), tiny_models.unit(ROWS, **NOISE, batch_size=8))
    assert len(steps) == 2 * 6  # 15 rows, and two copies of each
    assert {step.steps for step in steps} == {12}
    assert epochs[-1].tallies["items"] == 5


def test_without_augmentation_nothing_is_looked_at(bert: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = packed(bert, MARKED).rows
    monkeypatch.setattr(Rows, "further", None)
    monkeypatch.setattr(training_part, "admitted", None)
    unit = tiny_models.unit(ROWS)
    part = training_part.training_part(bert, rows, unit)
    items, numbers = part.items, part.train
    assert items is rows.items(bert.limit)
    assert numbers == unit.train


@pytest.mark.parametrize("shape", ["completion", "messages"])
def test_a_language_models_answers_stay_as_they_are(shape: str, tmp_path: Path) -> None:
    base = Base.load(tiny_models.pin(tiny_models.save_llama(tmp_path)), "causal", 0)
    rows: list[dict[str, Any]] = [{"prompt": f"q{i} what ", "completion": f"is it {i}"} for i in range(12)]
    if shape == "messages":
        rows = [
            {"messages": [{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r["completion"]}]}
            for r in rows
        ]
    read = Rows(CausalLm(), rows, base.tokenizer)
    unit = tiny_models.unit(12, char_noise=0.3, word_noise=0.3)
    part = training_part.training_part(base, read, unit)
    items, numbers = part.items, part.train
    made = numbers[len(unit.train) :]
    assert len(made) == len(unit.train)
    changed = 0
    for source, copy in zip(unit.train, made, strict=True):
        assert items[copy].targets.tolist() == items[source].targets.tolist()
        changed += items[copy].ids.tolist() != items[source].ids.tolist()
    assert changed > 5


def test_noise_where_all_is_learnt_fails_the_unit_with_a_reason(tmp_path: Path) -> None:
    base = Base.load(tiny_models.pin(tiny_models.save_gpt2(tmp_path)), "causal", 0)
    pack = Pack(base, Rows(CausalLm(), [{"text": f"text {i}"} for i in range(12)], base.tokenizer))
    _, _, end = train(pack, tiny_models.unit(12, char_noise=0.1))
    assert end.outcome == Outcome.FAILED
    assert "must have text beside what is learnt" in end.reason
