"""Noise and synonyms are functions of their draws, and made rows come through one door."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.contract import Settings
from orchestrator.texts import fingerprint
from trial_worker.augment.copies import copies, rewritten
from trial_worker.augment.made import Fold, Leak, Made, admitted
from trial_worker.augment.noise import noisy_characters, noisy_words
from trial_worker.augment.paraphrase import synonyms, with_synonyms

TEXTS = st.text(st.sampled_from("abcé Ω1.,\n\t"), max_size=60)
SHARES = st.floats(0, 0.5)
CHANGES: tuple[Callable[[str, float, random.Random], str], ...] = (noisy_characters, noisy_words, with_synonyms)
ROWS = {3: {"text": "a large automobile", "label": "b"}, 5: {"text": "the odd physician", "label": "a"}}


@given(text=TEXTS, share=SHARES, seed=st.integers(0, 2**63), change=st.sampled_from(CHANGES))
def test_a_change_repeats_keeps_something_and_does_nothing_at_no_strength(
    text: str, share: float, seed: int, change: Callable[[str, float, random.Random], str]
) -> None:
    changed = change(text, share, random.Random(seed))
    assert change(text, share, random.Random(seed)) == changed
    assert change(text, 0.0, random.Random(seed)) == text
    assert bool(changed.strip()) == bool(text.strip())


@given(text=TEXTS, share=SHARES, seed=st.integers(0, 2**63))
def test_noise_invents_nothing(text: str, share: float, seed: int) -> None:
    said = noisy_characters(text, share, random.Random(seed))
    assert set(said) <= set(text)
    assert [each for each in said if not each.isalnum()] == [each for each in text if not each.isalnum()]
    words = noisy_words(text, share, random.Random(seed))
    assert not Counter(words.split()) - Counter(text.split())
    assert len(words) - len(words.rstrip()) == len(text) - len(text.rstrip()) or not text.strip()


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_so_many_are_hit(share: float) -> None:
    text = "abcdefghij " * 2000
    typed = noisy_characters(text, share, random.Random(1))
    # a swap touches two and counts for one; a quarter is lost and a quarter doubled
    assert abs(len(typed) - len(text)) < 400
    words = noisy_words(" ".join(map(str, range(4000))), share, random.Random(1)).split()
    assert len(words) == pytest.approx(4000 * (1 - share / 2), abs=120)


def test_synonyms_keep_case_and_marks_around_a_word() -> None:
    assert with_synonyms("(Physician), the zxq", 1.0, random.Random(0)).startswith("(Doc")
    table = synonyms()
    assert len(table) > 3000
    assert all(word in table[other] for word, others in table.items() for other in others)
    assert all(word not in others for word, others in table.items())


def turns(said: str) -> list[dict[str, str]]:
    return [{"role": role, "content": c} for role, c in zip(("system", "user", "assistant"), said, strict=True)]


def fold(**settings: Any) -> Fold:
    return Fold(7, Settings(**settings), ROWS)


def test_copies_are_a_function_of_seed_row_and_copy() -> None:
    both = list(copies(fold(char_noise=0.2, word_noise=0.2, augment_copies=2)))
    assert [one.sources for one in both] == [(3,), (3,), (5,), (5,)]
    assert [one.row["label"] for one in both] == ["b", "b", "a", "a"]
    assert len({one.row["text"] for one in both}) == 4
    assert list(copies(fold(char_noise=0.2, word_noise=0.2)))[1] == both[2]
    alone = Fold(7, fold(char_noise=0.2, word_noise=0.2).settings, {5: ROWS[5]})
    assert list(copies(alone)) == [both[2]]
    assert list(copies(Fold(8, alone.settings, alone.rows))) != [both[2]]


def test_without_noise_there_are_no_copies() -> None:
    assert list(copies(fold(augment_copies=8))) == []


@pytest.mark.parametrize(
    ("row", "changed"),
    [
        ({"text": "q", "label": "q"}, {"text": "Q", "label": "q"}),
        ({"text": "q", "labels": ["q"]}, {"text": "Q", "labels": ["q"]}),
        ({"text": "q", "number": 1.0}, {"text": "Q", "number": 1.0}),
        ({"source": "q", "target": "q"}, {"source": "Q", "target": "q"}),
        ({"prompt": "q", "completion": "a"}, {"prompt": "Q", "completion": "a"}),
        ({"messages": turns("qqq")}, {"messages": turns("QQq")}),
    ],
    ids=["class", "labels", "number", "target", "completion", "messages"],
)  # fmt: skip
def test_what_is_learnt_stays(row: dict[str, Any], changed: dict[str, Any]) -> None:
    before = str(row)
    assert rewritten(row, str.upper) == changed
    assert str(row) == before


@pytest.mark.parametrize(
    "row",
    [
        {"text": "q"},
        {"text": "q", "words": [[0, 1]], "tags": ["O"]},
        {"context": "q", "question": "q", "answer": "q", "start": 0},
    ],
    ids=["learnt whole", "places of words", "place of the answer"],
)
def test_a_text_whose_answer_would_no_longer_be_right_cannot_be_changed(row: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must have text beside what is learnt"):
        rewritten(row, str.upper)


@given(
    training=st.sets(st.integers(0, 9), min_size=1),
    made=st.lists(st.lists(st.integers(0, 9), max_size=3).map(tuple), max_size=6),
)
def test_only_descendants_of_training_rows_come_in(training: set[int], made: list[tuple[int, ...]]) -> None:
    rows = [Made({"text": f"{number}"}, sources, "test") for number, sources in enumerate(made)]
    clean = all(sources and set(sources) <= training for sources in made)
    if clean:
        assert list(admitted(rows, training, [])) == rows
    else:
        with pytest.raises(Leak, match="made by test descends from rows"):
            list(admitted(rows, training, []))


def test_what_says_the_same_as_a_validation_row_stays_out_whatever_its_label() -> None:
    rows = [Made({"text": text, "label": "a"}, (0,), "test") for text in ("Ａ  tool", "a fool")]
    assert list(admitted(rows, [0], [{"text": "a TOOL", "label": "b"}])) == rows[1:]
    assert fingerprint({"text": "x", "label": 1}) == fingerprint({"text": " X", "label": 2, "group": "g"})
