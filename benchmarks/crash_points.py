"""Die at every statement, commit, write, fsync and rename of a small study's life: `python -m benchmarks.crash_points`.

`make test` visits the first of each kind of our own statements; this visits every single one, Optuna's too, and prints
one JSON object as its last line. Two or three seconds of CPU time for each of some 2,000 places, shared by
--jobs processes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.chaos.report import versions
from tests import postgres as servers
from tests.conftest import _prepare
from tests.database.crash_scenario import __name__ as scenario

ROOT = Path(__file__).parents[1]


def visit(server: str, template: str, folder: Path, jobs: int, pattern: str) -> list[dict[str, Any]]:
    """Every place that the pattern finds, dealt out to so many processes; what each of them found."""
    started = []
    for share in range(jobs):
        home = folder / f"share-{share}"
        home.mkdir()
        command = [sys.executable, "-m", scenario, server, template, str(home), str(share), str(jobs), pattern]
        environment = {**os.environ, "FOLDTUNE_HOME": str(home / "home"), "OMP_NUM_THREADS": "1"}
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment))
    found = []
    for process in started:
        out, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"a share ended with {process.returncode}")
        found.append(json.loads(out))
    return found


def main() -> int:
    """Visit all places; 0 if every death healed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crash_points", description=__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="processes beside each other (2)")
    parser.add_argument("--only", default="", metavar="REGEX", help="places whose names it finds (all)")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="foldtune-crash-points-", dir="/tmp"))
    began = time.monotonic()
    try:
        server = servers.session_server(root)
        template = servers.ensure_template(server, "ready", _prepare)
        found = visit(server, template, root, options.jobs, options.only)
    finally:
        servers.end_session_server(root)
        shutil.rmtree(root, ignore_errors=True)
    problems = {place: said for part in found for place, said in part["problems"].items()}
    report = {
        "places": found[0]["places"],
        "only": options.only,
        "visited": sum(part["visited"] for part in found),
        "survived": [place for part in found for place in part["survived"]],
        "violations": problems,
        "seconds": round(time.monotonic() - began, 1),
        "machine": machine.hardware(),
        "versions": versions(),
    }
    print(json.dumps(report))
    return 1 if problems or report["survived"] else 0


if __name__ == "__main__":
    sys.exit(main())
