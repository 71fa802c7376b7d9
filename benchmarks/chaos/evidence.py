"""What a run left behind, as frozen values: tables, histories, files. The checker decides on nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class Trial:
    """A row of foldtune's table."""

    id: int
    number: int | None
    in_space: bool
    configuration: str
    state: str
    value: float | None
    duplicate_of: int | None
    generation: int
    told: bool
    params: Mapping[str, Any]


@dataclass(frozen=True)
class Shown:
    """A trial as Optuna has it."""

    number: int
    state: str
    value: float | None
    key: str | None
    params: Mapping[str, Any]


@dataclass(frozen=True)
class Unit:
    id: int
    trial: int
    state: str
    lease_epoch: int
    charges: int


@dataclass(frozen=True)
class Result:
    unit: int
    epoch: int
    lease_epoch: int
    seconds: float
    reported_at: datetime


@dataclass(frozen=True)
class Attempt:
    unit: int
    lease_epoch: int
    worker: int | None
    granted_at: datetime
    ended_at: datetime | None
    cause: str | None


@dataclass(frozen=True)
class WorkerRow:
    id: int
    pid: int
    started_at: datetime


@dataclass(frozen=True)
class Artifact:
    """found: sha256 of the bytes that are really there; None: there are none."""

    id: int
    unit: int
    kind: str
    epoch: int
    step: int
    sha256: str
    found: str | None
    doomed: bool


@dataclass(frozen=True)
class Witnessed:
    """A line of witness.event."""

    seq: int
    at: datetime
    what: str
    trial: int | None
    unit: int | None
    epoch: int | None
    lease_epoch: int | None
    live_epoch: int | None
    state: str | None


@dataclass(frozen=True)
class Noted:
    """A line of a worker's own history."""

    pid: int
    time: float
    event: str
    unit: int
    lease_epoch: int
    epoch: int | None = None

    @property
    def lease(self) -> tuple[int, int]:
        return self.unit, self.lease_epoch


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything the checker looks at. `stuck`, `secrets` and `orphans` are findings made while the run lasted."""

    expected: Mapping[str, float]  # configuration -> value of the undisturbed study
    trials: Sequence[Trial]
    shown: Sequence[Shown]
    units: Sequence[Unit]
    results: Sequence[Result]
    attempts: Sequence[Attempt] = ()
    workers: Sequence[WorkerRow] = ()
    artifacts: Sequence[Artifact] = ()
    strays: Sequence[str] = ()  # old files in the store that no row names
    witnessed: Sequence[Witnessed] | None = None  # None: no witness was installed
    history: Sequence[Noted] = ()
    stuck: Sequence[str] = ()
    secrets: Sequence[str] = ()
    orphans: Sequence[str] = ()
    exits: Sequence[str] = ()  # workers that ended as none should
    seconds_trained: float = 0.0  # device seconds of every step, kept or lost


def read_history(pid: int, text: str) -> list[Noted]:
    """The lines of one history file. The last may be torn: its process was killed while it wrote.

    Raises:
        ValueError: another line is no history.
    """
    lines = text.split("\n")
    found = []
    for line in lines[:-1]:
        raw = json.loads(line)
        found.append(Noted(pid, raw["time"], raw["event"], int(raw["unit"]), int(raw["lease_epoch"]), raw.get("epoch")))
    return found
