"""Decisions about trials and studies, from what the tables say (pure)."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from orchestrator.contract import Outcome

LEASE_SECONDS = 30.0  # a lease lives this long on the database's clock
RENEW_SECONDS = 5.0
LOOK_SECONDS = 1.0  # how often a worker without work looks for some
LOCK_SECONDS = 9.0  # and waits so long at most for another worker's lock
RETURN_SECONDS = 10.0  # after the server's start its leases are left alone so long, for their owners to come back
MAX_CHARGES = 3  # a unit that fails this often by itself has failed for good
PATIENCE = 3  # kills in a row without a reported epoch before the unit is charged for it


class Cause(StrEnum):
    """How an attempt ended, beside the outcomes of training."""

    RELEASED = "released"  # given back: the worker left or could not load the study
    CANCELLED = "cancelled"  # the study was stopped, or its trial was closed by another fold
    VANISHED = "vanished"  # the lease ran out: worker or machine died, or lost its network
    KILLED = "killed"  # the trainer was killed from outside, again and again
    MEMORY = "memory"  # the kernel killed the trainer for its memory
    EXCEPTION = "exception"  # raised in the unit's own code
    CRASH = "crash"  # the trainer ended by a signal or exit code of its own while it trained this unit alone
    HANG = "hang"  # no step ended for too long


def recovery_bound() -> str:
    """How soon a killed worker's units are claimable, and why, in words."""
    total = LEASE_SECONDS + LOOK_SECONDS + LOCK_SECONDS
    return f"{total:.0f} s (lease {LEASE_SECONDS:.0f} s + look {LOOK_SECONDS:.0f} s + lock {LOCK_SECONDS:.0f} s)"


def cause_of(outcome: Outcome, said: str) -> str:
    """What an attempt's row says: the kind of failure where the supervisor named one, else the outcome."""
    if outcome == Outcome.DROPPED:
        return said or Cause.RELEASED
    return said or (Cause.EXCEPTION if outcome == Outcome.FAILED else outcome.value)


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

    trials: the states of all trials, planned ones included; each state at least once.
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
