"""Make studies/data/speech.jsonl and speakers.jsonl: what is said aloud in Jane Austen's novels, and by whom.

    apt-get download r-cran-janeaustenr && dpkg -x r-cran-janeaustenr_*.deb janeaustenr
    python studies/data/make_speech.py janeaustenr/usr/lib/R/site-library/janeaustenr/data/Rdata.rdb

Source: the R package janeaustenr 1.0.0 (NOTICE-Austen.txt in this folder); the novels are in the public domain.

speech.jsonl: 160 paragraphs without their quotation marks, `text`, and where those were, `spans` of label `speech`.
speakers.jsonl: 200 paragraphs with quotation marks, `context`, and who `said`, `cried` or `replied` it: `question`,
`answer`, `answer_start`. Both say in `novel` which it is.

Selection, without a random generator, so that every Python makes the same files: paragraphs of 15 to 60 words without
the underscores that mark italics, in the order of a hash of seed and text. speech.jsonl: with an even number of marks
and words outside them; a span ends before the comma or full stop that stands within the marks. speakers.jsonl: in which
exactly one verb of saying is followed by a name. No paragraph is in both files.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from make_austen import hashed, novels

SPEECHES, QUESTIONS = 160, 200
WORDS = range(15, 61)
QUESTION = {"said": "Who said this?", "cried": "Who cried out?", "replied": "Who replied?"}
SAID = re.compile(r"\b(said|cried|replied) ((?:(?:Mr|Mrs|Miss|Lady|Sir|Captain|Colonel)\.? )?[A-Z][a-z]+)")


def paragraphs(rdb: Path) -> list[tuple[str, str]]:
    """(novel, paragraph), in the order of their hashes."""
    found = {}
    for lines in novels(rdb):
        for block in "\n".join(lines).split("\n\n"):
            text = " ".join(block.split())
            if len(text.split()) in WORDS and "_" not in text:
                found[text] = lines[0].title()
    return sorted(((novel, text) for text, novel in found.items()), key=lambda each: hashed(each[1]))


def speech(text: str) -> dict[str, Any] | None:
    """The paragraph without quotation marks, and the stretches that stood within them."""
    parts = text.split('"')
    if len(parts) % 2 == 0 or len(parts) < 3 or not any(re.search(r"\w", part) for part in parts[::2]):
        return None
    plain, spans = "", []
    for number, part in enumerate(parts):
        said = part.rstrip(" ,.;:!?-")
        if number % 2 and re.search(r"\w", said):
            spans.append({"start": len(plain), "end": len(plain) + len(said), "label": "speech"})
        plain += part
    return {"text": plain, "spans": spans}


def speaker(text: str) -> dict[str, Any] | None:
    """Who says something in the paragraph, if one only does."""
    found = list(SAID.finditer(text))
    if len(found) != 1 or '"' not in text:
        return None
    verb, name = found[0].groups()
    return {"context": text, "question": QUESTION[verb], "answer": name, "answer_start": found[0].start(2)}


def write(name: str, rows: list[dict[str, Any]]) -> None:
    path = Path(__file__).with_name(name)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} rows, {path.stat().st_size} bytes: {path}", file=sys.stderr)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("one argument is needed: the path of janeaustenr's Rdata.rdb")
    speakers: list[dict[str, Any]] = []
    speeches: list[dict[str, Any]] = []
    for novel, text in paragraphs(Path(sys.argv[1])):
        if (asked := speaker(text)) and len(speakers) < QUESTIONS:
            speakers.append({**asked, "novel": novel})
        elif (said := speech(text)) and len(speeches) < SPEECHES:
            speeches.append({**said, "novel": novel})
    write("speech.jsonl", speeches)
    write("speakers.jsonl", speakers)


if __name__ == "__main__":
    main()
