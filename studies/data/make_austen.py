"""Make studies/data/austen.jsonl: 160 paragraphs of "Pride and Prejudice", each with its chapter.

    apt-get download r-cran-janeaustenr && dpkg -x r-cran-janeaustenr_*.deb janeaustenr
    python studies/data/make_austen.py janeaustenr/usr/lib/R/site-library/janeaustenr/data/Rdata.rdb

Source: the R package janeaustenr 1.0.0 (NOTICE-Austen.txt in this folder); the novel is in the public domain.
The rows are what `studies/causal.yaml` teaches to a base that has read nothing but Python's documentation.

Selection, without a random generator, so that every Python makes the same file: paragraphs of 15 to 40 words
(they fit whole into the 128 positions of the base), without the underscores that mark italics, in the order
of a hash of seed and text; then sorted back into reading order. `chapter` is for grouped folds: paragraphs of
one scene share names and turns of phrase, and over a training and a validation fold they would leak.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

SEED = 7
ROWS = 160
WORDS = range(15, 41)
TITLE = "PRIDE AND PREJUDICE"
CHAPTER = re.compile(r"Chapter (\d+)")
STRING_VECTOR = b"\x00\x00\x00\x10"  # type header in R's serialisation, before length and strings


def novels(rdb: Path) -> Iterator[list[str]]:
    """The text lines of each novel.

    An Rdata.rdb is a sequence of records: four bytes of length, then a zlib stream of a serialised R object.
    """
    data, position = rdb.read_bytes(), 0
    while position < len(data):
        record = zlib.decompressobj()
        raw = record.decompress(data[position + 4 :])
        position = len(data) - len(record.unused_data)
        yield string_vector(raw, raw.index(STRING_VECTOR) + len(STRING_VECTOR))


def string_vector(raw: bytes, offset: int) -> list[str]:
    """R's string vector at `offset`: its length, then per string a type, a size (-1: missing) and the bytes."""
    (length,) = struct.unpack_from(">I", raw, offset)
    offset += 4
    strings = []
    for _ in range(length):
        _, size = struct.unpack_from(">Ii", raw, offset)
        offset += 8
        strings.append(raw[offset : offset + max(size, 0)].decode("utf-8"))
        offset += max(size, 0)
    return strings


def paragraphs(lines: list[str]) -> Iterator[tuple[int, str]]:
    """(chapter, paragraph); what stands before the first chapter is left out."""
    chapter = 0
    for block in "\n".join(lines).split("\n\n"):
        text = " ".join(block.split())
        if heading := CHAPTER.fullmatch(text):
            chapter = int(heading[1])
        elif chapter and text:
            yield chapter, text


def hashed(text: str) -> str:
    return hashlib.sha256(f"{SEED}:{text}".encode()).hexdigest()


def select(rdb: Path) -> list[dict[str, str | int]]:
    lines = next(lines for lines in novels(rdb) if lines[0] == TITLE)
    found = [(chapter, text) for chapter, text in paragraphs(lines) if len(text.split()) in WORDS and "_" not in text]
    chosen = {text for _, text in sorted(found, key=lambda row: hashed(row[1]))[:ROWS]}
    return [{"text": text, "chapter": chapter} for chapter, text in found if text in chosen]


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("one argument is needed: the path of janeaustenr's Rdata.rdb")
    out = Path(__file__).with_name("austen.jsonl")
    rows = select(Path(sys.argv[1]))
    out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} rows, {out.stat().st_size} bytes: {out}", file=sys.stderr)


if __name__ == "__main__":
    main()
