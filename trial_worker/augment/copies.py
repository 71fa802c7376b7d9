"""Copies of training rows whose text is disturbed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from orchestrator.contract import Settings
from trial_worker.augment.made import Fold, Made
from trial_worker.augment.noise import noisy_characters, noisy_words
from trial_worker.augment.paraphrase import with_synonyms
from trial_worker.tasks.interface import Row


def wanted(settings: Settings) -> bool:
    """Whether a copy would be any different from its row."""
    return any((settings.synonyms, settings.word_noise, settings.char_noise))


def copies(fold: Fold) -> Iterator[Made]:
    """`augment_copies` of every row: words replaced, then lost and exchanged, then mistyped."""
    settings = fold.settings
    for number, row in fold.rows.items() if wanted(settings) else ():
        for copy in range(settings.augment_copies):

            def disturbed(text: str, number: int = number, copy: int = copy) -> str:
                text = with_synonyms(text, settings.synonyms, fold.draws("synonyms", number, copy))
                text = noisy_words(text, settings.word_noise, fold.draws("words", number, copy))
                return noisy_characters(text, settings.char_noise, fold.draws("characters", number, copy))

            yield Made(rewritten(row, disturbed), (number,), "noise")


def rewritten(row: Row, change: Callable[[str], str]) -> Row:
    """The row with what a model reads changed, and what it must answer as it was.

    Raises:
        ValueError: the row has no such text: all of it is learnt, or its answers are places in it.
    """
    for name in ("prompt", "source"):
        if name in row:
            return {**row, name: change(row[name])}
    if any(told in row for told in ("label", "labels", "number")):
        return {**row, "text": change(row["text"])}
    if "messages" in row:
        return {**row, "messages": [_turn(turn, change) for turn in row["messages"]]}
    raise ValueError("a row must have text beside what is learnt of it, which may change while the answer stays right")


def _turn(turn: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    return turn if turn["role"] == "assistant" else {**turn, "content": change(turn["content"])}
