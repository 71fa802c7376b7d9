"""What is written by models is filtered by rules that a reader can check; calibration is a minimum."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from trial_worker.augment import filters, prompts, self_training
from trial_worker.augment.made import Made
from trial_worker.tasks.likelihoods import log_softmax

TRAINING = {
    2: {"text": "a small sharp tool for cutting wood", "label": "tool"},
    3: {"text": "a feeling of deep and lasting joy", "label": "feeling"},
    5: {"text": "a heavy tool for driving nails", "label": "tool"},
    7: {"text": "a strong feeling of anger", "label": "feeling"},
    8: {"text": "bread baked from flour and water", "label": "food"},
    9: {"text": "a sweet red fruit eaten raw", "label": "food"},
}
WORDS = st.lists(st.text("abc", min_size=1, max_size=4), max_size=6)


def kept(*written: tuple[str, str, tuple[int, ...]], paraphrases: bool) -> list[str]:
    made = [Made({"text": text, "label": label}, sources, "test") for text, label, sources in written]
    return [one.row["text"] for one in filters.worthy(made, TRAINING, paraphrases=paraphrases)]


@pytest.mark.parametrize(
    ("text", "label", "good"),
    [
        ("a little sharp instrument to cut wood", "tool", True),
        ("A small  sharp tool for cutting WOOD", "tool", False),  # the source itself
        ("a small sharp tool for cutting woods", "tool", False),  # nearly
        ("kjhg qwop zxmn", "tool", False),  # nothing of it
        ("a sharp tool", "tool", True),
        ("tool", "tool", False),  # too short
        ("sharp tool " * 15, "tool", False),  # too long
        ("", "tool", False),
    ],
)
def test_a_paraphrase_says_the_same_in_other_words(text: str, label: str, good: bool) -> None:
    assert kept((text, label, (2,)), paraphrases=True) == [text] * good


def test_the_label_must_not_be_out_of_the_question() -> None:
    text = "a feeling of strong and lasting anger"
    assert kept((text, "tool", (2, 5)), paraphrases=False) == []
    assert kept((text, "feeling", (3, 7)), paraphrases=False) == [text]
    assert kept(("qwop zxmn asdf hjkl", "feeling", (3, 7)), paraphrases=False) == []  # no word that is known


def test_synthetic_rows_repeat_neither_training_rows_nor_one_another() -> None:
    fresh, again = "a long sharp tool of steel", "a LONG sharp tool of steel"
    near = "a sweet red fruit eaten raw too"  # of a row that is none of its sources
    assert kept((fresh, "tool", (2, 5)), (again, "tool", (2,)), (near, "food", (8,)), paraphrases=False) == [fresh]


def test_rows_without_labels_are_not_asked_for_any() -> None:
    rows = {1: {"prompt": "say it in one word", "completion": "x"}}
    made = [Made({"prompt": "use a single word to say it", "completion": "x"}, (1,), "test")]
    assert list(filters.worthy(made, rows, paraphrases=True)) == made


@given(one=WORDS, other=WORDS)
def test_alikeness_is_symmetric_and_one_for_equals(one: list[str], other: list[str]) -> None:
    assert filters.alikeness(one, other) == filters.alikeness(other, one)
    assert 0 <= filters.alikeness(one, other) <= 1
    assert filters.alikeness(one, list(reversed(one))) == 1


# --- what is asked ------------------------------------------------------------------------------------------


def test_what_is_asked_is_a_function_of_the_fold_and_shared_by_trials() -> None:
    asked = list(prompts.synthetic("$label?\n$examples\n", TRAINING, 2))
    assert [label for label, _ in asked] == ["feeling"] * 2 + ["food"] * 2 + ["tool"] * 2
    assert {one.sources for label, one in asked if label == "tool"} <= {(2, 5), (5, 2)}
    assert len({one.seed for _, one in asked}) == 6
    assert asked == list(prompts.synthetic("$label?\n$examples\n", dict(reversed(TRAINING.items())), 2))
    assert asked[-1][1].prompt.startswith("tool?\ntool: a ")
    one, two = (prompts.paraphrase("Say anew: $text", "x $y", 4, copy) for copy in range(2))
    assert (one.prompt, one.sources, one.seed != two.seed) == ("Say anew: x $y", (4,), True)


@pytest.mark.parametrize(
    ("written", "said"), [(' "a b"\nmore', "a b"), ("", ""), (" \n ", ""), ("\n\nfirst\n", "first")]
)
def test_what_a_model_goes_on_with_is_cut_off(written: str, said: str) -> None:
    assert prompts.first_line(written) == said


# --- self-training ------------------------------------------------------------------------------------------

LOGITS = arrays.arrays(np.float32, (12, 3), elements=st.floats(-20, 20, width=32))
CLASSES = arrays.arrays(np.int64, 12, elements=st.integers(0, 2))


@given(logits=LOGITS, classes=CLASSES)
def test_the_temperature_is_where_the_loss_is_least(logits: np.ndarray, classes: np.ndarray) -> None:
    def nats(t: float) -> float:
        return float(-log_softmax(logits.astype(float) / t)[np.arange(12), classes].mean())

    best = self_training.temperature(logits, classes)
    assert 1 / 20 <= best <= 20
    assert all(nats(best) <= nats(t) + 1e-6 for t in np.geomspace(1 / 20, 20, 80))


def test_a_model_that_is_too_sure_is_believed_less() -> None:
    draws = np.random.default_rng(0)
    truth = draws.integers(0, 3, 3000)
    honest = np.full((3000, 3), np.log(0.2))
    honest[np.arange(3000), np.where(draws.random(3000) < 0.6, truth, (truth + draws.integers(1, 3, 3000)) % 3)] = (
        np.log(0.6)
    )
    assert self_training.temperature(4 * honest, truth) == pytest.approx(4, rel=0.1)
    sure = self_training.confidences([4 * honest], 4.0)
    assert sure.max(-1) == pytest.approx(0.6)


@given(rows=st.integers(3, 40), seed=st.integers(0, 2**40), texts=st.integers(3, 40))
def test_inner_parts_divide_the_fold_and_keep_equal_texts_together(rows: int, seed: int, texts: int) -> None:
    fold = {7 * i: {"text": f"t{i % texts}", "label": "ab"[i % texts % 2]} for i in range(rows)}
    parts = self_training.inner_parts(fold, seed)
    assert sorted(number for part in parts for number in part) == sorted(fold)
    assert all(parts)
    said = [{fold[number]["text"] for number in part} for part in parts]
    assert sum(map(len, said)) == len(set().union(*said))
    assert self_training.inner_parts(dict(reversed(fold.items())), seed) == parts


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="needs 3 different training rows at least, got 2"):
        self_training.inner_parts({1: {"text": "a", "label": "a"}, 2: {"text": "b", "label": "a"}}, 0)


@pytest.mark.parametrize(("threshold", "count"), [(0.0, 3), (0.7, 2), (0.9, 1), (1.0, 0)])
def test_only_the_sure_ones_are_taken(threshold: float, count: int) -> None:
    pool: list[dict[str, Any]] = [{"text": str(i)} for i in range(3)]
    sure = np.array([[0.95, 0.05], [0.3, 0.7], [0.5, 0.5]])
    made = list(self_training.labelled(pool, sure, ("x", "y"), threshold, (4, 6)))
    assert len(made) == count
    assert all(one.sources == (4, 6) for one in made)
    assert [one.row["label"] for one in made][:2] == ["x", "y"][: min(count, 2)]
