"""Rows become the right tokens and targets; tallies add up."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

from orchestrator import objective
from tests import tiny_models
from trial_worker.engine.decoder import target_grid
from trial_worker.tasks import (
    CausalLm,
    Classification,
    MultiLabel,
    Regression,
    Rows,
    Seq2Seq,
    read_snapshot,
    task_named,
)
from trial_worker.tasks.interface import Answers, Item, Scores, answers, collate, score

BYTES = tiny_models.byte_tokenizer()
LLAMA = tiny_models.byte_tokenizer(bos=True)
LLAMA.chat_template = tiny_models.CHAT_TEMPLATE
WORDS = tiny_models.word_tokenizer()
CPU = torch.device("cpu")


def encode(row: dict[str, Any], tokenizer: Any = BYTES) -> Item:
    return CausalLm().encode([row], tokenizer)[0]


def learnt(item: Item, tokenizer: Any = BYTES) -> str:
    return str(tokenizer.decode(item.targets))


# --- what a language model learns --------------------------------------------------------------------------


def test_text_is_supervised_from_its_second_token_to_its_end() -> None:
    item = encode({"text": "bread baked from flour"})
    assert torch.equal(item.targets, item.ids[1:])
    assert item.ids[-1] == BYTES.eos_token_id
    assert item.size == len("bread baked from flour") - len(BYTES.decode(item.ids[:1]))


def test_with_a_first_special_token_the_whole_text_is_supervised() -> None:
    item = encode({"text": "bread"}, LLAMA)
    assert item.ids[0] == LLAMA.bos_token_id
    assert learnt(item, LLAMA) == "bread</s>"
    assert item.size == 5


def test_only_the_completion_and_the_end_are_supervised() -> None:
    item = encode({"prompt": "fruit:", "completion": " sweet and red"})
    assert learnt(item) == " sweet and red</s>"
    assert item.size == len(" sweet and red")


def test_bytes_are_utf8_bytes_of_the_completion() -> None:
    item = encode({"prompt": "naïve → ", "completion": "süß ☕"})
    assert item.size == len("süß ☕".encode())


@pytest.mark.parametrize("cut", [4, 6, 8, 10])
def test_a_cut_row_counts_only_what_it_keeps(cut: int) -> None:
    row = {"prompt": "fruit:", "completion": " a sweet red fruit eaten raw"}
    whole = encode(row)
    item = Rows(CausalLm(), [row], BYTES).items(cut)[0]
    assert item.length == cut
    assert torch.equal(item.targets, whole.targets[: item.weight])
    assert item.size == len(BYTES.decode(item.targets).encode())


def test_only_assistant_turns_are_supervised_with_their_end_but_no_header() -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "a fruit?"},
        {"role": "assistant", "content": "apple"},
        {"role": "user", "content": "a tool?"},
        {"role": "assistant", "content": "a saw "},
    ]
    item = encode({"messages": messages}, LLAMA)
    assert learnt(item, LLAMA) == "apple<|end|>a saw <|end|>"
    assert item.size == len("apple") + len("a saw")
    assert item.ids[0] != LLAMA.bos_token_id  # the template writes its own special tokens, or none


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"label": "x"}, "needs text"),
        ({"messages": [{"role": "assistant", "content": "hello"}]}, "begin with another role"),
        ({"messages": []}, "begin with another role"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant"}]}, "content must be"),
    ],
)
def test_rows_of_no_known_form_are_refused_by_number(row: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=rf"row 1: .*{words}"):
        CausalLm().encode([{"text": "fine"}, row], LLAMA)


def test_messages_without_a_chat_template_are_refused() -> None:
    with pytest.raises(ValueError, match="chat template"):
        encode({"messages": [{"role": "user", "content": "hi"}]}, BYTES)


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    tokenizer = tiny_models.byte_tokenizer()
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
    with pytest.raises(ValueError, match="differently from its beginnings"):
        encode({"messages": turns}, tokenizer)


# --- classification ----------------------------------------------------------------------------------------


def test_a_cut_text_keeps_its_closing_token() -> None:
    row = {"text": " ".join(tiny_models.CORPUS), "label": "food"}
    item = Rows(Classification(tiny_models.LABELS), [row], WORDS).items(8)[0]
    assert item.length == 8
    assert item.ids[0] == WORDS.cls_token_id
    assert item.ids[-1] == WORDS.sep_token_id
    assert item.targets.tolist() == [1]


@pytest.mark.parametrize(
    "row",
    [
        {"text": "a", "label": "unheard of"},
        {"text": None, "label": "food"},
        {"text": "a", "text_pair": 3, "label": "food"},
        {"label": "food"},
    ],
)
def test_a_row_that_cannot_be_classified_is_refused_by_number(row: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="row 0"):
        Classification(tiny_models.LABELS).encode([row], WORDS)


def test_a_pair_is_one_row_whose_tokens_know_their_text() -> None:
    task = Classification(tiny_models.LABELS)
    row = {"text": "bread baked", "text_pair": "a sweet red fruit", "label": "food"}
    (item,) = task.encode([row], WORDS)
    assert WORDS.decode(item.ids) == "[CLS] bread baked [SEP] a sweet red fruit [SEP]"
    assert item.segments is not None
    assert item.segments.tolist() == [0] * 4 + [1] * 5
    cut = Rows(task, [row], WORDS).items(7)[0]
    assert (cut.length, cut.ids.tolist().count(WORDS.sep_token_id)) == (7, 2)
    assert cut.segments is not None
    assert cut.segments.tolist() == [0] * 4 + [1] * 3
    (single,) = task.encode([{"text": "bread", "label": "food"}], WORDS)
    assert single.segments is None


def test_classification_tallies_add_up_over_folds() -> None:
    task = Classification(tiny_models.LABELS)
    items = task.encode(tiny_models.classification_rows(30), WORDS)
    logits = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
    whole = task.tallies(items, _scores(items, logits))
    parts = [task.tallies(items[a:b], _scores(items[a:b], logits[a:b])) for a, b in ((0, 7), (7, 30))]
    for name in whole:
        total = sum(np.array(part[name], dtype=float) for part in parts)
        np.testing.assert_allclose(total, whole[name], rtol=1e-12)
    assert sum(whole["tp"]) == whole["correct"]
    assert sum(whole["fn"]) == sum(whole["fp"]) == whole["items"] - whole["correct"]
    assert sum(n for n, _, _ in whole["bins"]) == 30


def test_a_certain_answer_falls_into_the_last_bin() -> None:
    task = Classification(("a", "b"))
    item = Item(ids=torch.tensor([1]), targets=torch.tensor([0]))
    tallies = task.tallies([item], _scores([item], np.array([[1000.0, 0.0]], dtype=np.float32)))
    assert tallies["bins"][-1] == [1, 1.0, 1]


# --- several labels, and numbers ----------------------------------------------------------------------------


def test_tallies_of_several_labels_are_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    task = MultiLabel(tiny_models.LABELS)
    items = task.encode(tiny_models.labels_rows(30), WORDS)
    batch = collate(items, 0, CPU)
    logits = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    found = score(task.answer(logits, batch), batch)
    values = objective.metrics(task.tallies(items, found))
    truth, said = batch.targets.numpy() > 0, logits.numpy() > 0
    assert values["accuracy"] == pytest.approx(metrics.accuracy_score(truth, said))
    assert values["f1"] == pytest.approx(metrics.f1_score(truth, said, average="macro"))
    assert values["weighted_f1"] == pytest.approx(metrics.f1_score(truth, said, average="weighted"))
    assert values["micro_f1"] == pytest.approx(metrics.f1_score(truth, said, average="micro"))
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, batch.targets)
    assert values["validation_loss"] == pytest.approx(3 * float(loss), rel=1e-6)
    assert found.counts.tolist() == [1] * 30


def test_a_number_is_learnt_in_deviations_of_the_training_rows_and_scored_in_its_own_units() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    task, rows = Regression(), tiny_models.number_rows(30)
    numbers = np.array([row["number"] for row in rows])
    train, validation = list(range(20)), list(range(20, 30))
    items = task.fitted(task.encode(rows, WORDS), train)
    seen = np.array([float(items[row].targets) for row in train])
    assert (seen.mean(), seen.std()) == pytest.approx((0, 1), abs=1e-12)
    said = np.random.default_rng(0).normal(size=(10, 1)).astype(np.float32)
    mine = [items[row] for row in validation]
    batch = collate(mine, 0, CPU)
    found = score(task.answer(torch.from_numpy(said), batch), batch)
    tallies = [task.tallies(mine[a:b], part(found, a, b)) for a, b in ((0, 4), (4, 10))]
    values = objective.metrics(objective.add(tallies))
    answer = said[:, 0] * numbers[train].std() + numbers[train].mean()
    assert values["mse"] == pytest.approx(metrics.mean_squared_error(numbers[20:], answer))
    assert values["mae"] == pytest.approx(metrics.mean_absolute_error(numbers[20:], answer))
    assert values["r2"] == pytest.approx(metrics.r2_score(numbers[20:], answer))
    costs = -scipy.stats.norm.logpdf((numbers[20:] - answer) / numbers[train].std())
    assert values["validation_loss"] == pytest.approx(costs.mean(), rel=1e-6)


def test_equal_numbers_are_no_division_by_zero() -> None:
    items = Regression().encode([{"text": "a", "number": 4.0}] * 3, WORDS)
    assert [float(item.targets) for item in Regression().fitted(items, [0, 1])] == [0.0] * 3


@pytest.mark.parametrize("number", [None, "4", True, math.nan])
def test_a_row_without_a_number_is_refused(number: Any) -> None:
    with pytest.raises(ValueError, match="row 0: number must be a finite number"):
        Regression().encode([{"text": "a", "number": number}], WORDS)


def test_a_row_with_a_label_of_another_study_is_refused() -> None:
    with pytest.raises(ValueError, match="row 0: labels"):
        MultiLabel(("a", "b")).encode([{"text": "a", "labels": ["a", "c"]}], WORDS)


def part(scores: Scores, start: int, end: int) -> Scores:
    own = slice(start, end)
    assert scores.logits is not None
    return Scores(scores.nats[own], scores.counts[own], scores.correct[own], scores.logits[own])


# --- a source and a target ----------------------------------------------------------------------------------

T5 = tiny_models.byte_tokenizer(eos=True, pad_is_eos=False)


@pytest.mark.parametrize("tokenizer", [T5, BYTES], ids=["closes by itself", "is closed"])
def test_the_whole_target_and_its_end_are_supervised(tokenizer: Any) -> None:
    (item,) = Seq2Seq().encode([{"source": "bread", "target": "süß ☕"}], tokenizer)
    assert tokenizer.decode(item.targets) == "süß ☕</s>"
    assert item.size == len("süß ☕".encode())
    assert item.ends is not None
    assert item.ends.tolist() == sorted(item.ends.tolist())
    assert (item.tokens, item.longest) == (item.length + item.weight, max(item.length, item.weight))


def test_source_and_target_are_cut_each_for_itself() -> None:
    row = {"source": "a sweet red fruit eaten raw", "target": " ".join(tiny_models.CORPUS)}
    whole = Seq2Seq().encode([row], T5)[0]
    item = Rows(Seq2Seq(), [row], T5).items(6)[0]
    assert (item.length, item.weight) == (6, 6)
    assert int(item.ids[-1]) == T5.eos_token_id
    assert torch.equal(item.targets, whole.targets[:6])
    assert item.size == len(T5.decode(item.targets).encode())
    short = {"source": "a", "target": row["target"]}
    assert Rows(Seq2Seq(), [short], T5).items(20)[0].weight == 20
    assert Rows(Seq2Seq(), [short], T5).longest == whole.weight


def test_targets_stand_side_by_side_in_the_decoders_grid() -> None:
    items = Seq2Seq().encode([{"source": "a", "target": "bread"}, {"source": "a", "target": "a feeling"}], T5)
    batch = collate(items, T5.pad_token_id, CPU)
    labels, places = target_grid(batch)
    assert torch.equal(labels.flatten()[places], batch.targets)
    assert (labels == -100).sum() == labels.numel() - len(batch.targets)
    assert [row[row != -100].tolist() for row in labels] == [item.targets.tolist() for item in items]


@pytest.mark.parametrize("row", [{"source": "a"}, {"source": 3, "target": "a"}])
def test_a_row_without_source_or_target_is_refused(row: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"row 0: .* must be a string"):
        Seq2Seq().encode([row], T5)


# --- batches and scores ------------------------------------------------------------------------------------


def test_padding_is_masked_though_the_pad_token_is_also_learnt() -> None:
    items = CausalLm().encode([{"text": "bread"}, {"text": "a feeling of deep joy"}], BYTES)
    batch = collate(items, BYTES.eos_token_id, CPU)
    assert batch.mask is not None
    assert batch.mask.sum(1).tolist() == [item.length for item in items]
    assert (batch.targets == BYTES.eos_token_id).sum() == 2  # each row's own end, and no padding
    assert batch.positions is not None
    assert torch.equal(batch.ids.flatten()[batch.positions + 1], batch.targets)


def test_scores_sum_nats_by_row() -> None:
    items = CausalLm().encode([{"text": "bread"}, {"text": "a feeling"}], BYTES)
    batch = collate(items, 0, CPU)
    said = answers(torch.zeros(len(batch.targets), 400), batch)
    found = score(Answers(said.nats, said.hits), batch)
    assert found.counts.tolist() == [item.weight for item in items]
    np.testing.assert_allclose(found.nats, found.counts * math.log(400), rtol=1e-6)
    assert found.logits is None


def test_a_broken_snapshot_line_is_named(tmp_path: Any) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n[1]\n')
    with pytest.raises(ValueError, match="line 2"):
        read_snapshot(path)


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(ValueError, match="summarise"):
        task_named("summarise", ())


def _scores(items: list[Item], logits: np.ndarray) -> Scores:
    batch = collate(items, 0, CPU)
    return score(answers(torch.from_numpy(logits), batch), batch)
