"""Make trial_worker/augment/synonyms.tsv: words of English that may stand for each other.

    apt-get install wordnet-base
    python -m trial_worker.augment.make_synonyms [/usr/share/wordnet]

Source: WordNet 3.0, whose licence allows redistribution with its notice (NOTICE-WordNet.txt in this folder). A line is
a word, a tab and its synonyms. Two words are synonyms here where one sense is the usual one of both: each is single,
lower-case, of 3 letters or more, and at least `USUAL` of the tagged uses of each in WordNet's corpora (cntlist.rev) are
of this sense. So no word is replaced by what it hardly ever means; most senses of most words are left out.
"""

from __future__ import annotations

import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

USUAL = 0.6
WORD = re.compile(r"[a-z]{3,}")
# The table rewrites anybody's rows: what could offend stays out.
UNWELCOME = re.compile(
    r"sex.*|fuck.*|shit.*|whore|slut|bitch.*|bastard|cunt|nigger|negro|nigga|darky|darkie|redskin|coloured|colored|gay"
    r"|queer|dyke|fag.*|homo.*|lesbian|faggot|cripple.*|retard.*|moron|idiot|imbecile|savage|heathen|breast.*|boob.*|tit"
    r"|titty|spic|kike|gook|wop|chink|coon|paki|dago|wetback|gypsy|jap|penis|cock|prick|dick|ass|arse|anus|vagina|pussy|screw|rape.*|kill.*|murder.*|suicide|slave.*|nazi.*"
)
Sense = tuple[str, str, str, str]  # word, kind, lexicographers' file, number there
KINDS = {"n": "1", "v": "2", "a": "3", "r": "4", "s": "5"}


def main(folder: Path) -> None:
    """Write the table beside this file."""
    uses = Counter[Sense]()
    for line in (folder / "cntlist.rev").read_text(encoding="utf-8").splitlines():
        key, _, count = line.split(" ")
        word, _, rest = key.partition("%")
        kind, file, number, *_ = rest.split(":")
        uses[word, kind, file, number] += int(count)
    whole = Counter[str]()
    for (word, *_), count in uses.items():
        whole[word] += count
    table = defaultdict(set)
    for synset in synsets(folder):
        usual = sorted({sense[0] for sense in synset if uses[sense] and uses[sense] >= USUAL * whole[sense[0]]})
        for word in usual:
            table[word] |= set(usual) - {word}
    lines = [f"{word}\t{' '.join(sorted(others))}\n" for word, others in sorted(table.items()) if others]
    Path(__file__).with_name("synonyms.tsv").write_text("".join(lines), encoding="utf-8")


def synsets(folder: Path) -> Iterator[list[Sense]]:
    """The senses of every synset that are single plain words; wndb(5WN) has the format."""
    for name in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{name}").read_text(encoding="utf-8").splitlines():
            if line.startswith(" "):  # the licence, at the head of the file
                continue
            _, file, kind, count, *fields = line.split(" ")
            words = fields[: 2 * int(count, 16)]
            senses = zip(words[::2], words[1::2], strict=True)
            yield [
                (word, KINDS[kind], file, f"{int(number, 16):02d}")
                for word, number in senses
                if WORD.fullmatch(word) and not UNWELCOME.fullmatch(word)
            ]


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "/usr/share/wordnet"))
