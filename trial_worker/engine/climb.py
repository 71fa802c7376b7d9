"""How many tokens a micro-step should have: doubled while that is measured to be faster (pure)."""

from __future__ import annotations

from statistics import median

_STEPS = 5  # of each size that are measured, behind
_FIRST = 2  # that are not: kernels are chosen and memory is taken in them
_FULL = 0.75  # a micro-step counts that has so much of what it may have
_GAIN = 1.05  # less is not worth the memory
_ROOM = 0.45  # of the memory may be in use where twice the tokens are tried


class Climb:
    """Sizes are tried from `tokens` upwards, at most `most`. The first one that does not pay is the last."""

    def __init__(self, tokens: int, most: int) -> None:
        self.tokens = tokens
        self._most = most
        self._rates: list[float] = []
        self._before: float | None = None  # tokens a second at half the size
        self._settled = 2 * tokens > most

    def after(self, tokens: int, seconds: float, used: float) -> int:
        """What a micro-step may have, after one of so many tokens. used: share of the memory that it needed at most."""
        if self._settled or tokens < _FULL * self.tokens:
            return self.tokens
        self._rates.append(tokens / max(seconds, 1e-9))
        if len(self._rates) < _FIRST + _STEPS:
            return self.tokens
        rate = median(self._rates[_FIRST:])
        self._rates = []
        if self._before is not None and rate < _GAIN * self._before:
            self._settled, self.tokens = True, self.tokens // 2
        elif used > _ROOM or 2 * self.tokens > self._most:
            self._settled = True
        else:
            self._before, self.tokens = rate, 2 * self.tokens
        return self.tokens
