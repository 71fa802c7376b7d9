"""Training on one frozen base: units in, epoch results and adapters out. No Optuna, no database, no command line.

    base = Base.load(pin, family="sequence", outputs=10)       # a model, once per process
    rows = Rows(task_named("classification", labels), read_snapshot(path), base.tokenizer)
    pack = Pack(base, rows, slots=4)
    while units or pack.free < pack.slots:
        while units and pack.free > 0:
            pack.add(units.pop())                             # contract.TrainUnit
        for event in pack.advance():                          # Progress, EpochDone, UnitEnded
            ...

With `TrainUnit.scratch` an `EpochDone` names a file of that epoch's weights: see `state`.

`prepare`, `versions`, `peak_bytes` and `open_study` are the engine to `trial_worker.trainer` and `trial_worker.probe`,
which know no torch.

A unit's numbers are a function of its settings, rows and seed: not of what trained before it or beside it, nor of how
many rows are computed at once (beyond rounding). Alone in its pack, on one CPU type, they repeat bit for bit, broken
off and gone on with (see `state`) as well.
"""

from trial_worker.engine.base import Base
from trial_worker.engine.errors import UnusableModel
from trial_worker.engine.pack import Pack, PackEvent
from trial_worker.engine.process import peak_bytes, prepare, versions
from trial_worker.engine.staged import Staged, open_study
from trial_worker.tasks.rows import Rows, read_snapshot

__all__ = [
    "Base",
    "Pack",
    "PackEvent",
    "Rows",
    "Staged",
    "UnusableModel",
    "open_study",
    "peak_bytes",
    "prepare",
    "read_snapshot",
    "versions",
]
