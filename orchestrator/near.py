"""Texts that are nearly equal (pure, deterministic, standard library only).

Two texts are nearly equal where the Jaccard index of their sets of words is at least 0.8: of ten words one may be
another. Words that nearly all texts have count for nothing, so that a prompt's fixed wording makes no rows alike.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

ALIKE = 0.8  # Jaccard index
EVERYWHERE = 0.9  # share of the texts; what more than these have is their form, not what they say
FEW = 20  # texts, of which nothing is taken for their form
# Of scripts that put no blank between words each character stands for itself.
WORD = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]|\w+|[^\w\s]"
)
COMPARED = 500  # texts that are compared each with each; of more only those that share a band
BANDS, WIDTH = 24, 5  # of hashes: a pair of Jaccard index 0.8 shares no band with probability 0.0001, of 0.9 with 5e-10
TRIED = 50  # texts that one text is compared with in one band, at most

FIELD = 17  # bits of one hash: 16, and one above them that is 0
_BORROW = sum(1 << (FIELD * place + FIELD - 1) for place in range(BANDS * WIDTH))  # the bit above each
_BAND = (1 << (FIELD * WIDTH)) - 1

Words = frozenset[str]


@dataclass(frozen=True)
class Link:
    """Two texts that are nearly equal, by their numbers; `row` is the later one."""

    row: int
    like: int
    alike: float  # Jaccard index


def links(texts: Sequence[str]) -> list[Link]:
    """Pairs of nearly equal texts, for each set of such texts so many that they connect it, in the texts' order.

    Texts are compared as they are: fold case and width before. Up to `COMPARED` texts none is missed; of more,
    candidates come from MinHash (A. Broder, "On the resemblance and containment of documents", SEQUENCES 1997) with
    fixed hashes, and each is compared.
    """
    sets = bags(texts)
    parent = list(range(len(sets)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    found = []
    for row, like in _candidates(sets):
        if root(row) != root(like) and (alike := jaccard(sets[row], sets[like])) >= ALIKE:
            parent[root(row)] = root(like)
            found.append(Link(row, like, alike))
    return sorted(found, key=lambda link: (link.row, link.like))


def bags(texts: Sequence[str]) -> list[Words]:
    """Each text's words, without those that are everywhere; empty for a text that has no others."""
    sets = [frozenset(WORD.findall(text)) for text in texts]
    if len(sets) < FEW:
        return sets
    counts = Counter(chain.from_iterable(sets))
    form = {word for word, count in counts.items() if count > EVERYWHERE * len(sets)}
    return [words - form for words in sets] if form else sets


def jaccard(one: Words, other: Words) -> float:
    """Shared elements among all elements; 0 where there are none."""
    if not one or not other or min(len(one), len(other)) < ALIKE * max(len(one), len(other)):
        return 0.0  # or less than 0.8, which is the same to everybody here
    both = len(one & other)
    return both / (len(one) + len(other) - both)


def _candidates(sets: Sequence[Words]) -> Iterator[tuple[int, int]]:
    """(row, an earlier row) worth comparing."""
    if len(sets) <= COMPARED:
        yield from ((row, like) for row in range(len(sets)) for like in range(row))
        return
    hashes: dict[str, int] = {}
    buckets: list[dict[int, list[int]]] = [{} for _ in range(BANDS)]
    for row, words in enumerate(sets):
        if not words:
            continue
        least = _least(words, hashes)
        for band, bucket in enumerate(buckets):
            same = bucket.setdefault((least >> (FIELD * WIDTH * band)) & _BAND, [])
            yield from ((row, like) for like in same[:TRIED])
            same.append(row)


def _least(words: Words, hashes: dict[str, int]) -> int:
    """The smallest of the words' hashes, for each of `BANDS * WIDTH` hash functions, side by side in one number.

    All fields of two numbers are compared by one subtraction, which is many times as fast as a loop. hashes: those
    known by now.
    """
    least = _BORROW - (_BORROW >> (FIELD - 1))  # all ones
    for word in words:
        if (own := hashes.get(word)) is None:
            own = hashes[word] = _hashed(word)
        kept = ((least | _BORROW) - own) & _BORROW  # where least >= own
        least ^= (least ^ own) & (kept - (kept >> (FIELD - 1)))
    return least


def _hashed(word: str) -> int:
    digest = hashlib.shake_128(word.encode(errors="surrogatepass")).digest(BANDS * WIDTH * FIELD // 8)
    return int.from_bytes(digest, "big") & ~_BORROW
