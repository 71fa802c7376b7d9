"""What a worker has yet to tell the database, on this machine's disk.

Training goes on while the database is away; what it brings waits here in order and is delivered once. A worker that
dies leaves its spool, and the next one on this machine that finds it delivers what is in it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import socket
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator import contract, durable
from orchestrator.contract import Checkpoint, EpochDone, UnitEnded
from orchestrator.crash_points import reach
from orchestrator.records import Lease

LOCK = "lock"
REJECTED = ".rejected"
_PLACE = re.compile(r"-e(?P<epoch>\d+)-s(?P<step>\d+)\.safetensors$")
BATCH = 50  # entries delivered in one transaction at most


@dataclass(frozen=True)
class Delivery:
    """One message of the trainer on its way to the database."""

    study: str
    lease: Lease
    message: EpochDone | UnitEnded

    def to_json(self) -> str:
        return json.dumps({"study": self.study, "lease": asdict(self.lease), "message": contract.encode(self.message)})

    @classmethod
    def from_json(cls, text: str) -> Delivery:
        """Raises ValueError, KeyError or TypeError for anything that `to_json` did not write."""
        raw = json.loads(text)
        return cls(raw["study"], contract.build(Lease, raw["lease"]), contract.decode(raw["message"]))


@dataclass(frozen=True)
class Entry:
    """A delivery and the file that keeps it; None where the disk had no room."""

    delivery: Delivery
    file: Path | None


class Spool:
    """A queue that survives its process. One thread adds, one takes."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError where the folder cannot be made, BlockingIOError where a living process owns it."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.pwrite(self._lock, socket.gethostname().encode(), 0)
        except OSError:
            os.close(self._lock)
            raise
        self._guard = threading.Lock()
        self._entries: deque[Entry] = deque()
        self._number = 0
        for file in sorted(folder.glob("*.json")):
            self._number = int(file.stem)
            try:
                self._entries.append(Entry(Delivery.from_json(file.read_text(encoding="utf-8")), file))
            except (ValueError, KeyError, TypeError):  # of another version: for people to look at
                file.replace(file.with_suffix(REJECTED))

    def add(self, delivery: Delivery) -> OSError | None:
        """Keep a delivery; the error where it could be kept in memory only."""
        token, failure = delivery.lease.token, None
        with self._guard:
            self._number += 1
            file = self.folder / f"{self._number:08}.json"
            # the end of a unit on disk without its last epoch would be told without it by whoever finds the spool
            broken = any(entry.file is None and entry.delivery.lease.token == token for entry in self._entries)
            try:
                if not broken:
                    durable.write(file, delivery.to_json().encode())
            except OSError as error:
                failure = error
            self._entries.append(Entry(delivery, None if failure or broken else file))
        return failure

    def batch(self) -> list[Entry]:
        """The oldest entry, and the epochs after it of the same lease: they travel together. Empty: nothing waits."""
        with self._guard:
            waiting = list(self._entries)
        batch = waiting[:1]
        for entry in waiting[1:BATCH]:
            if any(not isinstance(one.delivery.message, EpochDone) for one in (batch[0], entry)):
                break
            if entry.delivery.lease.token != batch[0].delivery.lease.token:
                break
            batch.append(entry)
        return batch

    def remove(self, entries: Iterable[Entry]) -> None:
        """Forget entries that were delivered, or that nobody wants any more."""
        for entry in entries:
            with self._guard:
                self._entries.remove(entry)
            if entry.file is not None:
                reach("before an entry of the spool is removed")
                entry.file.unlink(missing_ok=True)

    def set_aside(self, entries: Iterable[Entry]) -> None:
        """Keep entries that the database cannot take, for people to look at: the next worker must not stumble too."""
        for entry in entries:
            with self._guard:
                self._entries.remove(entry)
            if entry.file is not None:
                entry.file.replace(entry.file.with_suffix(REJECTED))

    def __len__(self) -> int:
        with self._guard:
            return len(self._entries)

    def clear_files(self, lease: Lease, *, before: Checkpoint | None = None) -> None:
        """Remove the checkpoint files of a unit, unfinished ones too; with `before` only older ones."""
        for file in [*self.folder.glob(f"u{lease.unit}-*"), *self.folder.glob(f"resume-unit{lease.unit}-*")]:
            found = _PLACE.search(file.name)
            place = (int(found["epoch"]), int(found["step"])) if found else None
            # a file without a place is being written by the trainer, and will lose that name any moment
            if before is None or (place is not None and place < (before.epoch, before.step)):
                file.unlink(missing_ok=True)

    def close(self) -> None:
        """Give the folder up; it is removed if nothing waits in it."""
        if len(self) == 0:
            if list(self.folder.glob(f"*{REJECTED}")):
                (self.folder / LOCK).unlink(missing_ok=True)  # nobody need open it again
            else:
                shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)


def name_of(worker: int) -> str:
    """The folder's name of a worker's spool."""
    return f"{worker}-{os.getpid()}"


def orphans(root: Path) -> Iterator[tuple[int, Spool]]:
    """(worker, spool) of this machine's workers that are gone, to be delivered and closed by the caller.

    Those of other machines stay: a file system that several share may not tell one of the other's locks.
    """
    here = socket.gethostname()
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        with contextlib.suppress(OSError, ValueError):
            worker = int(folder.name.partition("-")[0])
            if (folder / LOCK).read_text(encoding="utf-8") == here:
                yield worker, Spool(folder)
