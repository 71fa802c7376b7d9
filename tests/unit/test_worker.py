"""What a worker decides and keeps: suspects, verdicts, the spool, a trainer's last words. No process, no database."""

from __future__ import annotations

import io
import os
import threading
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.exc import OperationalError

from orchestrator.contract import Checkpoint, EpochDone, Outcome, Predictions, Settings, UnitEnded, encode
from orchestrator.database.engine import readable_errors
from orchestrator.errors import UNAVAILABLE, FoldtuneError
from orchestrator.lifecycle import PATIENCE, Cause
from orchestrator.records import Lease
from trial_worker import line, suspects
from trial_worker.child import Trainer
from trial_worker.line import Line
from trial_worker.spool import BATCH, Delivery, Spool, orphans
from trial_worker.suspects import Suspects, Verdict

LEASE = Lease(
    study=1,
    trial=1,
    unit=7,
    epoch=1,
    token="a",
    repeat=0,
    fold=0,
    attempt=1,
    settings=Settings(target_modules=("q", "v")),
    configuration="",
    seconds_left=None,
)
ENDED = UnitEnded(unit=7, lease_epoch=1, outcome=Outcome.DONE)


def epoch(number: int, lease: Lease = LEASE) -> Delivery:
    """One epoch's result on its way."""
    done = EpochDone(
        unit=lease.unit,
        lease_epoch=lease.epoch,
        epoch=number,
        train_loss=1 / 3,
        seconds=0.1,
        tallies={"nats": 1 / 7, "items": 3},
        predictions=Predictions(nats="", counts=""),
    )
    return Delivery("s", lease, done)


# --- suspects ---


@given(units=st.integers(2, 64), data=st.data())
def test_halves_find_the_poison_unit_and_clear_all_others(units: int, data: st.DataObject) -> None:
    """In at most log2(n) more crashes; the guilty one is alone when it is charged."""
    poison = data.draw(st.integers(0, units - 1))
    held = list(range(units))
    found, running, crashes = Suspects(), held, 0
    while not (len(running) == 1 and running[0] == poison):
        if poison in running:
            crashes += 1
            found = found.after_crash(running)
        else:
            for unit in running:
                found = found.cleared(unit)
        running = found.may_run(held)
        assert running
    assert crashes <= (units - 1).bit_length()
    assert found.cleared(poison).may_run(held)


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(2, 10))
def test_every_suspect_gets_its_turn(cleared: list[int], units: int) -> None:
    found = Suspects().after_crash(list(range(units)))
    for unit in cleared:
        found = found.cleared(unit)
    turns = [unit for group in found.groups for unit in group]
    assert sorted(turns) == sorted(set(range(units)) - set(cleared))
    assert bool(found) == bool(turns)


@pytest.mark.parametrize(
    ("cause", "units", "kills", "expected"),
    [
        (Cause.CRASH, 1, 0, Verdict.CHARGED),
        (Cause.HANG, 1, 0, Verdict.CHARGED),
        (Cause.CRASH, 8, 0, Verdict.HALVES),
        (Cause.HANG, 8, 0, Verdict.HALVES),
        (Cause.KILLED, 1, 1, Verdict.AGAIN),
        (Cause.KILLED, 8, PATIENCE - 1, Verdict.AGAIN),
        (Cause.KILLED, 8, PATIENCE, Verdict.HALVES),
        (Cause.KILLED, 1, PATIENCE, Verdict.CHARGED),
        (Cause.MEMORY, 1, 0, Verdict.SMALLER),
        (Cause.MEMORY, 2, 0, Verdict.HALVES),
    ],
)
def test_only_what_fails_alone_is_charged(cause: Cause, units: int, kills: int, expected: Verdict) -> None:
    assert suspects.verdict(cause, units=units, kills=kills) == expected


def test_fewer_rows_end_at_one() -> None:
    rows: int | None = None
    seen = []
    while (rows := suspects.fewer_rows(rows, 32)) is not None:
        seen.append(rows)
    assert seen == [8, 2, 1]


@pytest.mark.parametrize(
    ("streak", "proven", "others", "expected"),
    [
        ([1, 2, 3], True, 0, True),  # three different trials in a row
        ([1, 1, 1], True, 5, False),  # one poison trial
        ([1, 1, 1], False, 1, True),  # nothing ever succeeded here, and others can try
        ([1, 1, 1], False, 0, False),  # nobody else: the trial is judged
        ([1, 2], False, 3, False),
    ],
)
def test_a_machine_is_at_fault_when_everything_fails_on_it(
    streak: list[int], proven: bool, others: int, expected: bool
) -> None:
    assert suspects.machine_at_fault(streak, proven=proven, others=others) == expected


# --- the spool ---


def test_what_waits_survives_the_process_in_order_and_bit_for_bit(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "1-1")
    added = [epoch(1), epoch(2), Delivery("s", LEASE, ENDED)]
    for delivery in added:
        spool.add(delivery)
    assert list(orphans(tmp_path)) == []  # its owner lives
    os.close(spool._lock)  # as the end of the process does
    [(worker, left)] = orphans(tmp_path)
    assert worker == 1
    found = []
    while batch := left.batch():
        found += [entry.delivery for entry in batch]
        left.remove(batch)
    assert found == added
    left.close()
    assert not (tmp_path / "1-1").exists()


def test_epochs_of_one_lease_travel_together_and_nothing_else_does(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    other = replace(LEASE, unit=8, token="b")
    for delivery in (epoch(1), epoch(2), epoch(1, other), Delivery("s", other, ENDED), epoch(3)):
        spool.add(delivery)
    sizes = []
    while batch := spool.batch():
        sizes.append(len(batch))
        spool.remove(batch)
    assert sizes == [2, 1, 1, 1]
    for number in range(2 * BATCH):
        spool.add(epoch(number + 1))
    assert len(spool.batch()) == BATCH


def test_an_entry_that_was_cut_off_is_passed_over(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "1-1")
    spool.add(epoch(1))
    (tmp_path / "1-1" / "00000002.json").write_text('{"study": "s", "lea')
    os.close(spool._lock)
    assert [len(left) for _, left in orphans(tmp_path)] == [1]


def test_without_room_on_the_disk_results_wait_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("orchestrator.durable.write", full)
    failure = spool.add(epoch(1))
    assert failure is not None
    assert failure.strerror == "No space left on device"
    assert [entry.delivery for entry in spool.batch()] == [epoch(1)]


def test_files_of_a_unit_go_when_a_newer_checkpoint_is_stored(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    names = ["resume-unit7-e1-s4.safetensors", "u7-l1-e2-s8.safetensors", "u7-l1-e3-s12.safetensors"]
    names += ["u7-l1-e4-s16.safetensors.99.tmp", "u8-l1-e1-s4.safetensors"]
    for name in names:
        (tmp_path / name).touch()
    stored = Checkpoint(path="", sha256="", bytes=0, kind="resume", epoch=3, step=12)
    spool.clear_files(LEASE, before=stored)
    assert sorted(file.name for file in tmp_path.glob("*u*")) == names[2:]
    spool.clear_files(LEASE)
    assert [file.name for file in tmp_path.glob("*u*")] == names[4:]


# --- the line to the database ---


def test_an_outage_is_told_once_with_the_time_of_giving_up_and_its_end_too(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("tenacity.wait_random_exponential.__call__", lambda *_: 0.001)
    database = Line(said.append)
    left = [FoldtuneError("Postgres is away", code=UNAVAILABLE)] * 4

    def call() -> str:
        if left:
            raise left.pop()
        return "done"

    assert database.persist(call) == "done"
    assert len(said) == 2
    assert said[0].startswith("Postgres is away; training goes on, results wait on this machine; giving up at ")
    assert said[1].startswith("the database answers again after ")


def test_a_worker_that_leaves_does_not_wait_for_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "GIVE_UP_SECONDS", 600.0)
    database = Line(lambda _: None)

    def away() -> None:
        raise FoldtuneError("away", code=UNAVAILABLE)

    threading.Timer(0.1, database.closing.set).start()
    with pytest.raises(FoldtuneError, match="away"):
        database.persist(away)


def test_a_failure_that_is_no_outage_is_not_tried_again() -> None:
    calls = []

    def wrong() -> None:
        calls.append(1)
        raise FoldtuneError("a bug")

    with pytest.raises(FoldtuneError, match="a bug"):
        Line(lambda _: None).persist(wrong)
    assert len(calls) == 1


def test_a_lost_database_is_known_behind_whatever_optuna_makes_of_it() -> None:
    def optuna() -> None:
        try:
            raise OperationalError("SELECT 1", {}, Exception("server closed the connection unexpectedly"))
        except OperationalError:
            raise UnboundLocalError("updated_state")  # noqa: B904

    with pytest.raises(FoldtuneError, match="closed the connection") as error, readable_errors():
        optuna()
    assert error.value.code == UNAVAILABLE
    with pytest.raises(UnboundLocalError), readable_errors():
        raise UnboundLocalError("a bug of our own")


# --- a trainer's last words ---


def test_half_a_line_of_a_killed_trainer_ends_its_messages() -> None:
    """Else the supervisor would wait for ever, renew its lease and keep the unit from everybody."""
    heard: list[Any] = []
    killed = Trainer.__new__(Trainer)
    killed.log = deque()
    killed._hear = lambda _, message: heard.append(message)
    killed._read(io.StringIO(encode(ENDED) + "\n" + encode(ENDED)[:30]))
    assert heard == [ENDED, None]
    assert "not a message" in killed.log[0]
