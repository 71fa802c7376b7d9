"""The worker's side towards the database: delivers what waits in the spool, then looks for work.

A thread of its own, so that no slow or silent database holds up training.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from orchestrator import (
    artifacts,
    cleaning,
    leases,
    lifecycle,
    models,
    projection,
    queries,
    snapshots,
    trials,
    workers,
)
from orchestrator.contract import Checkpoint, Outcome, UnitEnded
from orchestrator.database.engine import transaction
from orchestrator.errors import FoldtuneError
from orchestrator.records import Lease, StudyRecord
from trial_worker.courier import Courier
from trial_worker.desk import AllDone, Desk, Taken, Trouble
from trial_worker.line import is_away
from trial_worker.spool import Delivery, orphans

ADOPT_SECONDS = 5.0  # between two looks for spools that dead workers left on this machine
TIDY_SECONDS = 30.0  # between two looks for artifacts of no more use, and for what Optuna has not heard


class Clerk(threading.Thread):
    """Delivers results, then looks for work."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(name="clerk", daemon=True)
        self.desk = desk
        self._courier = Courier(desk)
        self.wake = threading.Event()  # set: there is something to do
        self._closing = threading.Event()
        self._next_adoption = self._next_tidying = 0.0
        self._offered = 1  # slots that the database knows of
        self._data: dict[int, Path] = {}  # study -> its verified rows on this machine
        self._swept: set[int] = set()

    def run(self) -> None:
        try:
            while not self._closing.is_set():
                self.wake.clear()
                if not (self._deliver_some() or self._take_one() or self._adopt()):
                    # workers that wake together would queue at one lock
                    self.wake.wait(lifecycle.LOOK_SECONDS * random.uniform(0.5, 1.0))
            self._give_back_untouched()
            while self._deliver_some():
                pass
        except BaseException as error:
            self.desk.inbox.put(Trouble(error))

    def close(self) -> None:
        """Deliver what is left, then end."""
        self._closing.set()
        self.wake.set()

    def _give_back_untouched(self) -> None:
        """A unit that was taken while the foreman was leaving: it never heard of it."""
        names = {record.id: record.name for record in self._courier.records.values()}
        for lease in self.desk.untold():
            self.desk.deliver(Delivery(names[lease.study], lease, given_back(lease, "the worker left")))

    def _deliver_some(self) -> bool:
        batch = self.desk.spool.batch()
        if batch:
            self._courier.deliver(batch, self.desk.spool)
        return bool(batch)

    def _adopt(self) -> bool:
        """Deliver what dead workers of this machine left behind, and free the units that they held."""
        if time.monotonic() < self._next_adoption:
            return False
        self._next_adoption = time.monotonic() + ADOPT_SECONDS
        if time.monotonic() > self._next_tidying:
            self._next_tidying = time.monotonic() + TIDY_SECONDS
            self._tidy()
        for worker, spool in orphans(self.desk.spool.folder.parent):
            if len(spool):
                self.desk.say(f"delivering {len(spool)} results that a worker left on this machine")
            try:
                while batch := spool.batch():
                    self._courier.deliver(batch, spool)
                # its lock was free: nobody will renew these leases, and each delivery has just done so
                self.desk.line.persist(partial(leases.bury, self.desk.engine, worker))
            except FoldtuneError:
                raise
            except Exception as error:  # of a worker of another version, perhaps: no reason to die of it as well
                self.desk.say(f"{spool.folder} holds what the database does not take ({type(error).__name__}: {error})")
            finally:
                spool.close()
        return False

    def _tidy(self) -> None:
        """Delete artifacts of no more use, and once for each study what crashes left in its store."""
        for record in list(self._courier.records.values()):
            with contextlib.suppress(FoldtuneError, OSError):  # whoever comes next does it
                projection.project(self.desk.engine, record.name)
                cleaning.collect(self.desk.engine, record)
                if record.id not in self._swept:
                    cleaning.sweep(self.desk.engine, record)
                    self._swept.add(record.id)

    def _take_one(self) -> bool:
        desk, wanted = self.desk, self.desk.wanted
        if desk.slots != self._offered:
            desk.line.persist(lambda: workers.offer(desk.engine, desk.worker, desk.slots))
            self._offered = desk.slots
        if len(desk.untold()) >= wanted.slots or self._closing.is_set():
            return False
        names = self._open_studies()
        if not names and desk.names:
            for name in desk.names:  # whoever closed a study may have died before Optuna heard of it
                with contextlib.suppress(queries.NoStudy):
                    desk.line.persist(partial(projection.project, desk.engine, name))
            desk.inbox.put(AllDone())
            return False
        if wanted.study is not None:
            names = [name for name in names if name == wanted.study]
        taken = desk.line.persist(
            lambda: trials.take(desk.engine, desk.worker, names, held=desk.tokens(), opened=wanted.opened)
        )
        if taken is None:
            return False
        record, lease = taken
        self._courier.records[record.name] = record  # one of that name may have been deleted and made anew
        desk.hold(lease)
        desk.note("leased", lease)
        try:
            data = self._rows(record)
        except queries.NoStudy:
            desk.let_go(lease)
            return True
        except (FoldtuneError, OSError) as error:
            if is_away(error):
                raise
            self._refuse(record, lease, error)
            return True
        taken_on = Taken(record, lease, data, self._resume(record, lease))
        if desk.trains(lease):  # it may be lost by now: weights of many gigabytes were verified
            desk.inbox.put(taken_on)
        return True

    def _resume(self, record: StudyRecord, lease: Lease) -> Checkpoint | None:
        """The newest state of a unit that was trained before, on this machine."""
        desk = self.desk
        try:
            return desk.line.persist(
                lambda: artifacts.fetch(desk.engine, record, lease.unit, desk.spool.folder, desk.say)
            )
        except OSError as error:
            desk.say(f"the checkpoint of unit {lease.unit} cannot be kept here ({error}); it begins anew")
            return None

    def _open_studies(self) -> list[str]:
        """Names of the studies this worker may work on, oldest first."""
        desk = self.desk

        def read() -> list[str]:
            with transaction(desk.engine) as connection:
                known = set(queries.study_names(connection))
                if desk.names and not known & set(desk.names):
                    queries.study(connection, desk.names[0])  # says that there is none, and a near name
                return queries.study_names(connection, open_only=True)

        names = desk.line.persist(read)
        return [name for name in names if (not desk.names or name in desk.names) and name not in desk.refused]

    def _rows(self, record: StudyRecord) -> Path:
        """The study's rows on this machine, its models verified; once for each study."""
        if record.id not in self._data:
            pins = record.models.values() or [record.model]
            for pin in (*pins, *(writer.model for writer in record.writers.values())):
                models.verify(pin)
            desk = self.desk
            self._data[record.id] = desk.line.persist(lambda: snapshots.fetch(desk.engine, record, desk.cache))
        return self._data[record.id]

    def _refuse(self, record: StudyRecord, lease: Lease, error: FoldtuneError | OSError) -> None:
        said = error.message if isinstance(error, FoldtuneError) else error
        self.desk.say(f"error: {record.name}: {said}")
        self.desk.refused |= {record.name}
        self.desk.deliver(Delivery(record.name, lease, given_back(lease, "this machine cannot train it")))


def given_back(lease: Lease, reason: str) -> UnitEnded:
    """A unit goes back uncharged."""
    return UnitEnded(
        unit=lease.unit,
        lease_epoch=lease.epoch,
        outcome=Outcome.DROPPED,
        reason=reason,
        cause=lifecycle.Cause.RELEASED,
    )


def sign_off(desk: Desk, farewell: str, blameless: Sequence[Lease]) -> None:
    """Leave the list of workers, if the database can be reached. blameless: whose failures this machine caused."""
    with contextlib.suppress(FoldtuneError):
        trials.forgive(desk.engine, desk.worker, blameless)
        leases.release_all(desk.engine, desk.worker)
        workers.leave(desk.engine, desk.worker, farewell)
