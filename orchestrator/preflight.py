"""What a study's rows and settings lead to, said before anything is spent: balance, odd lengths, what is cut (pure)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from orchestrator import folds, forms
from orchestrator.dataset import Snapshot
from orchestrator.findings import Finding, are, counted, listed, quoted
from orchestrator.spec import StudySpec
from orchestrator.texts import said
from orchestrator.tokens import Tokens

UNEVEN = 3  # times as many rows as the rarest class: worth a word
ODD = 10  # times as long as the median text, or a tenth of it
FEW = 8  # rows, of which none is odd
LOST = {  # task -> what a cut means for its scores
    "token_classification": ", and words beyond are not scored",
    "question_answering": ", and an answer beyond has no loss and counts as wrong",
}


def findings(spec: StudySpec, snapshot: Snapshot, tokens: Sequence[Tokens]) -> list[Finding]:
    """About the rows of a study. tokens: of these rows, as each of the study's models counts them."""
    rows = snapshot.parsed
    found = [*snapshot.findings, *_rare(spec, snapshot), *_balance(snapshot), *_lengths(rows, snapshot.lines)]
    for source, own in zip(spec.sources, tokens, strict=True):
        whose = f"model {source.path}: " if len(tokens) > 1 else ""
        cut = (*_cut(spec, snapshot, own), *_unlearnt(spec, snapshot, own))
        found += [replace(each, message=whose + each.message) for each in cut]
    return found


def _rare(spec: StudySpec, snapshot: Snapshot) -> Iterator[Finding]:
    """Classes with fewer rows than there are folds."""
    if not spec.cross_validation.stratify:
        return
    wanted, counts = spec.cross_validation.folds, Counter(snapshot.labels)
    rare = {label for label, count in counts.items() if count < wanted}
    where = [line for line, label in zip(snapshot.lines, snapshot.labels or (), strict=False) if label in rare]
    for message in folds.problems(snapshot.rows, wanted, snapshot.labels, None)[1]:
        advice = "add rows, or join classes"
        yield Finding(kind="rare_classes", count=len(where), rows=listed(where), message=message, advice=advice)


def _balance(snapshot: Snapshot) -> Iterator[Finding]:
    """The rarest and the most frequent class, and what always saying the latter reaches."""
    if snapshot.labels is None:
        return
    (often, most), *_, (seldom, least) = Counter(snapshot.labels).most_common()
    if most < UNEVEN * least:
        return
    floor = most / snapshot.rows
    message = (
        f"classes are uneven, from {seldom!r} ({counted(least)}) to {often!r} ({most:,}): "
        f"always saying {often!r} has accuracy {floor:.2f}"
    )
    first = next(line for line, label in zip(snapshot.lines, snapshot.labels, strict=True) if label == seldom)
    advice = "`objective: f1` or `class_weights: balanced` weigh classes alike"
    yield Finding(kind="class_balance", count=most, rows=(first,), message=message, advice=advice)


def _lengths(rows: Sequence[Mapping[str, Any]], lines: Sequence[int]) -> Iterator[Finding]:
    """Texts ten times as long as the median, or a tenth of it."""
    texts = [said(row) for row in rows]
    usual = median(map(len, texts))
    if len(texts) < FEW:
        return
    short = [number for number, text in enumerate(texts) if len(text) * ODD < usual]
    long = [number for number, text in enumerate(texts) if len(text) > ODD * usual]
    for kind, odd in (("short", short), ("long", long)):
        if odd:
            first = texts[odd[0]]
            example = f"line {lines[odd[0]]} has {counted(len(first), 'character')}, {quoted(first)}"
            what = f"{counted(len(odd))} {are(len(odd))} extraordinarily {kind}"
            message = f"{what} beside a median of {usual:,.0f} characters: {example}"
            where = listed(lines[number] for number in odd)
            yield Finding(kind=f"{kind}_texts", count=len(odd), rows=where, message=message, advice="look at them")


def _cut(spec: StudySpec, snapshot: Snapshot, tokens: Tokens) -> Iterator[Finding]:
    """Rows longer than `max_length`, and how many tokens are lost."""
    most = min(spec.extremes("max_length"))
    lengths = list(zip(tokens.number, tokens.whole, tokens.target, strict=True))
    cut = [number for number, whole, target in lengths if max(whole, target) > most]
    if not cut:
        return
    total = sum(tokens.whole) + sum(tokens.target)
    lost = sum(max(0, whole - most) + max(0, target - most) for _, whole, target in lengths)
    longest = max(max(tokens.whole), max(tokens.target))
    about = "" if tokens.exact else "about "
    scale = snapshot.rows / len(tokens.number)
    count = round(len(cut) * scale)
    message = (
        f"{about or _about(scale)}{counted(count)} of {snapshot.rows:,} {are(count)} longer than max_length {most} and "
        f"cut, {max(lost / total, 0.001):.1%} of all tokens{LOST.get(spec.task, '')}; "
        f"line {snapshot.lines[cut[0]]} is the first, the longest has {about}{longest:,} tokens"
    )
    where = listed(snapshot.lines[number] for number in cut)
    advice = "a larger max_length keeps more, and takes longer"
    yield Finding(kind="truncated", count=count, rows=where, message=message, advice=advice)


def _unlearnt(spec: StudySpec, snapshot: Snapshot, tokens: Tokens) -> Iterator[Finding]:
    """Rows of which the cut leaves nothing to learn."""
    most = min(spec.extremes("max_length"))
    if spec.task not in forms.HEADLESS:
        return
    without = [number for number, first in zip(tokens.number, tokens.first, strict=True) if first >= most]
    if not without:
        return
    scale = snapshot.rows / len(tokens.number)
    count = round(len(without) * scale)
    message = (
        f"of {_about(scale) if tokens.exact else 'about '}{counted(count)} nothing is left to learn: what comes before "
        f"the answer has {most} tokens or more, such as line {snapshot.lines[without[0]]}"
    )
    where = listed(snapshot.lines[number] for number in without)
    yield Finding(kind="nothing_left", count=count, rows=where, message=message, advice="raise max_length")


def _about(scale: float) -> str:
    return "about " if scale > 1 else ""
