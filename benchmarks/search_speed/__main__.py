"""`python -m benchmarks.search_speed [--quick]`: talk on stderr, one JSON object as the last line."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.search_speed import figures, harness, replay
from benchmarks.search_speed.harness import Options

ENTRIES = Path(__file__).with_name("entries.json")


def parse(arguments: Sequence[str] | None) -> tuple[Options, bool]:
    """The command line: options, and whether to be silent."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search_speed", description=__doc__)
    parser.add_argument("--replay", type=Path, default=ENTRIES, help="recorded search; default: entries")
    parser.add_argument("--quick", action="store_true", help="the replay's small part, once: minutes")
    parser.add_argument("--engine-only", action="store_true", help="no database, no Optuna: the engine alone")
    parser.add_argument("--without", nargs="+", choices=harness.FURTHER, default=[], help="forms that no ratio needs")
    parser.add_argument("--repeats", type=int, help="runs of each form; default 3, with --quick 1")
    parser.add_argument("--threads", type=int, default=2, help="of each form")
    parser.add_argument("--json", action="store_true", help="nothing but the JSON object; no talk")
    chosen = parser.parse_args(arguments)
    repeats = chosen.repeats if chosen.repeats is not None else 1 if chosen.quick else 3
    if repeats < 1 or chosen.threads < 1:
        parser.error("--repeats and --threads must be at least 1")
    options = Options(
        replay=chosen.replay,
        quick=chosen.quick,
        engine_only=chosen.engine_only,
        repeats=repeats,
        threads=chosen.threads,
        without=tuple(chosen.without),
    )
    return options, chosen.json


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 1 where a form failed."""
    options, silent = parse(arguments)
    quiet = contextlib.redirect_stderr(io.StringIO()) if silent else contextlib.nullcontext()
    try:
        with quiet:
            found = measured(options)
    except KeyboardInterrupt:
        return 130
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(found, ensure_ascii=False))
    return 0


def measured(options: Options) -> dict[str, Any]:
    """Everything, as the JSON object."""
    work = replay.load(options.replay)
    work = work.quick() if options.quick else work
    around = {"machine": machine.describe(), "versions": machine.versions(), "commit": machine.commit()}
    not_run = harness.absent(options)
    found = figures.compose(work, harness.run(options, not_run))
    if "product" not in not_run:
        from benchmarks.search_speed import product

        found["product"] = product.run(work, options)
        if "kept" in found["forms"]:
            plain = found["forms"]["kept"]
            whole = plain["cpu_seconds"]["median"] + plain["start_cpu_seconds"]["median"]
            found["product"]["ratio"] = round(whole / found["product"]["cpu_seconds"], 3)
    return {
        "benchmark": "search_speed",
        "replay": work.name,
        "quick": options.quick,
        "repeats": options.repeats,
        "threads": options.threads,
        "rows": {"inner": len(work.inner), "test": len(work.test)},
        "not_run": not_run,
        **found,
        **around,
    }


if __name__ == "__main__":
    sys.exit(main())
