"""When two rows say the same. Pure, standard library only."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any

from orchestrator import forms
from orchestrator.contract import digest


def fingerprint(row: Mapping[str, Any]) -> str:
    """sha256 of what a row says, whatever its label: equal for texts that differ in case, width and white space."""
    return digest({key: folded(value) for key, value in row.items() if key not in forms.TOLD})


def folded(value: Any) -> Any:
    """Text without differences of case, width and white space, at every depth."""
    if isinstance(value, str):
        return " ".join(unicodedata.normalize("NFKC", value).casefold().split())
    if isinstance(value, list):
        return [folded(item) for item in value]
    return {key: folded(item) for key, item in value.items()} if isinstance(value, dict) else value
