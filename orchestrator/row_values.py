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


READERS: Mapping[str, Callable[[Any], Found]] = {"number": number, "labels": names}  # by the name in the snapshot
