"""What self-training has come to, as files on this machine: logits of stages that are over, the state of one under way.

A stage's files are named by the sha256 of all that its numbers depend on: the inner unit, the model, the rows that it
trains on and is scored on, and those that were made.
"""

from __future__ import annotations

import base64
import contextlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from orchestrator import durable
from orchestrator.contract import Checkpoint, ModelPin, digest
from trial_worker.engine import state
from trial_worker.engine.courses import Train
from trial_worker.tasks.rows import Rows


class StageFiles:
    """folder: where they are; None: nothing is kept."""

    def __init__(self, folder: Path | None, rows: Rows, pin: ModelPin) -> None:
        self.folder = folder
        self._rows = rows
        self._pin = pin

    def logits(self, stage: Train) -> np.ndarray | None:
        """(validation, classes) float32 of a stage that is over; None: there are none, or they are damaged."""
        if self.folder is None:
            return None
        shape = (len(stage.unit.validation), len(self._rows.task.labels))
        try:
            kept = json.loads(self._path(stage, "logits").read_text(encoding="utf-8"))
            logits = np.frombuffer(base64.b64decode(kept["logits"]), "<f2").reshape(shape)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return np.asarray(logits, np.float32)

    def over(self, stage: Train, logits: np.ndarray) -> None:
        """Keep what a stage gave, in float16, which is all it was told in."""
        if self.folder is not None:
            packed = base64.b64encode(logits.astype("<f2").tobytes()).decode("ascii")
            durable.write(self._path(stage, "logits"), json.dumps({"logits": packed}).encode())
            for kind in ("resume", "state"):
                self._path(stage, kind).unlink(missing_ok=True)

    def underway(self, stage: Train, checkpoint: Checkpoint | None) -> None:
        """Keep the state that a stage wrote in place of the one before; where there is no room, it begins anew."""
        if self.folder is None or checkpoint is None:
            return
        written, place = Path(checkpoint.path), self._path(stage, "state")
        with contextlib.suppress(OSError):
            if checkpoint.kind != "resume":
                written.unlink()
                return
            written.replace(place)
            durable.write(self._path(stage, "resume"), json.dumps(asdict(checkpoint)).encode())

    def begun(self, stage: Train) -> Train:
        """The stage, to write its states, and to go on from the one that is kept; a damaged one is passed over."""
        if self.folder is None:
            return stage
        self.folder.mkdir(parents=True, exist_ok=True)
        unit = replace(stage.unit, scratch=str(self.folder))
        try:
            kept = Checkpoint(**json.loads(self._path(stage, "resume").read_text(encoding="utf-8")))
            checkpoint = replace(kept, path=str(self._path(stage, "state")))
            state.read(checkpoint, state.identity(unit, self._pin))
        except (OSError, ValueError, TypeError):
            return replace(stage, unit=unit)
        return replace(stage, unit=replace(unit, resume=checkpoint))

    def _path(self, stage: Train, kind: str) -> Path:
        unit = stage.unit
        said = [self._rows.raw[number] for number in (*unit.train, *unit.validation)]
        name = digest([state.identity(unit, self._pin), said, [one.row for one in stage.made]])
        return (self.folder or Path()) / f"{name}.{kind}"
