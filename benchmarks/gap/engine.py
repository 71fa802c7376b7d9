"""The engine itself, which writes down when each unit's first step begins and when its last work is done.

The supervisor starts the trainer with it where FOLDTUNE_ENGINE=benchmarks.gap.engine. FOLDTUNE_LIGHT_LOG, a name that
reaches the trainer, is the folder to write to: a file for each trainer, a line for each event.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import torch

from orchestrator.contract import OpenStudy, UnitEnded
from trial_worker import engine
from trial_worker.engine import Pack, PackEvent, prepare, versions
from trial_worker.engine.slot import Slot

__all__ = ["open_study", "prepare", "versions"]


class TimedPack(Pack):
    """A pack beside a clock."""

    def advance(self) -> list[PackEvent]:
        events = super().advance()
        for event in events:
            if isinstance(event, UnitEnded):
                _note("ended", event.unit)
        return events

    def _next_epoch(self, slot: Slot) -> list[PackEvent]:
        events = super()._next_epoch(slot)
        if slot.at.epoch == 0:
            _note("began", slot.unit.unit)
        return events


def open_study(study: OpenStudy, device: torch.device) -> TimedPack:
    """As the engine's."""
    pack = engine.open_study(study, device)
    return TimedPack(pack.base, pack.rows)


def _note(event: str, unit: int) -> None:
    line = {"event": event, "unit": unit, "time": time.monotonic()}
    with (Path(os.environ["FOLDTUNE_LIGHT_LOG"]) / f"{os.getpid()}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
