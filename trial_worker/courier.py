"""Brings what waits in a spool to the database: results, ends of units, and the checkpoints that belong to them."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator import artifacts, queries, trials
from orchestrator.artifacts import Stored
from orchestrator.contract import EpochDone, UnitEnded
from orchestrator.database.engine import transaction
from orchestrator.errors import CANNOT_WRITE, FoldtuneError
from orchestrator.leases import Fenced
from orchestrator.records import Lease, StudyRecord
from trial_worker.desk import Desk, Lost
from trial_worker.spool import Delivery, Entry, Spool


class Courier:
    """Delivers batches of one spool or another."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.records: dict[str, StudyRecord] = {}  # studies that were met, by name; their state may be older

    def deliver(self, batch: Sequence[Entry], spool: Spool) -> None:
        """Tell the database what the entries say: some epochs of one unit, or its end."""
        desk, last = self.desk, batch[-1].delivery
        lease, ended = last.lease, isinstance(last.message, UnitEnded)
        stored: Stored | None = None
        try:
            stored = self._upload(last)
            self._tell([entry.delivery for entry in batch], stored)
            for entry in batch:
                desk.note_acknowledged(entry.delivery)
            if ended:
                self._over(lease, spool)
            elif last.message.checkpoint is not None:
                spool.clear_files(lease, before=last.message.checkpoint)
        except (Fenced, queries.NoStudy) as lost:
            desk.note("fenced", lease)
            if stored is not None and isinstance(lost, Fenced):
                artifacts.discard(self.record(last.study), stored)
            desk.inbox.put(Lost(lease, lost.message, not isinstance(lost, Fenced) or bool(lost.closed)))
            self._over(lease, spool)
        except FoldtuneError:
            raise  # it waits on
        except Exception:
            spool.set_aside(batch)
            raise
        spool.remove(batch)

    def _tell(self, deliveries: Sequence[Delivery], stored: Stored | None) -> None:
        """Write messages to the database; without their checkpoint where there is no room for that."""
        desk, last = self.desk, deliveries[-1]
        lease, message = last.lease, last.message
        epochs = [one.message for one in deliveries if isinstance(one.message, EpochDone)]
        try:
            if isinstance(message, UnitEnded):
                desk.line.persist(lambda: trials.finish(desk.engine, last.study, lease, message, stored))
            else:
                desk.line.persist(lambda: trials.report(desk.engine, lease, epochs, stored))
        except FoldtuneError as error:
            if stored is None or error.code != CANNOT_WRITE:
                raise
            self._mourn(last, error)
            self._tell(deliveries, None)

    def _upload(self, delivery: Delivery) -> Stored | None:
        """Put a message's checkpoint into the study's store; None where it has none, or there is no room for it."""
        if delivery.message.checkpoint is None:
            return None
        try:
            return artifacts.upload(self.record(delivery.study), delivery.message.checkpoint)
        except FoldtuneError as error:
            if error.code != CANNOT_WRITE:
                raise
            self._mourn(delivery, error)
            return None

    def _mourn(self, delivery: Delivery, error: FoldtuneError) -> None:
        self.desk.say(f"unit {delivery.lease.unit}: {error.message}; the score counts without it")

    def _over(self, lease: Lease, spool: Spool) -> None:
        self.desk.let_go(lease)
        spool.clear_files(lease)

    def record(self, name: str) -> StudyRecord:
        """What never changes of a study, read once."""

        def read() -> StudyRecord:
            with transaction(self.desk.engine) as connection:
                return queries.study(connection, name)

        if name not in self.records:
            self.records[name] = self.desk.line.persist(read)
        return self.records[name]
