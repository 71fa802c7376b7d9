"""Noise on characters and words. Pure; of any language that writes blanks between words."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

_WORDS = re.compile(r"\S+")


def noisy_characters(text: str, share: float, draws: random.Random) -> str:
    """This share of the letters and digits mistyped: left out, doubled, swapped with the next, or another of the text.

    After Belinkov and Bisk 2018, arXiv 1711.02173. Blanks and punctuation stay.
    """
    letters = [letter for letter in text if letter.isalnum()]
    written: list[str] = []
    place = 0
    while place < len(text):
        letter, after = text[place], text[place + 1 : place + 2]
        place += 1
        if not letter.isalnum() or draws.random() >= share:
            written.append(letter)
            continue
        way = draws.randrange(4)
        if way == 0:
            continue
        if way == 1 and after.isalnum():
            written += [after, letter]
            place += 1
        else:
            written += [letter, letter] if way == 2 else [draws.choice(letters)]
    return kept("".join(written), text)


def noisy_words(text: str, share: float, draws: random.Random) -> str:
    """This share of the words left out, or exchanged with another; blanks at both ends stay.

    After Wei and Zou 2019, arXiv 1901.11196 (random deletion and random swap).
    """
    words = _WORDS.findall(text)
    hit = [place for place in range(len(words)) if draws.random() < share]
    gone = set()
    for place in hit:
        if draws.random() < 0.5:
            gone.add(place)
        else:
            other = draws.randrange(len(words))
            words[place], words[other] = words[other], words[place]
    if len(gone) == len(words):
        return text
    return _without(text, words, gone)


def each_word(text: str, change: Callable[[str], str]) -> str:
    """The text with every word changed, its blanks as they were."""
    return _WORDS.sub(lambda word: change(word.group()), text)


def kept(changed: str, text: str) -> str:
    """A text that lost everything keeps what it had."""
    return changed if changed.strip() else text


def _without(text: str, words: list[str], gone: set[int]) -> str:
    """The text with these words in its words' places; one that is gone takes the blanks before it along."""
    blanks = _WORDS.split(text)
    parts = [f"{blanks[place] if place else ''}{word}" for place, word in enumerate(words) if place not in gone]
    inner = "".join(parts)
    return blanks[0] + (inner if 0 not in gone else inner.lstrip()) + blanks[-1]
