"""A folder of files that is given up when it does not answer: a dead mount or a stalled upload never ends by itself."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Late
from dataclasses import dataclass
from typing import TypeVar

from orchestrator.stores import Entry, Files

T = TypeVar("T")
SECONDS = 60.0  # for any call
SECONDS_PER_MIB = 1.0  # on top, for the bytes it moves: a slow uplink is no fault


@dataclass(frozen=True)
class Bounded:
    """`Files` whose every call ends: with its result, its OSError, or a TimeoutError, which is an OSError too.

    A call that was given up goes on in a thread of its own and may still write its file; no row names it, so that a
    sweep deletes it. Were the caller to wait, a worker would deliver no more results, and say nothing.
    """

    files: Files
    seconds: float = SECONDS

    @property
    def far(self) -> bool:
        return self.files.far

    def make(self) -> None:
        self._call(self.files.make)

    def there(self) -> bool:
        return self._call(self.files.there)

    def write(self, name: str, content: bytes) -> None:
        self._call(lambda: self.files.write(name, content), len(content))

    def read(self, name: str, size: int) -> bytes:
        return self._call(lambda: self.files.read(name, size), size)

    def size(self, name: str) -> int:
        return self._call(lambda: self.files.size(name))

    def remove(self, name: str) -> None:
        self._call(lambda: self.files.remove(name))

    def entries(self) -> list[Entry]:
        return self._call(self.files.entries)

    def discard(self) -> None:
        self._call(self.files.discard)

    def _call(self, work: Callable[[], T], size: int = 0) -> T:
        seconds = self.seconds + size / 2**20 * SECONDS_PER_MIB
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=run, name="store", daemon=True).start()
        try:
            return future.result(seconds)
        except Late:
            if future.done():  # the store's own TimeoutError
                raise
            raise TimeoutError(f"the store did not answer for {seconds:.0f} s") from None
