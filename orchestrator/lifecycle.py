"""Decisions about trials and studies, from what the tables say (pure)."""

from __future__ import annotations

from collections.abc import Sequence

LEASE_SECONDS = 30.0  # a lease lives this long on the database's clock
RENEW_SECONDS = 5.0
MAX_CHARGES = 3  # a unit that fails this often by itself has failed for good
PATIENCE = 3  # leases in a row that may run out without progress before the unit is charged for it

# State of a trial -> what Optuna is told. A NaN told as FAIL would teach the sampler nothing, and a partial mean
# told as COMPLETE would let easy folds win.
TOLD = {
    "complete": "COMPLETE",
    "stopped": "PRUNED",
    "diverged": "PRUNED",
    "infeasible": "PRUNED",
    "failed": "FAIL",
    "cancelled": "FAIL",
}
TERMINAL = frozenset(TOLD)


def startup_trials(trials: int) -> int:
    """Suggestions drawn at random before the sampler's model speaks.

    Optuna's default of 10 would make a 15-trial study two-thirds random search.
    """
    return min(10, max(4, trials // 4))


def open_cap(sampler: str, trials: int, capable_workers: int) -> int | None:
    """How many trials may be open at once; None: no limit.

    A model-based sampler learns only from closed trials: opening many at once turns it into random search.
    """
    if sampler in ("grid", "random"):
        return None
    return max(capable_workers, -(-trials // 5))


def trial_end(units: Sequence[str]) -> str | None:
    """The terminal state that the states of a trial's units imply; None while it is open."""
    for state in ("diverged", "infeasible", "failed", "cancelled"):
        if state in units:
            return state
    return "complete" if all(state == "done" for state in units) else None


def study_end(*, trials: Sequence[str], trials_used: int, trials_total: int, hours_spent: bool) -> str | None:
    """The state of an open study whose work is done; None while there is work.

    trials: the state of every trial, planned ones included.
    """
    if any(state in ("waiting", "running") for state in trials):
        return None
    if trials_used < trials_total and not hours_spent:
        return None
    return "complete" if "complete" in trials or "stopped" in trials or hours_spent else "failed"


def seconds_left(hours_total: float | None, used: float, sharing: int) -> float | None:
    """Device seconds that each of `sharing` running units may still take; None: no limit."""
    if hours_total is None:
        return None
    return max(0.0, hours_total * 3600 - used) / max(1, sharing)
