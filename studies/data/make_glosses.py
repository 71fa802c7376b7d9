"""Make studies/data/glosses.jsonl: 300 dictionary definitions of nouns, 30 for each of ten categories.

    apt-get install wordnet-base
    python studies/data/make_glosses.py [/usr/share/wordnet/data.noun]

Source: WordNet 3.0, whose licence allows redistribution with its notice (NOTICE-WordNet.txt in this folder).
Every line of `data.noun` is one sense of a noun: the second field is the number of the lexicographers' file
it was written in, which is the category; what follows ` | ` is the gloss, a definition and then examples.

Selection, in this order; no random generator takes part, so every Python makes the same file:
- the definition is the gloss up to its first `;`, with 4 to 25 words;
- left out: quotation marks or unbalanced brackets (the cut fell inside something), words of `UNWELCOME`, and
  definitions that stand word for word in more than one of the noun categories (their label is arbitrary);
- the rest is walked through in the order of a hash of seed and text;
- near duplicates: a definition is passed over when it shares half or more of its content words with one
  that was taken (Jaccard index of the two sets of words, without `FUNCTION_WORDS`, at least 0.5). A pair of
  near duplicates over a training and a validation fold would be answered from memory.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

SEED = 7
ROWS_PER_LABEL = 30
WORDS = range(4, 26)
NEAR_DUPLICATE = 0.5  # Jaccard index of the content words

# Lexicographer file numbers of WordNet 3.0 (lexnames(5WN)); the twenty-six noun files are 03 to 28.
LABELS = {
    "04": "act",
    "06": "artifact",
    "07": "attribute",
    "08": "body",
    "09": "cognition",
    "10": "communication",
    "12": "feeling",
    "13": "food",
    "21": "possession",
    "26": "state",
}

FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
        a an and any are as at be been being but by can especially etc for from has have having in into is it
        its not of off on one or other out over some something somebody someone such than that the their them
        they this to up used usually very was were when where which while who whose with without you your
        """,
    )
)

# The rows are shown in classrooms and on projectors; what these would teach, other definitions teach as well.
UNWELCOME = re.compile(
    r"\b(sex\w*|genital\w*|pubic|penis|vagina\w*|vulva\w*|an(us|al)|semen|intercourse|copulat\w*|prostitut\w*"
    r"|rape\w*|suicid\w*|rac(ial|is[mt]s?)|ethnic\w*|intolerant|offensive|obscene|nude|tortur\w*|defecat\w*|f(a?)eces"
    r"|excrement|urin\w*|breasts?|test(is|es|ic\w*)|scrot\w*|murder\w*|kill\w*|abort\w*)\b",
    re.IGNORECASE,
)


def definitions(data_noun: Path) -> Iterator[tuple[str, str]]:
    """(lexicographer file number, definition) of every sense, in the file's order."""
    with data_noun.open(encoding="utf-8") as lines:
        for line in lines:
            if line.startswith(" "):  # the licence, at the head of the file
                continue
            fields, _, gloss = line.partition(" | ")
            yield fields.split(" ", 2)[1], " ".join(gloss.split(";", 1)[0].split())


def is_wanted(text: str) -> bool:
    return (
        len(text.split()) in WORDS
        and '"' not in text
        and text.count("(") == text.count(")")
        and not UNWELCOME.search(text)
    )


def content_words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z0-9]+", text.lower())) - FUNCTION_WORDS


def is_near_duplicate(words: frozenset[str], taken: Iterable[frozenset[str]]) -> bool:
    return any(len(words & other) >= NEAR_DUPLICATE * len(words | other) for other in taken)


def hashed(text: str) -> str:
    return hashlib.sha256(f"{SEED}:{text}".encode()).hexdigest()


def select(
    data_noun: Path,
    texts: Callable[[Path], Iterable[tuple[str, str]]] = definitions,
    wanted: Callable[[str], bool] = is_wanted,
) -> list[dict[str, str]]:
    """The rows, labels mixed. texts: what to choose from. wanted: what may be chosen.

    Raises:
        ValueError: a category has too few definitions, so that this is not WordNet 3.0's file.
    """
    numbers: dict[str, set[str]] = defaultdict(set)
    for number, text in texts(data_noun):
        if wanted(text):
            numbers[text].add(number)

    rows: list[dict[str, str]] = []
    taken: list[frozenset[str]] = []
    counts: dict[str, int] = dict.fromkeys(LABELS.values(), 0)
    for text in sorted(numbers, key=hashed):
        label = LABELS.get(min(numbers[text])) if len(numbers[text]) == 1 else None
        if label is None or counts[label] == ROWS_PER_LABEL:
            continue
        words = content_words(text)
        if is_near_duplicate(words, taken):
            continue
        rows.append({"text": text, "label": label})
        taken.append(words)
        counts[label] += 1

    short = {label: count for label, count in counts.items() if count < ROWS_PER_LABEL}
    if short:
        raise ValueError(f"every category needs {ROWS_PER_LABEL} definitions, got {short} from {data_noun}")
    return rows


def main() -> None:
    data_noun = Path(sys.argv[1] if len(sys.argv) > 1 else "/usr/share/wordnet/data.noun")
    out = Path(__file__).with_name("glosses.jsonl")
    rows = select(data_noun)
    out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} rows, {out.stat().st_size} bytes: {out}", file=sys.stderr)


if __name__ == "__main__":
    main()
