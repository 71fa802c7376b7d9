"""`python -m benchmarks.gap STUDY.yaml [--workers N]`: talk on stderr, one JSON object as the last line."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.chaos.postgres import Postgres
from benchmarks.chaos.report import machine, versions
from benchmarks.overhead.figures import quantile, spread

LIMIT = 0.1  # seconds
ROOT = Path(__file__).parents[2]


def gaps(events: Iterable[Mapping[str, Any]]) -> list[float]:
    """Seconds that each slot of one trainer was without work before it began the next unit, in order of time."""
    free: deque[float] = deque()  # when slots came free
    found = []
    for event in events:
        if event["event"] == "ended":
            free.append(event["time"])
        elif free:
            found.append(event["time"] - free.popleft())
    return found


def measure(study: Path, workers: int, log: Path, storage: str) -> list[float]:
    """The gaps of all workers while they train a study from its launch to its end.

    Raises:
        subprocess.CalledProcessError: it did not end well.
    """
    environment = {"FOLDTUNE_ENGINE": "benchmarks.gap.engine", "FOLDTUNE_LIGHT_LOG": str(log)}
    command = [sys.executable, "-m", "foldtune", "run", str(study), "--workers", str(workers), "--device", "cpu"]
    subprocess.run(
        command,
        check=True,
        stdout=sys.stderr,
        env={**os.environ, **environment, "OPTUNA_STORAGE": storage},
        cwd=ROOT,
    )
    trainers = [file.read_text(encoding="utf-8").splitlines() for file in sorted(log.glob("*.jsonl"))]
    return [gap for lines in trainers for gap in gaps(map(json.loads, lines))]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 1 where more than one gap in twenty is not under the limit."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gap", description=__doc__)
    parser.add_argument("study", type=Path, help="a study file")
    parser.add_argument("--workers", type=int, default=1, help="on this machine's CPU; default 1")
    chosen = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped and the folder removed
    folder = Path(tempfile.mkdtemp(prefix="foldtune-gap-", dir="/tmp"))
    folder.chmod(0o755)  # the server's account passes through
    os.environ.setdefault("FOLDTUNE_HOME", str(folder / "home"))
    load = [round(value, 2) for value in os.getloadavg()]
    try:
        postgres = Postgres(folder)
        try:
            (folder / "log").mkdir()
            storage = postgres.url.render_as_string(hide_password=False)
            found = measure(chosen.study.resolve(), chosen.workers, folder / "log", storage)
        finally:
            postgres.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    most = quantile(found, 0.95)
    holds = most is not None and most < LIMIT
    told = {"benchmark": "gap", "study": chosen.study.stem, "workers": chosen.workers, "holds": holds}
    where = {"machine": {**machine(), "load_before": load}, "versions": versions()}
    print(json.dumps({**told, "seconds": spread(found), **where}))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
