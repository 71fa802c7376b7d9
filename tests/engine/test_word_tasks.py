"""Tags of words and stretches of a text: the right tokens are asked, and answers are counted as their inventors do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator import objective
from tests import tiny_models
from trial_worker.engine import Base, UnusableModel
from trial_worker.tasks import QuestionAnswering, Rows, TokenClassification
from trial_worker.tasks.entities import entities
from trial_worker.tasks.interface import Answers, Item, collate
from trial_worker.tasks.question_answering import Gold, best, normal, overlap

WORDS, BYTES = tiny_models.word_tokenizer(), tiny_models.byte_tokenizer()
CPU = torch.device("cpu")
TAGS = TokenClassification(("B-food", "I-food", "O"))
ROW = {
    "text": "eaten raw, bread-flour",
    "words": [[0, 5], [6, 9], [9, 10], [11, 22]],
    "tags": ["O", "O", "O", "B-food"],
}


# --- tags ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", [WORDS, BYTES], ids=["words", "bytes"])
def test_the_first_token_of_each_word_says_its_tag(tokenizer: Any) -> None:
    (item,) = TAGS.encode([ROW], tokenizer)
    assert item.targets.tolist() == [2, 2, 2, 0]
    assert item.positions is not None
    offsets = tokenizer(ROW["text"], return_offsets_mapping=True)["offset_mapping"]
    covered = [ROW["text"][slice(*offsets[place])].strip() for place in item.positions.tolist()]
    assert all(
        word and text.startswith(word) for word, text in zip(covered, ["eaten", "raw", ",", "bread"], strict=True)
    )


def test_words_that_are_cut_off_are_not_asked() -> None:
    item = Rows(TAGS, [ROW], WORDS).items(4)[0]
    assert (item.length, item.weight, int(item.ids[-1])) == (4, 2, WORDS.sep_token_id)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({**ROW, "tags": ["O"]}, "text, words and as many tags"),
        ({**ROW, "words": [], "tags": []}, "text, words and"),
        ({**ROW, "tags": ["O", "O", "O", "B-tool"]}, "'B-tool' is not one of the study's"),
    ],
)
def test_a_row_that_cannot_be_tagged_is_refused_by_number(row: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"row 1: .*{words}"):
        TAGS.encode([ROW, row], WORDS)


def test_entities_are_those_of_seqeval() -> None:
    """The rows and their entities as seqeval 1.2.2 has them (get_entities, default mode)."""
    rows = {
        "B-a I-a O B-b": {("a", 0, 2), ("b", 3, 4)},
        "I-a I-a B-a I-b O": {("a", 0, 2), ("a", 2, 3), ("b", 3, 4)},
        "O I-a O B-b B-b": {("a", 1, 2), ("b", 3, 4), ("b", 4, 5)},
        "O O": set(),
        "": set(),
    }
    for tags, expected in rows.items():
        assert set(entities(tags.split())) == expected, tags


def test_an_entity_is_right_where_type_and_both_ends_are() -> None:
    items = TAGS.encode([{**ROW, "tags": ["B-food", "I-food", "O", "B-food"]}, ROW], WORDS)
    batch = collate(items, 0, CPU)
    logits = torch.nn.functional.one_hot(torch.tensor([0, 2, 2, 0, 2, 1, 1, 0]), 3) * 5.0
    found = TAGS.score(TAGS.answer(logits, batch), batch)
    tallies = TAGS.tallies(items, found)
    # first row: one of two found, a shorter one for the other; second: one of one, and one too many
    assert tallies["entities"] == [2, 2, 1]
    values = objective.metrics(tallies)
    assert values["entity_f1"] == pytest.approx(4 / 7)
    assert values["accuracy"] == 5 / 8
    assert "perplexity" not in values
    parts = [TAGS.tallies([item], part) for item, part in zip(items, found_each(TAGS, items, logits), strict=True)]
    assert objective.metrics(objective.add(parts)) == pytest.approx(values)


def found_each(task: TokenClassification, items: list[Item], logits: torch.Tensor) -> list[Any]:
    scores, at = [], 0
    for item in items:
        batch = collate([item], 0, CPU)
        scores.append(task.score(task.answer(logits[at : at + item.weight], batch), batch))
        at += item.weight
    return scores


def test_tags_of_no_scheme_make_no_entities() -> None:
    task = TokenClassification(("noun", "verb"))
    row = {**ROW, "tags": ["verb", "noun", "noun", "noun"]}
    items = task.encode([row], WORDS)
    batch = collate(items, 0, CPU)
    assert task.tallies(items, task.score(task.answer(torch.eye(2)[[1, 0, 0, 0]], batch), batch))["entities"] == [0] * 3


# --- answers ------------------------------------------------------------------------------------------------

QUESTION = {"context": "A sweet red fruit, eaten raw.", "question": "which fruit", "answer": "sweet red ", "start": 2}


@pytest.mark.parametrize("tokenizer", [WORDS, BYTES], ids=["words", "bytes"])
def test_targets_are_the_answers_first_and_last_token(tokenizer: Any) -> None:
    (item,) = QuestionAnswering().encode([QUESTION], tokenizer)
    start, end = item.targets.tolist()
    assert tokenizer.decode(item.ids[start : end + 1]).strip() == "sweet red"
    logits = np.full((2, item.length), -5.0)
    logits[0, start] = logits[1, end] = 5.0
    assert best(item.gold, logits).strip() == "sweet red"


def test_a_row_whose_answer_is_cut_off_has_no_loss_and_is_wrong() -> None:
    task = QuestionAnswering()
    rows = [{**QUESTION, "answer": "raw", "start": 25}, QUESTION]
    cut, whole = Rows(task, rows, WORDS).items(8)
    assert (cut.weight, whole.weight) == (0, 2)
    batch = collate([cut, whole], WORDS.pad_token_id, CPU)
    logits = torch.zeros(2, 2, 8)
    logits[1, 0, whole.targets[0]] = logits[1, 1, whole.targets[1]] = 9.0
    tallies = task.tallies([cut, whole], task.score(task.answer(logits, batch), batch))
    assert (tallies["items"], tallies["rows"], tallies["exact"], tallies["correct"]) == (2, 2, 1, 2)
    values = objective.metrics(tallies)
    assert (values["exact_match"], values["answer_f1"]) == (0.5, 0.5)
    assert values["validation_loss"] == pytest.approx(np.log(1 + 7 * np.exp(-9.0)), rel=1e-3)


def test_padding_is_no_answer_and_takes_no_share_of_smoothing() -> None:
    task = QuestionAnswering()
    (item,) = task.encode([QUESTION], WORDS)
    batch = collate([item], 0, CPU)
    batch = type(batch)(batch.ids, None, batch.targets, None, batch.owners, smoothing=torch.full((2,), 0.2))
    logits = torch.randn(1, 2, item.length, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(logits, (0, 5), value=-torch.inf)
    one, other = (task.answer(each, batch) for each in (logits, padded))
    assert torch.equal(one.nats, other.nats)
    torch.testing.assert_close(one.smoothed, other.smoothed)
    expected = torch.nn.functional.cross_entropy(logits[0], item.targets, label_smoothing=0.2, reduction="none")
    assert one.smoothed is not None
    torch.testing.assert_close(one.smoothed.float(), expected)


def test_an_answer_ends_where_it_begins_or_later_and_within_the_context() -> None:
    gold = Gold("", "one two three", 3, ((0, 3), (4, 7), (8, 13)))
    logits = np.zeros((2, 8))
    logits[0, 5], logits[1, 3], logits[1, 4] = 4.0, 3.0, 1.0
    logits[:, 0] = logits[:, 7] = 99.0  # a special token, and padding
    assert best(gold, logits) == "three"
    assert best(Gold("x", "", 0, ()), logits) == ""


def test_texts_are_compared_as_squad_does() -> None:
    assert normal("The  Cat, a dog!") == "cat dog"
    assert overlap("the red cat", "a cat") == pytest.approx(2 / 3)
    assert (overlap("dog", "cat"), overlap("", "cat"), overlap("Cat.", "the cat")) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({**QUESTION, "start": 3}, "does not stand at character 3"),
        ({**QUESTION, "question": None}, "must be strings"),
    ],
)
def test_a_row_that_cannot_be_asked_is_refused_by_number(row: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"row 0: .*{words}"):
        QuestionAnswering().encode([row], WORDS)


def test_an_encoder_decoder_answers_no_questions(tmp_path: Path) -> None:
    with pytest.raises(UnusableModel, match="T5ForQuestionAnswering is an encoder-decoder, whose decoder"):
        Base.load(tiny_models.pin(tiny_models.save_t5(tmp_path)), "spans", 2)


def test_scores_need_logits() -> None:
    with pytest.raises(AssertionError):
        TAGS.score(Answers(torch.zeros(1), torch.zeros(1)), collate(TAGS.encode([ROW], WORDS), 0, CPU))
