"""Make studies/data/verses.jsonl and verse_pairs.jsonl: verses of two English Bibles, side by side.

    apt-get download bible-kjv bible-kjv-text sword-text-web && for deb in *.deb; do dpkg -x "$deb" bibles; done
    python studies/data/make_verses.py bibles

Sources: the King James Version of 1769 and the World English Bible, both in the public domain (NOTICE-Bible.txt).

verses.jsonl: `source` (King James Version), `target` (World English Bible), `marks` (which of exclamation, question and
speech the target's punctuation shows) and `book`, 240 verses. verse_pairs.jsonl: `text` (King James Version),
`text_pair` (World English Bible), `label` and `book`, 240 pairs: the same verse, or the one after it (`next`).

Selection, without a random generator, so that every Python makes the same files: verses of 6 to 24 words in both, whose
translations share at least a fifth of their words and are not equal (elsewhere verses are numbered differently), in the
order of a hash of seed and text; then sorted back into reading order. No verse is in both files.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

SEED = 7
ROWS = 240
WORDS = range(6, 25)
SHARED = 0.2  # Jaccard index of the two sets of words
MODULE = "usr/share/sword/modules/texts/ztext/engWEB2015eb"
KJV_LINE = re.compile(r"(\S+?)(\d+):(\d+) (.*)")
CHAPTER = re.compile(r'<chapter[^>]*osisID="(\w+)\.(\d+)"')
BOOKS = re.findall(
    r"\w+",
    """
    Gen Exod Lev Num Deut Josh Judg Ruth 1Sam 2Sam 1Kgs 2Kgs 1Chr 2Chr Ezra Neh Esth Job Ps Prov Eccl Song Isa Jer Lam
    Ezek Dan Hos Joel Amos Obad Jonah Mic Nah Hab Zeph Hag Zech Mal Matt Mark Luke John Acts Rom 1Cor 2Cor Gal Eph Phil
    Col 1Thess 2Thess 1Tim 2Tim Titus Phlm Heb Jas 1Pet 2Pet 1John 2John 3John Jude Rev
    """,
)
Place = tuple[int, int, int]  # book, chapter, verse


def king_james(root: Path) -> dict[Place, str]:
    """Every verse, books numbered in their order."""
    command = [root / "usr/bin/bible", "-p", root / "usr/lib", "-f", "gen1:1-rev22:21"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    books: dict[str, int] = {}
    found = {}
    for line in lines:
        if match := KJV_LINE.fullmatch(line.strip()):
            book, chapter, verse, text = match.groups()
            place = (books.setdefault(book, len(books) + 1), int(chapter), int(verse))
            found[place] = " ".join(re.sub(r"[{}\[\]]", "", text).split())
    return found


def entries(base: Path, part: str) -> Iterator[str]:
    """Raw entries of a SWORD zText module in the order of its index; part: "ot" or "nt"."""
    blocks, verses, texts = (base.joinpath(f"{part}.bz{letter}").read_bytes() for letter in "svz")
    unpacked: dict[int, bytes] = {}
    for at in range(0, len(verses), 10):
        block, start, size = struct.unpack_from("<IIH", verses, at)
        if size and block not in unpacked:
            offset, length, _ = struct.unpack_from("<III", blocks, block * 12)
            unpacked[block] = zlib.decompress(texts[offset : offset + length])
        yield unpacked[block][start : start + size].decode("utf-8", "replace") if size else ""


def world_english(root: Path) -> dict[Place, str]:
    """Every verse of the same books; an entry with a chapter's heading holds no verse."""
    found = {}
    book, chapter, verse = "", 0, 0
    for part in ("ot", "nt"):
        for entry in entries(root / MODULE, part):
            if opened := CHAPTER.search(entry):
                book, chapter, verse = opened[1], int(opened[2]), 0
            elif chapter and 'type="book"' in entry:
                chapter = 0
            elif chapter:
                verse += 1
                if book in BOOKS:
                    found[BOOKS.index(book) + 1, chapter, verse] = spoken(entry)
    return found


def spoken(entry: str) -> str:
    """The text of a verse, without notes, titles and marks."""
    text = re.sub(r"<(note|title)\b.*?</\1>", " ", entry, flags=re.DOTALL)
    text = re.sub(r"<[^>]*>", " ", re.sub(r"</?w\b[^>]*>", "", text))
    return re.sub(r" ([,.;:?!”’])", r"\1", " ".join(text.split()))


def words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def are_alike(old: str, new: str) -> bool:
    ours, theirs = set(words(old)), set(words(new))
    both = len(words(old)) in WORDS and len(words(new)) in WORDS
    return both and old != new and len(ours & theirs) >= SHARED * len(ours | theirs)


def marks(text: str) -> list[str]:
    """What its punctuation says of a verse; the King James Version has no quotation marks."""
    found = {"exclamation": "!" in text, "question": "?" in text, "speech": "“" in text or "”" in text}
    return [name for name, there in found.items() if there]


def hashed(text: str) -> str:
    return hashlib.sha256(f"{SEED}:{text}".encode()).hexdigest()


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} rows, {path.stat().st_size} bytes: {path}", file=sys.stderr)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("one argument is needed: the folder into which the three packages were unpacked")
    old, new = king_james(Path(sys.argv[1])), world_english(Path(sys.argv[1]))
    usable = [place for place in old if place in new and are_alike(old[place], new[place])]
    usable.sort(key=lambda place: hashed(old[place]))
    chosen, paired = sorted(usable[:ROWS]), []
    for place in usable[ROWS:]:
        after = (*place[:2], place[2] + 1)
        if len(paired) < ROWS and len(words(new.get(after, ""))) in WORDS:
            paired.append((place, after))
    verses = [
        {"source": old[place], "target": new[place], "marks": marks(new[place]), "book": place[0]} for place in chosen
    ]
    pairs = []
    for number, (place, after) in enumerate(sorted(paired)):
        same = number % 2 == 0
        label = "same" if same else "next"
        pairs.append({"text": old[place], "text_pair": new[place if same else after], "label": label, "book": place[0]})
    write(Path(__file__).with_name("verses.jsonl"), verses)
    write(Path(__file__).with_name("verse_pairs.jsonl"), pairs)


if __name__ == "__main__":
    main()
