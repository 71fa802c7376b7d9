"""The light engine with an appetite: a unit's first step takes memory for each of its rows, as a real one's do."""

from __future__ import annotations

from typing import Any

from benchmarks.chaos import light
from benchmarks.chaos.light import Event, prepare, versions
from orchestrator.contract import OpenStudy, TrainUnit

__all__ = ["open_study", "prepare", "versions"]

BYTES_PER_ROW = 80 * 2**20


def open_study(message: OpenStudy, device: Any) -> Hungry:
    """A pack for this study."""
    return Hungry(light.open_study(message, device))


class Hungry:
    """A pack of one unit at a time."""

    slots = 1

    def __init__(self, pack: light.LightPack) -> None:
        self._pack = pack
        self._rows = 0
        self.drop, self.limit = pack.drop, pack.limit

    @property
    def free(self) -> int:
        return self._pack.free

    def add(self, unit: TrainUnit) -> None:
        batch = min(unit.settings.batch_size, len(unit.train))
        self._rows = batch if unit.most_rows is None else min(batch, unit.most_rows)
        self._pack.add(unit)

    def advance(self) -> list[Event]:
        eaten = bytearray(BYTES_PER_ROW * self._rows)
        eaten[:: 2**12] = b"\1" * len(eaten[:: 2**12])  # a page that nobody wrote to takes no memory
        self._rows = 0
        return self._pack.advance()
