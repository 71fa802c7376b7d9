"""What a unit may still take of the device, and when it is expected to end. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from orchestrator.contract import Outcome
from trial_worker.engine.errors import UnitStopped


@dataclass
class Clock:
    """Of one unit. Seconds are its share of the device's: units that share a micro-step share its time.

    spent: of the running epoch. left: that it may take from the start of the running epoch on.
    """

    spent: float = 0.0
    left: float = math.inf

    def limit(self, seconds_left: float | None) -> None:
        """The unit may take so many seconds beyond its reported epochs; None lifts the limit.

        Whoever sets the limit knows nothing of the running epoch yet: counted from now, its time would be given twice.
        """
        self.left = math.inf if seconds_left is None else seconds_left

    def spend(self, seconds: float) -> None:
        """So much of the device went into this unit."""
        self.spent += seconds

    def close_epoch(self) -> float:
        """The epoch is over and will be reported; its seconds."""
        seconds, self.spent = self.spent, 0.0
        self.left -= seconds
        return seconds

    def demand(self, forecast: float) -> None:
        """Raises UnitStopped (OVER_BUDGET) where so many seconds more would not end in time."""
        left = self.left - self.spent
        if left <= 0 or forecast > left:
            raise UnitStopped(
                Outcome.OVER_BUDGET, f"an epoch takes about {forecast:.0f} s, and {max(left, 0):.0f} s are left"
            )


@dataclass
class Forecast:
    """When a unit ends, by its pace since `began`. In wall time: what its company takes of the device is in it.

    began: seconds. work: what was left to do then, in any measure. left: what is left of it now.
    """

    began: float
    work: float
    left: float

    def did(self, work: float) -> None:
        """So much of the work was done."""
        self.left -= work

    def to_go(self, now: float) -> float:
        """Seconds until the unit's end; infinite before anything was done."""
        done = self.work - self.left
        return (now - self.began) * self.left / done if done > 0 else math.inf
