"""`python -m benchmarks.chaos --seed 1 --kills 40 --workers 4`: talk on stderr, one JSON object as the last line."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: the undisturbed table must be of the trainers' bits

import argparse
import contextlib
import io
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.chaos import checker, harness, report
from benchmarks.chaos.harness import Options
from benchmarks.chaos.storm import talk

SHOWN = 30  # violations on stderr


def parse(arguments: Sequence[str] | None) -> tuple[Options, argparse.Namespace]:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=40, help="processes killed with SIGKILL; other faults go along")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--trials", type=int, help="grid points; default 60 for 40 kills, 300 for 1000")
    parser.add_argument("--slots", type=int, default=1, help="units that each worker trains at once")
    parser.add_argument("--epoch-seconds", type=float, help="default: so that the study outlasts the faults")
    parser.add_argument("--limit", type=float, help="seconds after which the run is given up")
    parser.add_argument("--keep", type=Path, help="copy logs and histories here")
    parser.add_argument("--baseline", choices=["optuna"], help="the same faults against Optuna alone")
    parser.add_argument("--json", action="store_true", help="nothing but the JSON object; no talk")
    chosen = parser.parse_args(arguments)
    names = ("seed", "kills", "workers", "trials", "slots", "epoch_seconds", "limit", "keep")
    return Options(**{name: getattr(chosen, name) for name in names}), chosen


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 0 without violations, 1 with some."""
    options, chosen = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped and the folder removed
    quiet = contextlib.redirect_stderr(io.StringIO()) if chosen.json else contextlib.nullcontext()
    try:
        with quiet:
            found, sound = _baseline(options) if chosen.baseline else _foldtune(options)
    except KeyboardInterrupt:
        return 130
    print(json.dumps(found, ensure_ascii=False))
    return 0 if sound else 1


def _foldtune(options: Options) -> tuple[dict[str, Any], bool]:
    run = harness.run(options)
    violations = checker.check(run.evidence)
    for violation in violations[:SHOWN]:
        talk(f"{violation.invariant}: {violation.text}")
    return report.of_run(options, run, violations), not violations


def _baseline(options: Options) -> tuple[dict[str, Any], bool]:
    from benchmarks.chaos import baseline

    return baseline.run(options)


if __name__ == "__main__":
    sys.exit(main())
