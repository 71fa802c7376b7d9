"""Which unit next, and which trial not any more (pure)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Unit = tuple[int, int]  # (trial, fold)


def stop(losses: Sequence[float], incumbent: Sequence[float]) -> bool:
    """The forgiving rule: a trial whose mean so far is worse than the incumbent's worst fold earns no further fold.

    losses: of the trial's folds so far. incumbent: of all folds of the best complete trial.
    """
    return bool(losses) and sum(losses) / len(losses) > max(incumbent)


@dataclass
class _Open:
    waiting: list[int]
    running: int = 0
    losses: list[float] = field(default_factory=list)

    @property
    def mean(self) -> float:
        return sum(self.losses) / len(self.losses) if self.losses else 0.0

    @property
    def complete(self) -> bool:
        return not self.waiting and not self.running


class Feed:
    """Hands out units and hears of their losses.

    width: trials open at once; None: no limit. Without racing that decides nothing but the order.
    """

    def __init__(self, folds: Mapping[int, Sequence[int]], *, racing: bool, width: int | None = None) -> None:
        self._left = list(folds)
        self._folds = {trial: list(parts) for trial, parts in folds.items()}
        self._open: dict[int, _Open] = {}
        self._racing = racing
        self._width = len(folds) if width is None else width
        self._incumbent: list[float] | None = None
        self.stopped: dict[int, int] = {}  # trial -> folds that it got
        self.ran: list[Unit] = []

    def next(self) -> Unit | None:
        """The next unit; None while there is none to hand out.

        An open trial that waits for nothing comes first, the most promising of them; then a new trial; then a further
        fold of a trial that has one running already.
        """
        ready = [trial for trial, state in self._open.items() if state.waiting]
        idle = [trial for trial in ready if not self._open[trial].running]
        unfinished = sum(not state.complete for state in self._open.values())
        if idle:
            trial = min(idle, key=lambda one: (self._open[one].mean, one))
        elif self._left and unfinished < self._width:
            trial = self._left.pop(0)
            self._open[trial] = _Open(self._folds[trial])
        elif ready:
            trial = min(ready, key=lambda one: (self._open[one].running, self._open[one].mean, one))
        else:
            return None
        state = self._open[trial]
        state.running += 1
        unit = (trial, state.waiting.pop(0))
        self.ran.append(unit)
        return unit

    @property
    def busy(self) -> bool:
        """Whether a unit that was handed out has not ended."""
        return any(state.running for state in self._open.values())

    def done(self, trial: int, loss: float | None) -> None:
        """A unit of the trial ended with this loss; None: it diverged, and the trial with it."""
        state = self._open[trial]
        state.running -= 1
        state.losses.append(math.inf if loss is None else loss)
        if loss is None:
            self._stop(trial)
        if not self._racing:
            return
        if state.complete and trial not in self.stopped and self._beats(state.losses):
            self._incumbent = state.losses
        if self._incumbent is not None:
            for other, candidate in self._open.items():
                if candidate.waiting and stop(candidate.losses, self._incumbent):
                    self._stop(other)

    def _beats(self, losses: Sequence[float]) -> bool:
        return self._incumbent is None or sum(losses) < sum(self._incumbent)

    def _stop(self, trial: int) -> None:
        state = self._open[trial]
        if state.waiting:
            self.stopped[trial] = len(state.losses) + state.running
            state.waiting.clear()
