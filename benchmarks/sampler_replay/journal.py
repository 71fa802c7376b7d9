"""The units that are recorded so far: one line each, appended, on the disk before the next is begun."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.sampler_replay.table import Place, Unit, unit_from_json

Key = tuple[str, Place]  # (digest of the run, (repeat, fold))


class Journal:
    """units: what is there. counts: (repeat, fold) -> labels or tokens of each validation item, base64."""

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Begin the file, or go on with it; a last line that was torn goes.

        Raises:
            ValueError: it was begun for something else, or a line in it is none of ours.
        """
        self.path = path
        self.units: dict[Key, Unit] = {}
        self.counts: dict[Place, str] = {}
        whole = path.read_bytes() if path.exists() else b""
        whole = whole[: whole.rfind(b"\n") + 1]
        header, *lines = whole.splitlines() or [b""]
        if header:
            self._refuse_another(json.loads(header), identity)
        for line in lines:
            self._take(json.loads(line))
        self._file = path.open("ab")
        self._file.truncate(len(whole))
        if not header:
            self._write({"identity": dict(identity)})

    def add(self, run: str, place: Place, unit: Unit, counts: str) -> None:
        """One more unit; on the disk when this returns.

        Raises:
            ValueError: other items than another run had on that fold.
        """
        raw = {"run": run, "repeat": place[0], "fold": place[1], "counts": counts, **unit.to_json()}
        self._take(raw)
        self._write(raw)

    def close(self) -> None:
        """Nothing more is added."""
        self._file.close()

    def _take(self, raw: Mapping[str, Any]) -> None:
        place = raw["repeat"], raw["fold"]
        if raw["counts"] and self.counts.setdefault(place, raw["counts"]) != raw["counts"]:
            raise ValueError(f"{self.path.name}: run {raw['run'][:12]} has other items than others on {place}")
        self.units[raw["run"], place] = unit_from_json(raw)

    def _write(self, raw: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(raw, separators=(",", ":"), allow_nan=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _refuse_another(self, header: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
        was = header.get("identity", {})
        if differing := sorted(name for name in {*was, *identity} if was.get(name) != identity.get(name)):
            raise ValueError(
                f"{self.path} was begun with another {', '.join(differing)}; move it away, or record into another file"
            )
