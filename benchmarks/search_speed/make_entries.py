"""Make benchmarks/search_speed/entries.jsonl: 300 dictionary entries of nouns, 30 for each of ten categories.

    apt-get install wordnet-base
    python -m benchmarks.search_speed.make_entries [/usr/share/wordnet/data.noun]

As studies/data/glosses.jsonl (same source, licence, categories and rules of selection), but a text is a whole entry:
the words of the sense, its definition, and whatever examples it has. Nothing is cut or stretched, so lengths are as
mixed as those of short texts that people write: a few have one example or more, most have none.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from studies.data import make_glosses


def entries(data_noun: Path) -> Iterator[tuple[str, str]]:
    """(lexicographer file number, entry) of every sense, in the file's order."""
    with data_noun.open(encoding="utf-8") as lines:
        for line in lines:
            if line.startswith(" "):
                continue
            fields, _, gloss = line.partition(" | ")
            parts = fields.split(" ")
            count = int(parts[3], 16)
            words = ", ".join(word.replace("_", " ") for word in parts[4 : 4 + 2 * count : 2])
            yield parts[1], f"{words}: {' '.join(gloss.split())}"


def is_wanted(text: str) -> bool:
    return text.count("(") == text.count(")") and not make_glosses.UNWELCOME.search(text)


def main() -> None:
    data_noun = Path(sys.argv[1] if len(sys.argv) > 1 else "/usr/share/wordnet/data.noun")
    out = Path(__file__).with_name("entries.jsonl")
    rows = make_glosses.select(data_noun, entries, is_wanted)
    out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} rows, {out.stat().st_size} bytes: {out}", file=sys.stderr)


if __name__ == "__main__":
    main()
