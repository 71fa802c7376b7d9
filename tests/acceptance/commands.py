"""The real program in real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests import tiny_models

ROOT = Path(__file__).parents[2]
FOLDTUNE = [sys.executable, "-m", "foldtune"]

STUDY = """
study: {name}
model: {{path: ./model}}
task: classification
data: {{path: rows.jsonl}}
cross_validation: {{folds: 2}}
baselines: []
training: {{target_modules: [query, value], max_length: 16, epochs: {epochs}}}
search:
  sampler: grid
  space:
    learning_rate: [1e-3, 1e-2]
    batch_size: [4, 8]
racing: {{rule: none}}
"""


def foldtune(*arguments: str, timeout: float = 240, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        [*FOLDTUNE, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **environment},
        cwd=ROOT,
        check=False,
    )


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start one command in a process group of its own."""
    return subprocess.Popen(
        [*FOLDTUNE, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        cwd=ROOT,
        start_new_session=True,
    )


def grid_study(folder: Path, *, name: str = "tiny", epochs: int = 2) -> Path:
    """A grid of four points on a BERT with random weights and 24 rows: seconds, but the whole way."""
    (folder / "model").mkdir(parents=True, exist_ok=True)
    tiny_models.save_bert(folder / "model")
    rows = tiny_models.classification_rows(24)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    path = folder / f"{name}.yaml"
    path.write_text(STUDY.format(name=name, epochs=epochs), encoding="utf-8")
    return path


def wait_until(true: Callable[[], bool], *, seconds: float = 60) -> None:
    """Poll until it is true; fail when it takes too long."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not become true in time"
        time.sleep(0.1)


def children(pid: int) -> list[int]:
    """Process ids of the living children of a process."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(status.parent.name))
    return found


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
