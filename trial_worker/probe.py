"""A trainer that measures: `python -m trial_worker.probe`, started by `foldtune check --probe`.

It reads an OpenStudy and two TrainUnits from stdin, one message a line: the first unit warms up and holds the longest
rows, the second is timed in as many slots as there are. One JSON object on stdout says what was measured, or
`{"refused": reason}`. It knows no database, and of training no more than a trainer does.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import sys
from collections.abc import Sequence
from time import monotonic
from typing import Any

from orchestrator import contract
from orchestrator.contract import EpochDone, OpenStudy, Outcome, TrainUnit, UnitEnded
from trial_worker.child import ENGINE
from trial_worker.lifeline import die_with_parent


class Refused(Exception):
    """The model cannot be trained so; the message says why, in one line."""


def measure(engine: Any, study: OpenStudy, warm: TrainUnit, timed: TrainUnit) -> dict[str, Any]:
    """Train both units and say what it took.

    Raises:
        Refused: a unit did not end well. Or whatever the engine raises for a model that it cannot use.
    """
    device = engine.prepare()
    began = monotonic()
    pack = engine.open_study(study, device)
    loaded = monotonic() - began
    train(pack, [warm])
    done = train(pack, [dataclasses.replace(timed, unit=timed.unit + place) for place in range(pack.slots)])
    return {
        "device": str(device),
        "slots": pack.slots,
        "load_seconds": loaded,
        "unit_seconds": sum(each.seconds for each in done) / len(done),
        "peak_bytes": engine.peak_bytes(device),
    }


def train(pack: Any, units: Sequence[TrainUnit]) -> list[EpochDone]:
    """Their only epochs. Raises Refused."""
    waiting, left, done = list(units), len(units), []
    while left:
        while waiting and pack.free > 0:
            pack.add(waiting.pop(0))
        for event in pack.advance():
            if isinstance(event, EpochDone):
                done.append(event)
            elif isinstance(event, UnitEnded):
                left -= 1
                if event.outcome == Outcome.DROPPED:  # others needed the device to themselves
                    continue
                if event.outcome != Outcome.DONE:
                    raise Refused(f"{event.outcome}: {event.reason}")
    return done


def main() -> None:
    """One probe."""
    die_with_parent()
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever libraries print is no report
    study, warm, timed = (contract.decode(line) for line in sys.stdin)
    try:
        engine = importlib.import_module(os.environ.get("FOLDTUNE_ENGINE", ENGINE))
        report = measure(engine, study, warm, timed)
    except Exception as error:
        said = str(error).strip().splitlines()
        report = {"refused": said[0] if said else type(error).__name__}
    out.write(json.dumps(report) + "\n")
    out.close()


if __name__ == "__main__":
    main()
