"""Faults planted in the light engine by FOLDTUNE_LIGHT_FAULT, for tests of what happens to a poison unit.

`KIND[:NAME=VALUE][@STEP]`, several joined by `;`: when a unit whose settings say NAME=VALUE is about to do its STEP-th
step (default 1), one of these happens:

    abort  the trainer's process aborts            kill   it is killed, as the kernel does for memory
    hang   the step never ends                     exit   it exits with code 3
    raise  the unit raises an exception            nan    its loss is not finite
    oom    it does not fit into the device's memory
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.contract import Outcome, Settings

KINDS = frozenset({"abort", "hang", "raise", "nan", "oom", "kill", "exit"})


class Stopped(Exception):
    """A unit ends early with this outcome."""

    def __init__(self, outcome: Outcome, reason: str) -> None:
        super().__init__(reason)
        self.outcome = outcome


@dataclass(frozen=True, kw_only=True)
class Planted:
    """One fault and the units it is for."""

    kind: str
    name: str = ""  # of a setting; empty: every unit
    value: str = ""
    step: int = 1

    def meant_for(self, settings: Settings, step: int) -> bool:
        """Whether it happens to a unit with these settings at this step."""
        if step != self.step:
            return False
        if not self.name:
            return True
        found = getattr(settings, self.name)
        return str(found) == self.value or (isinstance(found, int | float) and float(found) == _number(self.value))


def parse(text: str) -> tuple[Planted, ...]:
    """The faults that the variable names.

    Raises:
        ValueError: no such kind, setting or step.
    """
    found = []
    for part in filter(None, (part.strip() for part in text.split(";"))):
        head, _, step = part.partition("@")
        kind, _, condition = head.partition(":")
        name, _, value = condition.partition("=")
        if kind not in KINDS or (name and name not in Settings.__dataclass_fields__):
            raise ValueError(f"FOLDTUNE_LIGHT_FAULT must be KIND[:SETTING=VALUE][@STEP] — got {part!r}")
        found.append(Planted(kind=kind, name=name, value=value, step=int(step or 1)))
    return tuple(found)


def happen(faults: Sequence[Planted], settings: Settings, step: int) -> None:
    """Do to this process or unit what is planted for it.

    Raises:
        Stopped: nan, oom. RuntimeError: raise.
    """
    for fault in faults:
        if fault.meant_for(settings, step):
            _do(fault.kind, step)


def _do(kind: str, step: int) -> None:
    match kind:
        case "abort":
            os.abort()
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(3)
        case "hang":
            while True:
                time.sleep(3600)
        case "nan":
            raise Stopped(Outcome.DIVERGED, f"loss nan at step {step}")
        case "oom":
            raise Stopped(Outcome.INFEASIBLE, f"planted: out of memory at step {step}")
        case _:
            raise RuntimeError(f"planted at step {step}")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
