"""Calls to the database that go through as soon as it answers."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import tenacity

from orchestrator.errors import UNAVAILABLE, FoldtuneError

GIVE_UP_SECONDS = float(os.environ.get("FOLDTUNE_GIVE_UP_SECONDS", 600))  # how long the database may be away

T = TypeVar("T")


class Line:
    """One worker's way to the database, for all its threads: an outage is told once, and its end too."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.closing = threading.Event()  # set: no call is tried again
        self.meanwhile = "training goes on, results wait on this machine"  # what an outage is told with
        self._say = say
        self._guard = threading.Lock()
        self._away: dict[int, float] = {}  # thread -> since when its call fails

    def persist(self, action: Callable[[], T], *, patience: float | None = None) -> T:
        """Do it, again and again while the database is away. Every action here may safely happen twice.

        patience: seconds; GIVE_UP_SECONDS unless given.

        Raises:
            FoldtuneError: with code UNAVAILABLE after that time, or at once while closing.
        """
        seconds = GIVE_UP_SECONDS if patience is None else patience
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(is_away),
            wait=tenacity.wait_random_exponential(0.2, max=3),
            stop=tenacity.stop_after_delay(seconds) | tenacity.stop_when_event_set(self.closing),
            before_sleep=lambda state: self._lost(state, seconds),
            sleep=tenacity.sleep_using_event(self.closing),
            reraise=True,
        )
        try:
            done = retrying(action)
        except BaseException as error:
            if not is_away(error):  # the database answered
                self._found()
            raise
        self._found()
        return done

    def _lost(self, state: tenacity.RetryCallState, seconds: float) -> None:
        with self._guard:
            known = bool(self._away)
            self._away.setdefault(threading.get_ident(), time.monotonic())
        if known:
            return
        assert state.outcome is not None
        until = time.strftime("%H:%M:%S", time.localtime(time.time() + seconds))
        error = state.outcome.exception()
        said = error.message if isinstance(error, FoldtuneError) else error
        self._say(f"{said}; {self.meanwhile}; giving up at {until}")

    def _found(self) -> None:
        """A call went through; over is over once all have that failed: a full disk lets some of them pass."""
        with self._guard:
            since = self._away.pop(threading.get_ident(), None)
            over = since is not None and not self._away
        if since is not None and over:
            self._say(f"the database answers again after {time.monotonic() - since:.0f} s")


def is_away(error: BaseException) -> bool:
    """Whether an error says that the database cannot be reached now, rather than that something is wrong."""
    return isinstance(error, FoldtuneError) and error.code == UNAVAILABLE
