"""Early stopping: which training rows of a fold are held out to stop by (pure).

The validation rows never decide it: a fold's best epoch would be chosen on the very items that score the fold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.contract import derive_seed
from orchestrator.strata import strata
from orchestrator.texts import together

LEAST = 5  # rows: a loss over fewer says next to nothing of when to stop
_STRATIFIED = {"label": "classification", "labels": "multi_label", "number": "regression"}  # column -> whose strata


def held_out(rows: Mapping[int, Mapping[str, Any]], share: float) -> tuple[int, ...]:
    """Numbers of the rows to stop by, in order: about so large a share of each kind of row.

    rows: the training rows of one fold by their numbers in the snapshot. Rows of one group, or with one text, stay
    together. A function of these arguments alone: trials with one share stop by the same rows of a fold. Neither part
    is empty.

    Raises:
        ValueError: all rows belong together.
    """
    groups = together(rows)
    if len(groups) < 2:
        raise ValueError("patience needs training rows that can be parted, and all of them belong together")
    kinds = dict(zip(rows, _kinds(list(rows.values())), strict=True))
    seed = derive_seed("stopping", *rows)
    order = sorted(groups, key=lambda name: (kinds[groups[name][0]], derive_seed(seed, name)))
    chosen: list[int] = []
    seen = 0
    for name in order:  # every n-th of each kind: the share holds within each, to a row
        group = groups[name]
        seen += len(group)
        if len(chosen) + len(group) / 2 <= share * seen:
            chosen += group
    return tuple(sorted(chosen or groups[min(groups, key=lambda name: len(groups[name]))]))


def expected(rows: int, folds: int, share: float) -> int:
    """How many rows a fold of the smallest training part stops by, where no groups are in the way."""
    return round(share * (rows - -(-rows // folds)))


def _kinds(rows: Sequence[Mapping[str, Any]]) -> Sequence[str]:
    task = next((task for column, task in _STRATIFIED.items() if column in rows[0]), "")
    return strata(task, rows) or [""] * len(rows)
