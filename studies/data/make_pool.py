"""Make studies/data/glosses-pool.jsonl: 600 more definitions, without their categories.

    apt-get install wordnet-base
    python studies/data/make_pool.py [/usr/share/wordnet/data.noun]

Source, selection and order are those of make_glosses.py, whose rows and their near duplicates are passed over: the next
60 of each of its ten categories, which are then forgotten. A pool from the wild would not be as even.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from pathlib import Path

from make_glosses import LABELS, content_words, definitions, hashed, is_near_duplicate, is_wanted

ROWS_PER_LABEL = 60


def select(data_noun: Path, taken: list[str]) -> list[str]:
    """Texts, categories mixed. taken: those of make_glosses.py."""
    numbers: dict[str, set[str]] = defaultdict(set)
    for number, text in definitions(data_noun):
        if is_wanted(text):
            numbers[text].add(number)
    words = [content_words(text) for text in taken]
    found: list[str] = []
    counts = Counter[str]()
    for text in sorted(numbers, key=hashed):
        label = LABELS.get(min(numbers[text])) if len(numbers[text]) == 1 else None
        own = content_words(text)
        if label is None or counts[label] == ROWS_PER_LABEL or is_near_duplicate(own, words):
            continue
        counts[label] += 1
        words.append(own)
        found.append(text)
    return found


def main() -> None:
    data_noun = Path(sys.argv[1] if len(sys.argv) > 1 else "/usr/share/wordnet/data.noun")
    folder = Path(__file__).parent
    known = [json.loads(line)["text"] for line in (folder / "glosses.jsonl").read_text(encoding="utf-8").splitlines()]
    out = folder / "glosses-pool.jsonl"
    rows = select(data_noun, known)
    out.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in rows), encoding="utf-8")
    print(f"{len(rows)} rows, {out.stat().st_size} bytes: {out}", file=sys.stderr)


if __name__ == "__main__":
    main()
