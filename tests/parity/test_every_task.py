"""Every task's units against the textbook loop, and the same units in any company."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from orchestrator.contract import TrainUnit
from tests import tiny_models
from tests.parity.test_against_peft import SETTINGS, Losses, company, crossed, fresh, grid, plain, same_weights, train
from tests.parity.test_company import alone, equal
from tests.parity.test_company import train as train_all
from trial_worker.engine import Base, Pack, Rows
from trial_worker.tasks import (
    Classification,
    MultiLabel,
    QuestionAnswering,
    Regression,
    Seq2Seq,
    Seq2SeqClassification,
    Task,
    TokenClassification,
)
from trial_worker.tasks.interface import Item

LABELS = tiny_models.LABELS


@dataclasses.dataclass(frozen=True)
class Case:
    """loss: of the textbook loop. kind: PEFT's name for it. settings: of every unit. rel: of losses."""

    save: Callable[[Path], Path]
    task: Task
    rows: Sequence[Any]
    loss: Callable[[Any, Base, Sequence[Item], float], Losses]
    kind: str = "SEQ_CLS"
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rel: float = 1e-9

    def base(self, folder: Path, *, streams: bool = True) -> Base:
        place = folder / "model"
        if not place.exists():
            self.save(place)
        base = Base.load(tiny_models.pin(place), self.task.family, self.task.outputs, streams=streams)
        base.model.double()
        return base

    def pack(self, base: Base, slots: int) -> Pack:
        return Pack(base, Rows(self.task, self.rows, base.tokenizer), slots)


def pair_loss(model: Any, base: Base, items: Sequence[Item], smoothing: float) -> Losses:
    inputs = grid(base, items)
    kinds = torch.zeros_like(inputs["input_ids"])
    for place, item in enumerate(items):
        kinds[place, : item.length] = 0 if item.segments is None else item.segments
    extra = {"token_type_ids": kinds} if base.knows_segments else {}
    assert base.knows_segments == bool(kinds.any())
    truth = torch.tensor([int(item.targets) for item in items])
    return crossed(model(**inputs, **extra).logits, truth, smoothing)


def weighted_loss(model: Any, base: Base, items: Sequence[Item], smoothing: float) -> Losses:
    """As if each row stood in the batch as often as scikit-learn's class weight says."""
    labels = [row["label"] for row in tiny_models.uneven_rows()]
    seen = [labels[row] for row in tiny_models.unit().train]
    weights = dict(zip(LABELS, compute_class_weight("balanced", classes=np.array(LABELS), y=seen), strict=True))
    truth = torch.tensor([int(item.targets) for item in items])
    each = torch.tensor([weights[LABELS[label]] for label in truth.tolist()])
    logits = model(**grid(base, items)).logits
    nats = torch.nn.functional.cross_entropy(logits, truth, reduction="none")
    return nats.mean(), (nats * each).mean()


def number_loss(model: Any, base: Base, items: Sequence[Item], smoothing: float) -> Losses:
    """Half the squared error in standard deviations, and what a normal distribution of that width costs besides."""
    numbers = [row["number"] for row in tiny_models.number_rows()]
    seen = [numbers[row] for row in tiny_models.unit().train]
    said = model(**grid(base, items)).logits.squeeze(-1)
    texts = {tuple(item.ids.tolist()): row for row, item in enumerate(whole(base))}
    truth = torch.tensor([numbers[texts[tuple(item.ids.tolist())]] for item in items], dtype=torch.float64)
    errors = (said - (truth - np.mean(seen)) / np.std(seen)) ** 2
    loss = (errors / 2 + 0.5 * np.log(2 * np.pi)).mean()
    return loss, loss


def whole(base: Base) -> Sequence[Item]:
    return Regression().encode(tiny_models.number_rows(), base.tokenizer)


def labels_loss(model: Any, base: Base, items: Sequence[Item], smoothing: float) -> Losses:
    binary = torch.nn.functional.binary_cross_entropy_with_logits
    logits = model(**grid(base, items)).logits
    truth = torch.cat([item.targets for item in items]).double()
    soft = truth * (1 - smoothing) + smoothing / 2
    return tuple(binary(logits, each, reduction="none").sum(-1).mean() for each in (truth, soft))


def tags_loss(model: Any, base: Base, items: Sequence[Item], smoothing: float) -> Losses:
    inputs = grid(base, items)
    labels = torch.full_like(inputs["input_ids"], -100)
    for place, item in enumerate(items):
        labels[place, item.positions] = item.targets
    return crossed(model(**inputs).logits.flatten(0, 1), labels.flatten(), smoothing)


def ends_loss(model: Any, base: Base, items: Sequence[Item], smoothing: float) -> Losses:
    """Row by row: transformers' own class lets padding be an answer. PEFT's class swallows token_type_ids (0.21)."""
    shown, small = [], []
    for item in items:
        kinds = {} if item.segments is None else {"token_type_ids": item.segments[None]}
        said = model.get_base_model()(input_ids=item.ids[None], **kinds)
        for logits, target in zip((said.start_logits, said.end_logits), item.targets, strict=True):
            found = crossed(logits, target[None], smoothing)
            shown.append(found[0])
            small.append(found[1])
    return torch.stack(shown).mean(), torch.stack(small).mean()


def target_loss(model: Any, base: Base, items: Sequence[Item], smoothing: float) -> Losses:
    labels = torch.full((len(items), max(item.weight for item in items)), -100)
    for place, item in enumerate(items):
        labels[place, : item.weight] = item.targets
    logits = model(**grid(base, items), labels=labels).logits
    return crossed(logits.flatten(0, 1), labels.flatten(), smoothing)


def names_loss(model: Any, base: Base, items: Sequence[Item], smoothing: float) -> Losses:
    """Each class's name by itself behind each row, as one asks transformers for the likelihood of a target."""
    scores = torch.zeros(len(items), len(LABELS), dtype=torch.float64)
    for place, item in enumerate(items):
        for number, label in enumerate(LABELS):
            ids = base.tokenizer(text_target=label, return_tensors="pt")["input_ids"]
            logits = model(input_ids=item.ids[None], labels=ids).logits
            scores[place, number] = logits.log_softmax(-1).gather(2, ids[..., None]).sum()
    return crossed(scores, torch.tensor([int(item.targets) for item in items]), smoothing)


TAGGED, TAGS = tiny_models.tagged_rows(), TokenClassification(tiny_models.TAGS)
QUESTIONS, ENDS = tiny_models.question_rows(), QuestionAnswering()
SMOOTH = {"label_smoothing": 0.1}
CASES = {
    "rewriting on t5": Case(
        tiny_models.save_t5, Seq2Seq(), tiny_models.rewriting_rows(), target_loss, "SEQ_2_SEQ_LM", SMOOTH, 1e-7
    ),  # T5 takes norms and softmaxes in float32
    "names on t5": Case(
        tiny_models.save_t5,
        Seq2SeqClassification(LABELS),
        tiny_models.pair_rows(),
        names_loss,
        "SEQ_2_SEQ_LM",
        SMOOTH,
        1e-6,
    ),  # and a score is a sum of tens of nats
    "tags on bert": Case(tiny_models.save_bert, TAGS, TAGGED, tags_loss, "TOKEN_CLS", SMOOTH),
    "tags on gpt2": Case(tiny_models.save_gpt2, TAGS, TAGGED, tags_loss, "TOKEN_CLS"),
    "tags on t5": Case(tiny_models.save_t5, TAGS, TAGGED, tags_loss, "TOKEN_CLS"),
    "answers on bert": Case(tiny_models.save_bert, ENDS, QUESTIONS, ends_loss, "QUESTION_ANS", SMOOTH),
    "answers on roberta": Case(tiny_models.save_roberta, ENDS, QUESTIONS, ends_loss, "QUESTION_ANS"),
    "answers on gpt2": Case(tiny_models.save_gpt2, ENDS, QUESTIONS, ends_loss, "QUESTION_ANS"),
    "regression": Case(tiny_models.save_bert, Regression(), tiny_models.number_rows(), number_loss),
    "several labels": Case(
        tiny_models.save_roberta,
        MultiLabel(LABELS),
        tiny_models.labels_rows(),
        labels_loss,
        settings={"label_smoothing": 0.2},
    ),
    "pairs on bert": Case(tiny_models.save_bert, Classification(LABELS), tiny_models.pair_rows(), pair_loss),
    "class weights": Case(
        tiny_models.save_bert,
        Classification(LABELS),
        tiny_models.uneven_rows(),
        weighted_loss,
        settings={"class_weights": "balanced"},
    ),
    "pairs on t5": Case(tiny_models.save_t5, Classification(LABELS), tiny_models.pair_rows(), pair_loss),
}
EVERY = pytest.mark.parametrize("name", CASES)


@EVERY
def test_losses_and_adapter_equal_the_textbook_loop(name: str, tmp_path: Path) -> None:
    case, settings = CASES[name], {**SETTINGS, "epochs": 4, **CASES[name].settings}
    unit = dataclasses.replace(tiny_models.unit(**settings), scratch=str(tmp_path))
    pack = case.pack(case.base(tmp_path), slots=3)
    start = fresh(pack, unit)
    losses, epochs = train(pack, unit, company(4, **case.settings))
    textbook = case.pack(case.base(tmp_path, streams=False), slots=1)
    expected, adapter = plain(textbook, unit, start, case.loss, case.kind)
    assert losses == pytest.approx(expected, rel=case.rel)
    assert losses[-1] != losses[0]
    # the bias of a softmax over tokens has no gradient but rounding
    same_weights(epochs, {name: value for name, value in adapter.items() if value.abs().max() > 1e-9}, 10 * case.rel)


def units(**settings: Any) -> list[TrainUnit]:
    """Of many sizes, with everything random that a unit may draw."""
    return [
        tiny_models.unit(
            16,
            number=n,
            seed=n,
            lora_rank=1 + 3 * n,
            batch_size=3 + 4 * n,
            epochs=1 + n % 2,
            lora_dropout=0.2 * (n % 2),
            dropout=0.1 * (n % 3),
            token_dropout=0.2 * (n % 2),
            **{"label_smoothing": 0.1 * n, "learning_rate": 1e-2, **settings},
        )
        for n in range(4)  # and three slots: one comes into a slot that another left
    ]


@EVERY
def test_units_have_the_same_numbers_alone_and_in_company(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    base = case.base(tmp_path)
    rows = Rows(case.task, case.rows, base.tokenizer)
    chosen = units(**case.settings)
    expected = alone(base, rows, chosen)
    for most_tokens, most_rows in ((20, 3), (100000, 4096)):
        together = Pack(base, rows, 3)
        together.capacity.most_tokens, together.capacity.most_rows = most_tokens, most_rows
        equal(train_all(together, chosen), expected)


@pytest.mark.parametrize("beside", [{}, {"mixup_alpha": 0.5}, {"r_drop_alpha": 1.0, "lora_dropout": 0.2}])
def test_what_rows_weigh_does_not_depend_on_what_fits(beside: dict[str, Any], tmp_path: Path) -> None:
    case = CASES["class weights"]
    base = case.base(tmp_path)
    chosen = [tiny_models.unit(number=n, seed=n, batch_size=5 + n, **case.settings, **beside) for n in range(3)]
    tight = case.pack(base, 3)
    tight.capacity.most_tokens, tight.capacity.most_rows = 30, 2
    plain_units = [
        dataclasses.replace(u, settings=dataclasses.replace(u.settings, class_weights="none")) for u in chosen
    ]
    found = train_all(tight, chosen)
    equal(found, alone(base, tight.rows, chosen))
    assert found != train_all(case.pack(base, 3), plain_units)


READS = {"tags on bert": "targets", "tags on gpt2": "targets", "answers on bert": "all", "regression": "first"}


@pytest.mark.parametrize("name", READS)
def test_the_tokens_that_a_head_reads_are_found_and_the_numbers_stay(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    base = case.base(tmp_path)
    if name.startswith("tags"):  # few enough to be picked
        rows = [{**row, "words": row["words"][::4], "tags": row["tags"][::4]} for row in case.rows]
        case = dataclasses.replace(case, rows=rows)
    assert base.reads == READS[name]
    chosen = [tiny_models.unit(16, number=n, seed=n, lora_rank=n, lora_dropout=0.2) for n in (1, 2, 3)]
    everything = dataclasses.replace(base, reads="all")
    equal(train_all(case.pack(base, 2), chosen), train_all(case.pack(everything, 2), chosen))
