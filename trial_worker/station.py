"""The trainer process, and what its signs of life say: start it, talk to it, end it when it hangs, say why it died."""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from orchestrator.contract import OpenStudy, Ready, StudyOpened, StudyRefused
from orchestrator.lifecycle import Cause
from trial_worker import kernel
from trial_worker.child import Death, Trainer

OPEN_SECONDS = 1200.0  # a large model may download for long before the first sign of life
HANG_SECONDS = float(os.environ.get("FOLDTUNE_HANG_SECONDS", 300))  # without any sign of life while units train
HANG_PAUSES = 10  # or so many usual pauses between two signs of life, if that is longer


@dataclass(frozen=True)
class Fallen:
    """A trainer that ended. opening: the study it was loading."""

    cause: Cause | None  # None: this process ended it on purpose
    death: Death
    opening: int | None


class Station:
    """At most one trainer on one device.

    hear: called with (trainer, message) from a thread; None as message: it has ended.
    """

    def __init__(self, device: str, hear: Callable[[Trainer, Any], None]) -> None:
        self._device = device
        self._hear = hear
        self.trainer: Trainer | None = None
        self.opening: int | None = None  # study that is being loaded
        self.opened: int | None = None
        self.model: str | None = None  # of the study that is being loaded or open: which of several
        self.slots = 1
        self.versions = "no trainer yet"
        self.device = ""
        self._ended_for: Cause | None = None
        self._on_purpose = False
        self._oom_kills = 0
        self._heard = 0.0  # the last sign of life
        self._pauses: deque[float] = deque(maxlen=50)

    def start(self) -> None:
        """Start a trainer if there is none."""
        if self.trainer is None:
            self.trainer = Trainer(self._device, self._hear)
            self.opened = self.opening = self._ended_for = None
            self._on_purpose = False
            self._oom_kills = kernel.oom_kills()
            self.excuse()

    def open(self, message: OpenStudy, model: str | None = None) -> None:
        """Have it load a study in place of the last one's. model: its path, where the study has several."""
        self.opening, self.opened, self.model = message.study, None, model
        self.ask(message)

    def ask(self, message: Any) -> None:
        """Hand over a message that takes the trainer its time; nothing happens without a trainer."""
        self.excuse()
        self.tell(message)

    def tell(self, message: Any) -> None:
        """Hand over a message that is no reason for silence."""
        if self.trainer is not None:
            self.trainer.send(message)

    def excuse(self) -> None:
        """What was asked for now, or was stopped together with us, cannot be late yet."""
        self._heard = time.monotonic()

    def heard(self, message: Any) -> None:
        """A sign of life; what it says of the trainer itself is taken down."""
        now = time.monotonic()
        self._pauses.append(now - self._heard)
        self._heard = now
        if isinstance(message, Ready):
            self.device = message.device
            self.versions = f"torch {message.torch}, transformers {message.transformers}, peft {message.peft}"
        elif isinstance(message, StudyOpened):
            self.opened, self.opening, self.slots = message.study, None, message.slots
            self._pauses.clear()
        elif isinstance(message, StudyRefused):
            self.opening = None

    def overdue(self, now: float, *, busy: bool) -> float | None:
        """Seconds of silence, if they are too many for what the trainer is at; busy: it has units."""
        if self.trainer is None or self._ended_for is not None or self._on_purpose:
            return None
        usual = HANG_PAUSES * median(self._pauses) if self._pauses else 0.0
        allowed = OPEN_SECONDS if self.opening is not None else max(HANG_SECONDS, usual)
        silent = now - self._heard
        return silent if silent > allowed and (busy or self.opening is not None) else None

    def end_hung(self) -> None:
        """Have it print its stacks, and kill it; `fallen` follows when its end is heard."""
        if self.trainer is not None:
            self._ended_for = Cause.HANG
            self.trainer.dump_and_kill()

    def end_on_purpose(self) -> None:
        """Kill it, whatever it trains; `fallen` follows when its end is heard."""
        if self.trainer is not None:
            self._on_purpose = True
            self.trainer.kill()

    def fallen(self) -> Fallen:
        """The trainer's end was heard: why it came. There is none afterwards."""
        assert self.trainer is not None
        death = self.trainer.death()
        if self._on_purpose:
            cause = None
        elif self._ended_for is not None:
            cause = self._ended_for
        elif death.signal != signal.SIGKILL:
            cause = Cause.CRASH
        else:
            cause = Cause.MEMORY if kernel.oom_kills() > self._oom_kills else Cause.KILLED
        found = Fallen(cause, death, self.opening)
        self.trainer, self.opened, self.opening = None, None, None
        return found

    def close(self, *, hurry: bool) -> None:
        """End the trainer, if there is one."""
        if self.trainer is not None:
            self.trainer.kill() if hurry else self.trainer.stop()
            self.trainer = None
