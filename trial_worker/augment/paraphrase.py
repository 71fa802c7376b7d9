"""The same said in other words."""

from __future__ import annotations

import random
import re
from functools import cache
from pathlib import Path

from trial_worker.augment.noise import each_word

_CORE = re.compile(r"^(\W*)(\w+)(\W*)$")


def with_synonyms(text: str, share: float, draws: random.Random) -> str:
    """This share of the words that have a synonym, replaced by one; English.

    The replacement of Wei and Zou 2019, arXiv 1901.11196, with a table in which a word has the synonyms of its usual
    sense only, see `make_synonyms`.
    """
    table = synonyms()

    def change(word: str) -> str:
        parts = _CORE.match(word)
        others = table.get(parts[2].lower()) if parts else None
        if parts is None or others is None or draws.random() >= share:
            return word
        other = draws.choice(others)
        return f"{parts[1]}{other.capitalize() if parts[2][0].isupper() else other}{parts[3]}"

    return each_word(text, change)


@cache
def synonyms() -> dict[str, tuple[str, ...]]:
    """Word -> words that may stand for it, sorted."""
    lines = Path(__file__).with_name("synonyms.tsv").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("\t") for line in lines)
    return {word: tuple(others.split(" ")) for word, others in pairs}
