"""Recovery and waste, from the evidence alone; and who counts as an orphan."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Any

import pytest

from benchmarks.chaos.collect import disguises
from benchmarks.chaos.evidence import Attempt, Evidence, Result, WorkerRow, read_history
from benchmarks.chaos.measures import Kill, Recovery, in_peace, median, recoveries, wasted_fraction
from benchmarks.chaos.processes import Process
from benchmarks.chaos.watch import Watch


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(1000 + seconds, UTC)


def evidence(**parts: Any) -> Evidence:
    return Evidence(**{"expected": {}, "trials": (), "shown": (), "units": (), "results": (), **parts})


def attempt(unit: int, epoch: int, worker: int, granted: float, ended: float | None) -> Attempt:
    return Attempt(unit, epoch, worker, at(granted), None if ended is None else at(ended), None)


def test_recovery_counts_from_the_kill_to_the_next_lease() -> None:
    found = evidence(
        workers=[WorkerRow(1, 50, at(0)), WorkerRow(2, 51, at(0)), WorkerRow(3, 50, at(90))],
        attempts=[
            attempt(7, 1, 1, 5, 40),
            attempt(7, 2, 2, 41, None),
            attempt(8, 1, 1, 1, 4),  # over before the kill
            attempt(9, 1, 1, 6, 30),  # never leased again
        ],
    )
    [recovery] = recoveries(found, [Kill(1010, 50), Kill(1010, 99)])
    assert (recovery.seconds, recovery.claimable, recovery.unit, recovery.pid) == (31.0, 30.0, 7, 50)


def test_a_recovery_is_in_peace_where_nothing_was_away_from_before_the_kill_to_the_end_of_the_lease() -> None:
    one = Recovery(31.0, 30.0, 1000.0, 50, 7, 1, "vanished")
    assert in_peace([one], [(900.0, 979.0), (1031.0, 1040.0)]) == [one]
    for outage in ((985.0, 985.0), (960.0, 981.0), (1029.0, 1029.0)):
        assert in_peace([one], [outage]) == []


def test_waste_is_what_no_accepted_result_holds() -> None:
    results = [Result(1, 1, 1, 3.0, at(0)), Result(1, 2, 1, 4.5, at(0))]
    assert wasted_fraction(evidence(results=results, seconds_trained=10.0)) == pytest.approx(0.25)
    assert wasted_fraction(evidence()) == 0
    assert (median([]), median([3, 1, 2])) == (None, 2)


def test_a_trainer_without_its_supervisor_may_live_for_two_seconds() -> None:
    watch = Watch("", "canary", None)  # type: ignore[arg-type]
    watch.trainers = {11, 12}
    table = {
        10: Process(10, 1, "S", "python -m trial_worker s"),
        11: Process(11, 10, "S", "python -m trial_worker.trainer"),
        12: Process(12, 1, "S", "python -m trial_worker.trainer --canary"),
    }
    watch.look(table, 0.0)
    watch.look(table, 1.9)
    assert watch.orphans == []
    watch.look(table, 2.1)
    watch.look(table, 3.0)
    assert watch.orphans == ["trainer 12 has outlived its supervisor"]
    assert watch.secrets == {"the command line of process 12 holds the password"}


def test_a_history_ends_where_its_process_was_killed() -> None:
    line = '{"time": 1.5, "event": "accepted", "unit": 3, "lease_epoch": 2, "epoch": 1, "attempt": 2}\n'
    assert [note.epoch for note in read_history(9, line + line[:20])] == [1]
    with pytest.raises(ValueError, match="Expecting"):
        read_history(9, "{\n" + line)


def test_base64_does_not_hide_a_password() -> None:
    for before in ("", "a", "ab", "abc"):
        hidden = base64.b64encode(f"{before}canary-0123456789{before}".encode())
        assert any(form in hidden for form in disguises("canary-0123456789"))
