"""`python -m benchmarks.overhead [--quick]`: talk on stderr, one JSON object as the last line."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: so many workers on few cores

import argparse
import contextlib
import io
import json
import signal
import sys
from collections.abc import Sequence

from benchmarks.overhead import harness
from benchmarks.overhead.harness import Options
from benchmarks.overhead.study import Kind

KINDS = {
    kind.name: kind
    for kind in (
        Kind(sampler="random"),
        Kind(sampler="grid"),
        Kind(sampler="tpe"),
        Kind(sampler="random", racing="forgiving"),
        Kind(sampler="tpe", racing="forgiving"),
        Kind(sampler="random", hours=True),
    )
}
QUICK = ("random", "tpe")


def parse(arguments: Sequence[str] | None) -> tuple[Options, bool]:
    """The command line: options, and whether to be silent."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", help="workers at once; default 1 8 64")
    parser.add_argument("--trials", type=int, nargs="+", help="trials already there; default 100 1000 10000")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, help="default: all")
    parser.add_argument("--seconds", type=float, help="of a window in real time; default 75")
    parser.add_argument("--flat-seconds", type=float, help="of a window without training, at most; default 20")
    parser.add_argument("--quick", action="store_true", help="1 and 8 workers, 100 and 1000 trials, short: minutes")
    parser.add_argument("--json", action="store_true", help="nothing but the JSON object; no talk")
    chosen = parser.parse_args(arguments)
    quick = chosen.quick
    options = Options(
        workers=chosen.workers or ([1, 8] if quick else [1, 8, 64]),
        trials=sorted(chosen.trials or ([100, 1000] if quick else [100, 1000, 10_000])),
        kinds=[KINDS[name] for name in chosen.kinds or (QUICK if quick else KINDS)],
        paced_seconds=chosen.seconds if chosen.seconds is not None else 20.0 if quick else 75.0,
        flat_seconds=chosen.flat_seconds if chosen.flat_seconds is not None else 5.0 if quick else 20.0,
        flat_trials=30 if quick else 200,
    )
    if min(*options.workers, *options.trials) < 1:
        parser.error("--workers and --trials must be at least 1")
    return options, chosen.json


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 1 where orchestration took 1 % or more of one-minute trials with 64 workers."""
    options, silent = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped and the folder removed
    quiet = contextlib.redirect_stderr(io.StringIO()) if silent else contextlib.nullcontext()
    try:
        with quiet:
            found = harness.run(options)
    except KeyboardInterrupt:
        return 130
    print(json.dumps(found, ensure_ascii=False))
    return 1 if found["holds"] is False else 0


if __name__ == "__main__":
    sys.exit(main())
