"""A baseline in a slot of a pack: it comes and goes like a unit that trains, and trains nothing."""

from __future__ import annotations

import math
from time import monotonic

from orchestrator.contract import EpochDone, Outcome, UnitEnded
from trial_worker.baselines import Job, NotApplicable, run
from trial_worker.engine.scores import pack_predictions


class BaselineSlot:
    """One fold of a baseline, advanced piece by piece."""

    def __init__(self, job: Job) -> None:
        self.unit = job.unit
        self._job = job
        self._run = run(job)
        self._seconds = 0.0

    def advance(self) -> list[EpochDone | UnitEnded]:
        """Compute for a moment; its result and its end, once there is one.

        Raises:
            Exception: whatever the baseline raises but that it cannot be applied.
        """
        began = monotonic()
        try:
            next(self._run)
        except NotApplicable as why:
            return [self.unit.ended(Outcome.INFEASIBLE, f"not applicable: {why}")]
        except StopIteration as end:
            self._seconds += monotonic() - began
            job, scores = self._job, end.value
            done = EpochDone(
                unit=self.unit.unit,
                lease_epoch=self.unit.lease_epoch,
                epoch=1,
                train_loss=math.nan,
                seconds=self._seconds,
                tallies=job.rows.task.tallies([job.items[number] for number in self.unit.validation], scores),
                predictions=pack_predictions(scores, with_logits=scores.logits is not None),
            )
            return [done, self.unit.ended(Outcome.DONE)]
        self._seconds += monotonic() - began
        return []
