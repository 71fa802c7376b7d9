"""Values of a row that are neither text nor a class: numbers and lists of names (pure).

Each function gives (canonical value, "") or (None, what is wrong), the words of which begin as `dataset.KINDS` knows.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.hyperparameters import show

Found = tuple[Any, str]


def number(value: Any) -> Found:
    """A finite number, or text that is one, as every cell of a CSV file is."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None, f"must be a number — got {show(value)}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None, f"must be a number — got {show(value)}"
    try:
        plain = float(value)
    except OverflowError:
        return None, "must be a finite number — got one beyond 1e308"
    return (plain, "") if math.isfinite(plain) else (None, f"must be a finite number — got {show(value)}")


def names(value: Any) -> Found:
    """A list of class names, each once, in the order of their names; it may be empty."""
    if not isinstance(value, list):
        return None, f"must be a list of class names — got {show(value)}"
    found = []
    for one in value:
        whole = isinstance(one, int) and not isinstance(one, bool)
        if not (whole or isinstance(one, str)) or not str(one).strip():
            return None, f"must be a list of class names — got {show(one)} in it"
        text, wrong = clean(str(one))
        if wrong:
            return None, wrong
        found.append(text)
    twice = [name for name, count in Counter(found).items() if count > 1]
    if twice:
        return None, f"must name each class once — got {show(twice[0])} twice"
    return sorted(found), ""


def clean(text: str) -> Found:
    """Text that Postgres and UTF-8 can hold."""
    if "\x00" in text:
        return None, "holds the character U+0000, which Postgres refuses"
    try:
        text.encode()
    except UnicodeEncodeError:
        return None, "holds half a surrogate pair, which is no text"
    return text, ""


def words(value: Any) -> Found:
    """A list of words, none of them empty."""
    if not isinstance(value, list) or not value:
        return None, f"must be a list of words — got {show(value)}"
    for one in value:
        if not isinstance(one, str) or not one.strip():
            return None, f"must be a list of words, all text — got {show(one)} in it"
        if wrong := clean(one)[1]:
            return None, wrong
    return value, ""


def place(value: Any) -> Found:
    """The number of a character, from 0."""
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < 20:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        return None, f"must be the number of a character, from 0 — got {show(value)}"
    return value, ""


def spans(value: Any) -> Found:
    """Stretches of a text with a label each, in their order."""
    rule = "must be a list of {start, end, label}"
    if not isinstance(value, list):
        return None, f"{rule} — got {show(value)}"
    for one in value:
        if not isinstance(one, dict) or not isinstance(label := one.get("label"), str) or not label.strip():
            return None, f"{rule} — got {show(one)} in it"
        if place(one.get("start"))[1] or place(one.get("end"))[1] or clean(label)[1]:
            return None, f"{rule}, characters from 0 — got {show(one)}"
    found = [{"start": place(one["start"])[0], "end": place(one["end"])[0], "label": one["label"]} for one in value]
    return sorted(found, key=lambda span: (span["start"], span["end"])), ""


READERS: Mapping[str, Callable[[Any], Found]] = {  # by the name in the snapshot
    "number": number,
    "labels": names,
    "tokens": words,
    "tags": words,
    "spans": spans,
    "start": place,
}
