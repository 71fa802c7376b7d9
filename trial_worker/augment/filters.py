"""Which written rows are worth training on. Pure, and of no model: equal on every machine."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from orchestrator.forms import TOLD
from orchestrator.texts import fingerprint, folded
from trial_worker.augment.made import Made
from trial_worker.tasks.interface import Row

MOST_ALIKE = 0.9  # of two texts: above, one is a copy of the other
LEAST_ALIKE = 0.15  # of a text and its paraphrase: below, it says something else
LENGTHS = (0.3, 3.0)  # of a written text, as a multiple of the shortest and longest that it was written after
_WORDS = re.compile(r"\w+")


def words(row: Row) -> list[str]:
    """What a row says, folded, word by word."""
    return _WORDS.findall(" ".join(_texts({key: row[key] for key in row if key not in TOLD})))


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield folded(value)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(inner) if key != "role" else ()
    elif isinstance(value, Sequence):
        for inner in value:
            yield from _texts(inner)


def alikeness(one: Iterable[str], other: Iterable[str]) -> float:
    """Of two texts, by their words: Dice's coefficient of the letter triples in them, 0 to 1."""
    a, b = (Counter(_triples(each)) for each in (one, other))
    both = a.total() + b.total()
    return 2 * (a & b).total() / both if both else 1.0


def _triples(said: Iterable[str]) -> Iterator[str]:
    for word in said:
        padded = f" {word} "
        yield from (padded[place : place + 3] for place in range(len(padded) - 2))


class LabelCheck:
    """Which classes a text may be of, by the words of training rows: multinomial naive Bayes, add-one smoothed.

    No judge of what is right, it is far too weak; it knows what is out of the question.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        self._counts: dict[str, Counter[str]] = {}
        self._rows = Counter[str]()
        for row in rows:
            self._counts.setdefault(row["label"], Counter()).update(words(row))
            self._rows[row["label"]] += 1
        self._known = set().union(*self._counts.values()) if self._counts else set()

    def allows(self, row: Row) -> bool:
        """Whether the row's label is among the likeliest third of the classes, the first one at least."""
        said = [word for word in words(row) if word in self._known]
        if not said or row["label"] not in self._counts:
            return False
        likely = {label: self._likelihood(label, said) for label in self._counts}
        better = sum(value > likely[row["label"]] for value in likely.values())
        return better < max(1, len(likely) // 3)

    def _likelihood(self, label: str, said: Sequence[str]) -> float:
        counts = self._counts[label]
        total = math.log(counts.total() + len(self._known))
        prior = math.log(self._rows[label] / self._rows.total())
        return prior + sum(math.log(counts[word] + 1) - total for word in said)


def worthy(written: Iterable[Made], training: Mapping[int, Row], *, paraphrases: bool) -> Iterator[Made]:
    """What is left of rows that a model wrote after training rows, in their order.

    Out go: a row of another length altogether; one that repeats a training row or a row before it, or nearly
    (`MOST_ALIKE`); a paraphrase that has hardly anything of its source (`LEAST_ALIKE`); where rows have labels, one
    whose label the training rows' words speak against (`LabelCheck`).

    training: the rows of the fold, by number; they hold all sources.
    """
    labelled = all("label" in row for row in training.values())
    check = LabelCheck(training.values()) if labelled else None
    said = {number: words(row) for number, row in training.items()}
    seen = {fingerprint(row) for row in training.values()}
    kept: list[list[str]] = []
    for one in written:
        own, sources = words(one.row), [said[number] for number in one.sources]
        if (key := fingerprint(one.row)) in seen or not _fits(len(own), [len(each) for each in sources]):
            continue
        near = sources if paraphrases else said.values()
        if paraphrases and max(alikeness(own, each) for each in near) < LEAST_ALIKE:
            continue
        if any(alikeness(own, each) > MOST_ALIKE for each in (*near, *kept)):
            continue
        if check is None or check.allows(one.row):
            seen.add(key)
            kept.append(own)
            yield one


def _fits(length: int, sources: Sequence[int]) -> bool:
    return bool(length) and LENGTHS[0] * min(sources) <= length <= LENGTHS[1] * max(sources)
