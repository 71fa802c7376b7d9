"""When a worker takes its next unit, and what becomes of one that waits for its slot. No process, no database."""

from __future__ import annotations

import math
import queue
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from sqlalchemy import Engine

from benchmarks.gap.__main__ import gaps
from orchestrator.contract import Outcome, Progress, Settings, TrainUnit, UnitEnded
from orchestrator.devices import Device
from orchestrator.lifecycle import Cause
from orchestrator.records import Lease, StudyRecord
from trial_worker.ahead import AHEAD_SECONDS, KEEP_SECONDS, room
from trial_worker.child import Death
from trial_worker.desk import Desk, Lost, Taken
from trial_worker.foreman import Foreman
from trial_worker.line import Line
from trial_worker.spool import Spool
from trial_worker.station import Fallen

PLAN = SimpleNamespace(split=lambda repeat, fold: ((0, 1), (2,)))
SPEC = SimpleNamespace(seed=1, share_epochs=False)
RECORD = cast(StudyRecord, SimpleNamespace(id=1, name="s", plan=PLAN, spec=SPEC))


@pytest.mark.parametrize(
    ("to_go", "expected"),
    [
        ([], 2),
        ([math.inf, 60.0], 2),
        ([AHEAD_SECONDS, 60.0], 3),
        ([0.1, -0.1], 4),  # one for each slot that comes free; one that is a little late still counts
        ([-KEEP_SECONDS - 1, 60.0], 2),  # its trainer hangs, or begins its epoch anew
    ],
)
def test_a_unit_more_is_held_for_each_slot_that_is_free_soon(to_go: list[float], expected: int) -> None:
    assert room(2, to_go, within=AHEAD_SECONDS) == expected


class Workplace:
    """A foreman whose trainer only listens, with one slot and a study open."""

    def __init__(self, folder: Path) -> None:
        self.desk = Desk(
            engine=cast(Engine, None),
            worker=1,
            device=Device("cpu"),
            names=(),
            spool=Spool(folder / "1-1"),
            cache=folder,
            inbox=queue.Queue(),
            say=lambda _: None,
            line=Line(lambda _: None),
        )
        self.foreman = Foreman(self.desk)
        self.told: list[Any] = []
        self.trainer = cast(Any, SimpleNamespace(send=self.told.append))
        self.foreman.station.trainer, self.foreman.station.opened = self.trainer, RECORD.id

    def take(self, unit: int, *, charges: int = 0) -> Lease:
        """The clerk brings a unit."""
        lease = Lease(
            study=1,
            trial=unit,
            unit=unit,
            epoch=1,
            token=str(unit),
            repeat=0,
            fold=0,
            attempt=1,
            settings=Settings(),
            configuration="",
            seconds_left=None,
            charges=charges,
        )
        self.desk.hold(lease)
        self.foreman._handle(Taken(RECORD, lease, Path("rows"), None))
        self.foreman._arrange()
        return lease

    def progress(self, unit: int, to_go: float) -> int:
        """The trainer forecasts a unit's end; how many units are wanted then."""
        self.hear(Progress(unit=unit, epoch=1, step=1, steps=9, loss=1.0, to_go=to_go))
        return self.desk.wanted.slots

    def end(self, unit: int) -> None:
        self.hear(UnitEnded(unit=unit, lease_epoch=1, outcome=Outcome.DONE))

    def hear(self, message: Any) -> None:
        self.foreman._handle((self.trainer, message))
        self.foreman._arrange()

    @property
    def begun(self) -> list[int]:
        """Units that were handed over to the trainer."""
        return [message.unit for message in self.told if isinstance(message, TrainUnit)]

    @property
    def ends(self) -> list[tuple[int, str, str]]:
        """(unit, outcome, cause) of all that the database is to hear."""
        messages = [entry.delivery.message for entry in self.desk.spool._entries]
        return [(m.unit, m.outcome, m.cause) for m in messages if isinstance(m, UnitEnded)]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    place = Workplace(tmp_path)
    monkeypatch.setattr("trial_worker.foreman.Trainer", SimpleNamespace)  # what the foreman knows its trainer by
    return place


def test_the_next_unit_is_wanted_shortly_before_the_end_and_begins_at_once_then(workplace: Workplace) -> None:
    workplace.take(1)
    assert workplace.progress(1, to_go=60) == 1
    assert workplace.progress(1, to_go=1) == 2
    workplace.take(2)
    assert workplace.begun == [1]
    workplace.end(1)
    assert workplace.begun == [1, 2]
    assert workplace.desk.wanted.slots == 1  # nothing is known of the new one's end


def test_what_was_taken_far_too_early_is_given_back(workplace: Workplace) -> None:
    workplace.take(1)
    workplace.progress(1, to_go=1)
    workplace.take(2)
    workplace.progress(1, to_go=KEEP_SECONDS - 1)
    assert workplace.ends == []
    workplace.progress(1, to_go=60)
    assert workplace.ends == [(2, Outcome.DROPPED, Cause.RELEASED)]
    workplace.end(1)
    assert workplace.begun == [1]


def test_a_unit_that_is_lost_while_it_waits_never_begins(workplace: Workplace) -> None:
    workplace.take(1)
    workplace.progress(1, to_go=1)
    lease = workplace.take(2)
    workplace.foreman._handle(Lost(lease, "its trial was stopped", closed=True))
    workplace.end(1)
    assert workplace.begun == [1]
    assert workplace.ends == [(1, Outcome.DONE, "")]


def test_a_charged_unit_has_no_company_that_waits(workplace: Workplace) -> None:
    workplace.take(1, charges=1)
    assert workplace.progress(1, to_go=1) == 0


def test_a_crash_is_charged_to_the_unit_that_trained_not_halved_with_the_one_that_waits(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    workplace.take(1)
    workplace.progress(1, to_go=1)
    workplace.take(2)
    death = Death("the trainer process ended: exit code 1", None, "")
    monkeypatch.setattr(workplace.foreman.station, "fallen", lambda: Fallen(Cause.CRASH, death, None))
    workplace.foreman._handle((workplace.trainer, None))
    assert workplace.ends == [(1, Outcome.FAILED, Cause.CRASH)]
    workplace.foreman._arrange()
    assert workplace.begun == [1, 2]


def test_gaps_of_several_slots_are_each_slots_own() -> None:
    said = [("began", 1, 0.0), ("began", 2, 0.0), ("ended", 1, 5.0), ("ended", 2, 6.0), ("began", 3, 7.0)]
    said += [("began", 4, 8.5), ("ended", 3, 9.0)]
    assert gaps({"event": event, "unit": unit, "time": time} for event, unit, time in said) == [2.0, 2.5]
