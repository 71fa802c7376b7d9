"""A worker: takes units, has them trained by a child process, and writes down what comes back.

Three threads that cannot hold each other up: the foreman follows the trainer and never waits for the database; the
clerk delivers results and fetches work; the renewer keeps the leases alive. The trainer dies with this process.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import queue
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType

from orchestrator import devices, lifecycle, queries, workers
from orchestrator.database.engine import connect, storage_url, transaction
from orchestrator.database.home import locate
from orchestrator.errors import BUG, CANNOT_WRITE, FoldtuneError
from trial_worker.clerk import sign_off
from trial_worker.desk import Desk
from trial_worker.foreman import Foreman
from trial_worker.line import Line
from trial_worker.spool import Spool, name_of

START_SECONDS = 60.0  # for a database that is starting too


def say(line: str) -> None:
    """One line of talk."""
    with contextlib.suppress(OSError):  # the disk that keeps the log may be full: training is worth more than talk
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
        code = _work(options)
    except FoldtuneError as error:
        say(str(error))
        code = error.code
    except KeyboardInterrupt:  # before the worker was entered
        code = 130
    except Exception as error:
        if os.environ.get("FOLDTUNE_DEBUG"):
            raise
        say(f"error: this is a bug in foldtune: {type(error).__name__}: {error}; FOLDTUNE_DEBUG=1 shows where")
        code = BUG
    sys.stderr.flush()
    os._exit(code)  # a thread may still wait for a silent database


def _work(options: argparse.Namespace) -> int:
    foreman = Foreman(open_desk(options))
    desk = foreman.desk

    def leave(number: int, frame: FrameType | None) -> None:
        if foreman.leaving is not None:
            os._exit(128 + number)  # the second signal: at once; the lease runs out by itself
        foreman.asked = time.monotonic()
        foreman.leaving = number

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)
    farewell = "an error"
    try:
        trained = foreman.run(options.idle_exit)
        farewell = foreman.fault or ("no work left" if foreman.leaving is None else "asked to leave")
    finally:
        if foreman.leave():
            sign_off(desk, farewell, foreman.streak if foreman.fault else ())
        elif len(desk.spool):
            say(f"{len(desk.spool)} results wait in {desk.spool.folder} for the next worker on this machine")
        else:
            say("the database did not answer in time; what this worker held is free when its leases run out")
        desk.spool.close()
    say(f"worker {desk.worker}: {farewell}, {trained} units trained")
    if foreman.leaving is not None:
        return 128 + foreman.leaving
    return 1 if desk.refused or foreman.fault else 0


def open_desk(options: argparse.Namespace) -> Desk:
    """Connect, register as a worker, claim a device, make the spool."""
    url, line = storage_url(None), Line(say)
    candidates = devices.chosen_devices(options.device)
    training, line.meanwhile = line.meanwhile, "trying again"
    engine = line.persist(lambda: connect(url), patience=START_SECONDS)
    line.meanwhile = training
    with transaction(engine) as connection:
        place = queries.identity(connection)
    worker, device = workers.register(engine, candidates, name=options.name)
    home = locate().client
    try:
        spool = Spool(home / "spool" / place / name_of(worker))
    except OSError as error:
        raise FoldtuneError(
            f"results cannot wait in {home / 'spool'}: {error.strerror}",
            help="set FOLDTUNE_HOME to a folder you may write to",
            code=CANNOT_WRITE,
        ) from None
    say(f"worker {worker} on {device.name}: looking for work")
    say(f"if this worker is killed, its units are claimable after at most {lifecycle.recovery_bound()}")
    return Desk(
        engine=engine,
        worker=worker,
        device=device,
        names=tuple(options.studies),
        spool=spool,
        cache=home / "cache" / "snapshots",
        inbox=queue.Queue(),
        say=say,
        line=line,
    )
