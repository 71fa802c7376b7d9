"""Training on one frozen base: units in, epoch results out. No Optuna, no database, no command line.

    base = Base.load(pin, family="sequence", labels=10)       # a model, once per process
    rows = Rows(task_named("classification", labels), read_snapshot(path), base.tokenizer)
    pack = Pack(base, rows)
    pack.add(unit)                                            # a contract.TrainUnit
    while pack.free < pack.slots:
        for event in pack.advance():                          # Progress, EpochDone, UnitEnded
            ...

`prepare`, `versions` and `open_study` are the engine to `trial_worker.trainer`, which knows no torch.

A unit's numbers are a function of its settings, rows and seed: not of what trained before it, nor of how many rows
are computed at once (beyond rounding). On one CPU type they repeat bit for bit, broken off
and gone on with (see `state`) as well.
"""

from trial_worker.engine.base import Base
from trial_worker.engine.errors import UnusableModel
from trial_worker.engine.pack import Pack, PackEvent, open_study
from trial_worker.engine.process import prepare, versions
from trial_worker.tasks.rows import Rows, read_snapshot

__all__ = [
    "Base",
    "Pack",
    "PackEvent",
    "Rows",
    "UnusableModel",
    "open_study",
    "prepare",
    "read_snapshot",
    "versions",
]
