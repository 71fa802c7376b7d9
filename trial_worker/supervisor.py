"""A worker: takes units, has them trained by a child process, and writes down what comes back.

The supervisor holds the lease and the database; the trainer holds torch and the device. Neither can hang the other:
leases are renewed here whatever the trainer does, and the trainer dies with this process.
"""

from __future__ import annotations

import argparse
import os
import queue
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent import futures
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import tenacity
from sqlalchemy import Engine
from sqlalchemy.engine import URL

from orchestrator import leases, lifecycle, models, queries, snapshots, trials, workers
from orchestrator.contract import (
    DropUnit,
    EpochDone,
    Limit,
    OpenStudy,
    Outcome,
    Ready,
    StudyOpened,
    StudyRefused,
    TrainUnit,
    UnitEnded,
    derive_seed,
)
from orchestrator.database.engine import connect, storage_url, transaction
from orchestrator.database.home import locate
from orchestrator.errors import BUG, TRY_AGAIN, UNAVAILABLE, FoldtuneError
from orchestrator.leases import Fenced
from orchestrator.records import Lease, StudyRecord
from orchestrator.workers import Device
from trial_worker.child import Trainer

OPEN_SECONDS = 1200.0  # a large model may download for long before the first sign of life
OPEN_ATTEMPTS = 3
DROP_SECONDS = 2.0
POLL_SECONDS = 1.0
GIVE_UP_SECONDS = 600.0  # how long the database may be away

T = TypeVar("T")


class Leaving(Exception):
    """A signal asked this worker to go."""


class Supervisor:
    """One worker on one device."""

    def __init__(self, url: URL, studies: Sequence[str], candidates: Sequence[Device], name: str | None) -> None:
        self.url = url
        self.studies = tuple(studies)
        self.engine: Engine = connect(url)
        self.worker, self.device = workers.register(self.engine, candidates, name=name)
        self.cache = locate().client / "cache" / "snapshots"
        self.refused: dict[str, str] = {}
        self.opened: set[int] = set()
        self.deaths: Counter[int] = Counter()  # of trainers that were loading a study
        self.trainer: Trainer | None = None
        self.next_beat = 0.0
        self.leaving = False

    # --- the loop ---

    def run(self, idle_exit: float | None) -> int:
        """Train until the named studies are done; without names until nothing came for `idle_exit` seconds, if ever.

        Returns the number of units trained.
        """
        trained, idle_since = 0, time.monotonic()
        say(f"worker {self.worker} on {self.device.name}: looking for work")
        while not self.leaving:
            names = self.open_studies()
            if not names and self.studies:
                break
            taken = self.persist(lambda names=names: trials.take(self.engine, self.worker, names))
            if taken is not None:
                trained += self.train(*taken)
                idle_since = time.monotonic()
                continue
            if idle_exit is not None and time.monotonic() - idle_since > idle_exit:
                break
            self.beat()
            time.sleep(POLL_SECONDS * random.uniform(0.5, 1.0))  # workers that wake together would queue at one lock
        return trained

    def open_studies(self) -> list[str]:
        """Names of studies this worker may work on, oldest first."""

        def read() -> list[str]:
            with transaction(self.engine) as connection:
                for name in self.studies:
                    queries.study(connection, name)
                return queries.study_names(connection, open_only=True)

        names = self.persist(read)
        return [name for name in names if (not self.studies or name in self.studies) and name not in self.refused]

    def train(self, record: StudyRecord, lease: Lease) -> int:
        """Train one leased unit to its end; 1 if it ended here, 0 if it was given back or lost."""
        say(f"{record.name}: trial {lease.trial} fold {lease.fold} repeat {lease.repeat}, attempt {lease.attempt}")
        try:
            trainer = self.ready(record, lease)
            trainer.send(work(record, lease))
            ended = self.follow(trainer, lease)
            if ended.outcome == Outcome.DROPPED:
                self.persist(lambda: leases.release(self.engine, lease))
                return 0
            self.persist(lambda: trials.finish(self.engine, record.name, lease, ended))
            if ended.reason:
                say(f"{record.name}: unit {lease.unit} {ended.outcome}: {ended.reason}")
            return 1
        except (Fenced, queries.NoStudy) as lost:
            say(lost.message)
            self.drop(lease)
            return 0
        except (Refused, Leaving) as reason:
            self.drop(lease)
            self.persist(lambda: leases.release(self.engine, lease))
            if isinstance(reason, TrainerDied) and self.died_opening(record):
                say(f"{record.name}: {reason}; trying again")
            elif isinstance(reason, Refused):
                say(f"error: {record.name}: {reason}")
                self.refused[record.name] = str(reason)
            return 0

    # --- the trainer ---

    def ready(self, record: StudyRecord, lease: Lease) -> Trainer:
        """The trainer with this study's model and data loaded."""
        if self.trainer is None:
            self.trainer = Trainer(self.device.name)
            self.opened.clear()
        if record.id not in self.opened:
            try:
                self.meanwhile(lease, lambda: models.verify(record.model))
                data = self.meanwhile(
                    lease, lambda: self.persist(lambda: snapshots.fetch(self.engine, record, self.cache))
                )
            except FoldtuneError as error:
                if error.code in (UNAVAILABLE, TRY_AGAIN):  # the database is away, or the lease is lost
                    raise
                raise Refused(error.message) from None
            self.trainer.send(open_message(record, data))
            answer = self.await_message(lease, OPEN_SECONDS, (StudyOpened, StudyRefused))
            if isinstance(answer, StudyRefused):
                raise Refused(answer.reason)
            self.opened = {record.id}  # the trainer keeps one study at a time
        return self.trainer

    def await_message(self, lease: Lease, seconds: float, kinds: tuple[type[Any], ...]) -> Any:
        """The next message of these kinds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            message = self.receive(lease)
            if isinstance(message, kinds):
                return message
            if isinstance(message, Died):
                raise TrainerDied(message.how + (f"\n{message.log}" if message.log else ""))
        raise Refused(f"the trainer did not load the study within {seconds:.0f} s")

    def died_opening(self, record: StudyRecord) -> bool:
        """Count a trainer that died while it loaded a study; whether to try again: it may only have been killed."""
        self.deaths[record.id] += 1
        return self.deaths[record.id] < OPEN_ATTEMPTS

    def follow(self, trainer: Trainer, lease: Lease) -> UnitEnded:
        """Pass on every epoch's result until the unit ends."""
        while True:
            message = self.receive(lease)
            if isinstance(message, EpochDone) and _is_of(message, lease):
                self.persist(lambda done=message: trials.report(self.engine, lease, done))
            elif isinstance(message, UnitEnded) and _is_of(message, lease):
                return message
            elif isinstance(message, Died):
                return UnitEnded(
                    unit=lease.unit,
                    lease_epoch=lease.epoch,
                    outcome=Outcome.FAILED,
                    reason=message.how,
                    evidence=message.log,
                )

    def receive(self, lease: Lease) -> Any:
        """The trainer's next message, or None after a second; renews the lease and beats meanwhile."""
        if self.leaving:
            raise Leaving
        self.beat(lease)
        assert self.trainer is not None
        try:
            message = self.trainer.receive(0.5)
        except queue.Empty:
            return None
        if message is None:
            how, log = self.trainer.obituary()
            self.trainer = None
            return Died(how, log)
        if isinstance(message, Ready):
            say(f"trainer on {message.device}: torch {message.torch}, transformers {message.transformers}")
        return message

    def drop(self, lease: Lease) -> None:
        """Make the trainer stop this unit, within 2 seconds or by force."""
        if self.trainer is None:
            return
        self.trainer.send(DropUnit(unit=lease.unit, reason="the lease is gone"))
        deadline = time.monotonic() + DROP_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            try:
                message = self.trainer.receive(left)
            except queue.Empty:
                break
            if message is None:  # it died by itself, and says so only once
                break
            if isinstance(message, UnitEnded) and message.unit == lease.unit:
                return
        self.trainer.kill()
        self.trainer = None

    # --- the database ---

    def beat(self, lease: Lease | None = None) -> None:
        """Every few seconds: sign of life, lease renewed, the trainer told how much time is left."""
        if time.monotonic() < self.next_beat:
            return
        self.next_beat = time.monotonic() + lifecycle.RENEW_SECONDS
        self.persist(lambda: workers.beat(self.engine, self.worker))
        if lease is None:
            return
        left = self.persist(lambda: leases.renew(self.engine, lease))
        if left is not None and self.trainer is not None:
            self.trainer.send(Limit(unit=lease.unit, seconds_left=left))

    def meanwhile(self, lease: Lease, action: Callable[[], T]) -> T:
        """Do it in a thread and renew the lease: reading tens of gigabytes of weights outlasts a lease."""
        with futures.ThreadPoolExecutor(1) as pool:
            done = pool.submit(action)
            while not futures.wait([done], timeout=POLL_SECONDS).done:
                self.beat(lease)
        return done.result()

    def persist(self, action: Callable[[], T]) -> T:
        """Do it, again and again while the database is away. Every action here may safely happen twice."""

        def away(error: BaseException) -> bool:
            return isinstance(error, FoldtuneError) and error.code == UNAVAILABLE

        def tell(state: tenacity.RetryCallState) -> None:
            assert state.outcome is not None
            error = state.outcome.exception()
            if state.attempt_number == 1:
                say(f"{error}; trying again for {GIVE_UP_SECONDS:.0f} s")

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(away),
            wait=tenacity.wait_random_exponential(0.2, max=5),
            stop=tenacity.stop_after_delay(GIVE_UP_SECONDS),
            before_sleep=tell,
            reraise=True,
        )
        return retrying(action)

    def close(self, farewell: str) -> None:
        """Sign off and take the trainer along."""
        if self.trainer is not None:
            self.trainer.stop()
        workers.leave(self.engine, self.worker, farewell)


class Refused(Exception):
    """This machine cannot train this study."""


class TrainerDied(Refused):
    """The trainer ended while it loaded this study."""


class Died:
    """The trainer process ended by itself."""

    def __init__(self, how: str, log: str) -> None:
        self.how = how
        self.log = log


def _is_of(message: EpochDone | UnitEnded, lease: Lease) -> bool:
    """Whether a message is about this lease, and not about an earlier one of the same unit."""
    return (message.unit, message.lease_epoch) == (lease.unit, lease.epoch)


def open_message(record: StudyRecord, data: Path) -> OpenStudy:
    """What the trainer needs to load a study."""
    return OpenStudy(
        study=record.id,
        name=record.name,
        task=record.spec.task,
        model=record.model,
        data=str(data),
        labels=record.labels,
    )


def work(record: StudyRecord, lease: Lease) -> TrainUnit:
    """What the trainer needs to train a unit. Seeds know nothing of trial numbers, attempts and workers."""
    train, validation = record.plan.split(lease.repeat, lease.fold)
    return TrainUnit(
        study=record.id,
        unit=lease.unit,
        lease_epoch=lease.epoch,
        trial=lease.trial,
        repeat=lease.repeat,
        fold=lease.fold,
        seed=derive_seed(record.spec.seed, lease.configuration, lease.fold, lease.repeat),
        settings=lease.settings,
        train=train,
        validation=validation,
        seconds_left=lease.seconds_left,
    )


def say(line: str) -> None:
    """One line of talk."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line of `python -m trial_worker`; the storage comes from OPTUNA_STORAGE."""
    parser = argparse.ArgumentParser(prog="foldtune worker")
    parser.add_argument("studies", nargs="*")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--name")
    parser.add_argument("--idle-exit", type=float)
    options = parser.parse_args(argv)
    try:
        raise SystemExit(_work(options))
    except FoldtuneError as error:
        say(str(error))
        raise SystemExit(error.code) from None
    except KeyboardInterrupt:  # before the worker was entered
        raise SystemExit(130) from None
    except Exception as error:
        if os.environ.get("FOLDTUNE_DEBUG"):
            raise
        say(f"error: this is a bug in foldtune: {type(error).__name__}: {error}; FOLDTUNE_DEBUG=1 shows where")
        raise SystemExit(BUG) from None


def _work(options: argparse.Namespace) -> int:
    supervisor = Supervisor(storage_url(None), options.studies, workers.chosen_devices(options.device), options.name)

    def leave(number: int, frame: FrameType | None) -> None:
        if supervisor.leaving:
            os._exit(128 + number)  # the second signal: at once; the lease runs out by itself
        supervisor.leaving = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)
    farewell = "an error"
    try:
        trained = supervisor.run(options.idle_exit)
        farewell = "asked to leave" if supervisor.leaving else "no work left"
        say(f"worker {supervisor.worker}: {farewell}, {trained} units trained")
    finally:
        supervisor.close(farewell)
    if supervisor.refused:
        return 1
    return 130 if supervisor.leaving else 0
