"""docs/faults.md names tests and scenarios that exist."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.chaos.schedule import Kind

ROOT = Path(__file__).parents[2]
MATRIX = (ROOT / "docs/faults.md").read_text(encoding="utf-8")


def test_every_fault_has_a_row() -> None:
    named = {int(number) for number in re.findall(r"F(\d+)", "".join(re.findall(r"^\| (F.*?) \|", MATRIX, re.M)))}
    assert named == set(range(1, 39))


def test_every_test_that_the_matrix_names_exists() -> None:
    missing, file = [], ""
    for named, test in re.findall(r"`([\w/.]+\.py|…)::(test_\w+)`", MATRIX):
        file = file if named == "…" else named
        path = ROOT / file if "/" in file else ROOT / "tests/acceptance" / file
        if f"def {test}(" not in path.read_text(encoding="utf-8"):
            missing.append(f"{file}::{test}")
    assert missing == []


def test_every_scenario_that_the_matrix_names_exists() -> None:
    assert set(re.findall(r"scenario `([^`]+)`", MATRIX)) <= {str(kind) for kind in Kind}
