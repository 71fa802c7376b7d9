"""A short storm: processes killed, frozen and cut off, Postgres crashed; nothing lost, doubled, invented or stuck."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.chaos import processes
from tests.acceptance.commands import ROOT

CHAOS = [sys.executable, "-m", "benchmarks.chaos"]
ZERO = ("lost", "duplicated", "invented", "stuck", "stale_accepted", "different")
SECONDS = 600  # the storm takes about one minute on two idle cores


def environment() -> dict[str, str]:
    """Without what the test session sets for itself: the run has a home and a server of its own."""
    return {name: value for name, value in os.environ.items() if name != "FOLDTUNE_SYSTEM_HOME"}


def chaos(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CHAOS, *arguments], capture_output=True, text=True, cwd=ROOT, env=environment(), timeout=SECONDS, check=False
    )


@pytest.mark.parametrize(
    "options",
    [("--seed", "5", "--kills", "8", "--workers", "4", "--trials", "6", "--epoch-seconds", "0.6")],
    ids=["8 kills"],
)
def test_a_storm_leaves_no_trace_in_the_results(options: tuple[str, ...]) -> None:
    done = chaos(*options, "--limit", "400")
    assert done.stdout, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["violations"] == [], done.stderr
    assert {name: found[name] for name in ZERO} == dict.fromkeys(ZERO, 0)
    assert done.returncode == 0
    assert found["kills"] >= 8
    assert found["trials"] == 7
    assert found["recoveries"] == 0 or found["recovery_p50_s"] < 45


@pytest.mark.slow  # it is a test of the benchmark; test_processes.py has the program's own Ctrl-C
def test_ctrl_c_ends_every_process_of_a_run_and_removes_its_folder(tmp_path: Path) -> None:
    talk = tmp_path / "talk"
    with talk.open("w") as file:
        run = subprocess.Popen(
            [*CHAOS, "--kills", "0", "--workers", "2", "--trials", "60"],
            stdout=subprocess.DEVNULL,
            stderr=file,
            cwd=ROOT,
            env=environment(),
        )
    deadline = time.monotonic() + 120
    while "2 workers started" not in talk.read_text():
        assert time.monotonic() < deadline, talk.read_text()
        time.sleep(0.2)
    [folder] = re.findall(r"working in (\S+)", talk.read_text())
    started = ours(folder)
    assert len(started) >= 2
    run.send_signal(signal.SIGINT)
    assert run.wait(60) == 130
    assert not Path(folder).exists()
    time.sleep(0.5)  # trainers end with their supervisors
    assert ours(folder) == set()
    assert [pid for pid in started if processes.alive(pid)] == []


def ours(folder: str) -> set[int]:
    """Living processes of a run: its workers and trainers by their environment, its server by where it works."""
    found = set()
    for pid in processes.table():
        try:
            where = os.readlink(f"/proc/{pid}/cwd")
        except OSError:
            continue
        if where.startswith(folder) or processes.belongs_to(pid, folder):
            found.add(pid)
    return found
