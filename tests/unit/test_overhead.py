"""The figures of `benchmarks.overhead`, and how it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.overhead import __main__ as command
from benchmarks.overhead import figures, history

ROOT = Path(__file__).parents[2]


def log(**changes: Any) -> dict[str, Any]:
    waits = {"first": [], "take": [0.1, 0.3], "report": [0.02] * 4, "finish": [0.05, 0.15], "renew": [0.01] * 10}
    plain = {
        "waits": waits,
        "units": 2,
        "trained": 30.0,
        "away": 0,
        "fenced": 0,
        "idle": 0,
        "statements": 90,
        "cpu": 0.2,
    }
    return {**plain, **changes}


def test_quantiles_are_values_that_were_measured() -> None:
    assert figures.quantile([], 0.5) is None
    assert [figures.quantile([4.0, 1.0, 3.0, 2.0], share) for share in (0.5, 0.95, 1.0)] == [2.0, 4.0, 4.0]


def test_a_trial_is_a_minute_of_training_whatever_units_that_was() -> None:
    found = figures.of_window([log(), log()], wall=30.0, server_cpu=0.5)
    assert found["trials"] == 1.0
    assert found["waiting_per_trial"] == 1.36  # renewals are the renewer's, in a thread of its own
    assert found["share_of_1_minute_trials"] == 0.0227
    assert (found["client_cpu_per_trial"], found["server_cpu_per_trial"]) == (0.4, 0.5)
    assert found["cpu_share_of_1_minute_trials"] == 0.015
    assert found["statements_per_trial"] == 180
    assert found["waits"]["take"] == {"calls": 4, "mean": 0.2, "median": 0.1, "p95": 0.3, "max": 0.3}


def test_a_workers_first_take_counts_once_in_its_life() -> None:
    late = log(waits={**log()["waits"], "first": [156.25 * 0.6]})
    assert figures.of_window([late], wall=60.0, server_cpu=0.0)["share_of_1_minute_trials"] == 0.0327


def test_without_training_the_window_says_how_many_trials_are_possible() -> None:
    found = figures.of_window([log(trained=600.0)], wall=3.0, server_cpu=0.5, training=False)
    assert (found["trials_per_minute"], found["utilisation_by_64_workers"]) == (200.0, 0.32)


def test_a_window_without_a_trial_has_no_figures_for_each() -> None:
    found = figures.of_window([log(trained=0.0)], wall=3.0, server_cpu=0.5, training=False)
    assert found["waiting_per_trial"] is found["utilisation_by_64_workers"] is None


def test_growth_is_the_exponent() -> None:
    assert figures.growth((100, 0.1), (10_000, 10.0)) == 1.0
    assert figures.growth((100, 0.1), (10_000, 0.1)) == 0.0
    assert figures.growth((100, 0.1), (1000, 10.0)) == 2.0
    assert figures.growth((100, 0.0), (1000, 10.0)) is None


@pytest.mark.parametrize(("shares", "expected"), [([0.009], True), ([0.001, 0.02], False), ([None], False), ([], None)])
def test_the_limit_is_for_64_workers(shares: list[float | None], expected: bool | None) -> None:
    points = [{"workers": 64, "paced": {"share_of_1_minute_trials": share}} for share in shares]
    assert figures.holds([{"workers": 8, "paced": {"share_of_1_minute_trials": 0.5}}, *points]) is expected


def test_a_past_without_racing_is_complete_and_with_it_mostly_stopped() -> None:
    assert {history.state_of(index, racing=False) for index in range(100)} == {"complete"}
    states = [history.state_of(index, racing=True) for index in range(1000)]
    assert [states.count(state) for state in ("complete", "running", "stopped")] == [200, 100, 700]


def test_the_command_line() -> None:
    options, silent = command.parse(["--quick", "--workers", "2", "--json"])
    assert (options.workers, options.trials, silent) == ([2], [100, 1000], True)
    assert [kind.name for kind in options.kinds] == list(command.QUICK)
    assert command.parse([])[0].trials == [100, 1000, 10_000]
    with pytest.raises(SystemExit):
        command.parse(["--workers", "0"])


CREW = """
import multiprocessing, time
from benchmarks.overhead import __main__ as command, fleet

def window(*_, **__):
    print(*(process.pid for process in multiprocessing.active_children()), flush=True)
    time.sleep(600)

fleet._live, fleet._window = lambda *_: time.sleep(600), window
shift = fleet.Shift(
    url=None, postmaster=0, name="s", workers=3, unit_seconds=1, paced_seconds=1, flat_seconds=1, flat_trials=1
)
command.harness.run = lambda options: fleet.measure(shift)
command.main([])
"""


def test_sigterm_ends_the_workers_that_wait_for_each_other() -> None:
    with subprocess.Popen([sys.executable, "-c", CREW], stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        crew = process.stdout.readline().split()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 143
        assert len(crew) == 3
        assert not [pid for pid in crew if Path("/proc", pid).exists()]
