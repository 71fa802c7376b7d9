"""Rows that say what another row says, or nearly: which must stay in one fold, and what to tell of them (pure)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from orchestrator import near
from orchestrator.findings import Finding, counted, listed, quoted
from orchestrator.near import Link
from orchestrator.texts import fingerprint, said, told

MOST_CHARACTERS = 4_000_000  # of all texts, that are searched for near repeats unasked: a second or two
EXAMPLES = 2
Rows = Sequence[Mapping[str, Any]]


def find(rows: Rows, lines: Sequence[int], *, auto: bool) -> tuple[tuple[str, ...] | None, tuple[Finding, ...]]:
    """(a name for each row such that rows of one name must stay in one fold, findings).

    No names where every row stands for itself. Rows with equal texts stay together, rows of one group, and with `auto`
    rows with nearly equal texts; and what is joined by any of these.
    lines: where each row stands in the file.
    """
    texts, prints = [said(row) for row in rows], [fingerprint(row) for row in rows]
    found = [*_equal(lines, prints), *_conflicts(rows, lines, texts, prints)]
    links: list[Link] = []
    if auto or sum(map(len, texts)) <= MOST_CHARACTERS:
        links = near.links(texts)
    else:
        found.append(_unsearched(len(rows)))
    groups = _groups(rows, prints, links if auto else ())
    apart = prints if auto or groups is None else groups
    loose = [link for link in links if apart[link.row] != apart[link.like]]
    if loose:
        advice = "each set stays in one fold" if auto else "`data: {group: auto}` keeps them together"
        if any("group" in row for row in rows):
            advice = "give them one group"
        found.append(_near(lines, texts, loose, advice))
    return groups, tuple(found)


def named(rows: Rows, groups: Sequence[str]) -> list[dict[str, Any]]:
    """The rows, those that must stay together with one `group`: a unit that parts its own rows again knows no other.

    groups: as `find` gives them, names within these rows.
    """
    first: dict[str, int] = {}
    for number, group in enumerate(groups):
        first.setdefault(group, number)
    times = Counter(groups)
    return [
        {**row, "group": rows[first[group]].get("group", f"row {first[group]}")} if times[group] > 1 else dict(row)
        for row, group in zip(rows, groups, strict=True)
    ]


def _groups(rows: Rows, prints: Sequence[str], links: Sequence[Link]) -> tuple[str, ...] | None:
    if len(set(prints)) == len(prints) and not links and not any("group" in row for row in rows):
        return None
    keys: list[list[str]] = [[f"text {text}"] for text in prints]
    for row, own in zip(rows, keys, strict=True):
        if "group" in row:
            own.insert(0, f"group {row['group']}")
    for link in links:
        keys[link.row].append(keys[link.like][0])
    return _components(keys)


def _equal(lines: Sequence[int], prints: Sequence[str]) -> Iterator[Finding]:
    times = Counter(prints)
    repeated = [line for line, text in zip(lines, prints, strict=True) if times[text] > 1]
    if repeated:
        message = f"{counted(len(repeated))} repeat another row's text and would leak between folds"
        kept = "each set stays in one fold"
        yield Finding(kind="repeats", count=len(repeated), rows=listed(repeated), message=message, advice=kept)


def _conflicts(rows: Rows, lines: Sequence[int], texts: Sequence[str], prints: Sequence[str]) -> Iterator[Finding]:
    """Equal texts with different labels, in tasks that have labels."""
    first: dict[str, int] = {}
    odd: set[int] = set()
    example: tuple[int, int] | None = None
    for number, text in enumerate(prints):
        other = first.setdefault(text, number)
        if told(rows[number]) != told(rows[other]):
            odd |= {number, other}
            example = example or (other, number)
    if example is not None:
        one, other = example
        labels = " and ".join(told(rows[number]) for number in example)
        message = (
            f"equal texts have different labels, such as lines {lines[one]} and {lines[other]} "
            f"({quoted(texts[one])} is {labels}): no model can get all of them right"
        )
        where = listed(lines[number] for number in odd)
        yield Finding(kind="conflicts", count=len(odd), rows=where, message=message, advice="correct or remove them")


def _unsearched(rows: int) -> Finding:
    message = f"these {rows:,} rows are too many to be searched for near repeats unasked"
    return Finding(kind="unsearched", count=rows, rows=(), message=message, advice="`data: {group: auto}` asks for it")


def _near(lines: Sequence[int], texts: Sequence[str], links: Sequence[Link], advice: str) -> Finding:
    """links: of rows that nothing else keeps together."""
    concerned = {number for link in links for number in (link.row, link.like)}
    shown = [(f"lines {lines[one.like]} and {lines[one.row]}", texts[one.like], texts[one.row]) for one in links]
    examples = " and ".join(f"{where} ({quoted(a)}, {quoted(b)})" for where, a, b in shown[:EXAMPLES])
    message = f"{counted(len(concerned))} are nearly equal to another one and would leak between folds: {examples}"
    where = listed(lines[number] for number in concerned)
    return Finding(kind="near_repeats", count=len(concerned), rows=where, message=message, advice=advice)


def _components(keys: Sequence[Iterable[str]]) -> tuple[str, ...]:
    """A name for each row such that rows sharing any key share the name (union-find)."""
    parent: dict[str, str] = {}

    def find(key: str) -> str:
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    firsts = []
    for row_keys in keys:
        first, *others = row_keys
        for other in others:
            parent[find(other)] = find(first)
        firsts.append(first)
    return tuple(find(first) for first in firsts)
