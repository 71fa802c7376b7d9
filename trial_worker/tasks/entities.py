"""Entities in a row of tags, as CoNLL counts them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

Entity = tuple[str, int, int]  # type, first word, word behind the last


def entities(tags: Sequence[str]) -> Iterator[Entity]:
    """As conlleval and seqeval's default mode: an I- behind O or another type begins an entity."""
    start, kind = 0, ""
    for place, tag in enumerate([*tags, "O"]):
        goes_on = tag.startswith("I-") and tag[2:] == kind
        if kind and not goes_on:
            yield kind, start, place
        if not goes_on:
            start, kind = place, "" if tag == "O" else tag[2:]
