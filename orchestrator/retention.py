"""Which trials' adapters stay when a study has more than it keeps (pure)."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.records import TrialRecord


def kept(trials: Sequence[TrialRecord], *, keep: int, maximize: bool) -> frozenset[int]:
    """Ids of the closed trials whose adapters stay: the best `keep` complete ones, and the default configuration's.

    A trial that repeats another has nothing of its own to keep. Of equals the earlier stays.
    """
    sign = -1 if maximize else 1
    complete = [
        (sign * t.value, t.id, t.trained)
        for t in trials
        if t.value is not None and t.duplicate_of is None and not t.is_baseline
    ]
    best = [trained for _, _, trained in sorted(complete)[:keep]]
    return frozenset([*best, *(t.trained for t in trials if t.is_default)])
