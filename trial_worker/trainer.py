"""The child process that trains, one per device: `python -m trial_worker.trainer --read-fd N --write-fd M`.

It speaks to its supervisor only, one message of `orchestrator.contract` a line: it reads them from one inherited
file descriptor and writes to another, so that stdout and stderr stay free for what libraries print. It knows no
database, and of training no more than `Engine`: torch is imported by the engine it is started with. It dies with its
parent, and when the descriptor it reads ends; SIGUSR1 makes it write the stacks of all its threads to stderr.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import os
import queue
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from time import monotonic
from typing import Any, Protocol, TextIO, cast

from orchestrator import contract
from orchestrator.contract import EpochDone, Outcome, Progress, TrainUnit, UnitEnded
from trial_worker.lifeline import die_with_parent

ENGINE = "trial_worker.engine"
PROGRESS_SECONDS = 1.0  # between two messages on the progress of a unit
BEAT_SECONDS = 1.0  # of silence, after which the end of a step or an evaluation batch is told

Event = Progress | EpochDone | UnitEnded


class Pack(Protocol):
    """The units that train together on one study's model and rows; see `engine.Pack`."""

    @property
    def slots(self) -> int: ...

    @property
    def free(self) -> int:
        """Slots without a unit."""

    def add(self, unit: TrainUnit) -> None:
        """Give a free slot this unit."""

    def advance(self) -> Sequence[Event]:
        """One step, or one evaluation batch, of every unit; a unit leaves its slot with its UnitEnded."""

    def drop(self, unit: int, reason: str, keep: bool) -> Sequence[Event]:
        """Stop a unit, with `keep` after a checkpoint; nothing happens if it is in no slot."""

    def limit(self, unit: int, seconds_left: float) -> None:
        """As `contract.Limit`; nothing happens if the unit is in no slot."""


class Engine(Protocol):
    """What trains: a module, imported by its name."""

    def prepare(self) -> Any:
        """Ready this process; the device, whose text goes into Ready."""

    def versions(self) -> Mapping[str, str]:
        """Of torch, transformers and peft."""

    def open_study(self, study: contract.OpenStudy, device: Any) -> Pack:
        """A pack without units on this study's model and rows; any exception refuses the study."""


class Messages:
    """What the supervisor sends, read by a thread so that training is never interrupted to wait for it."""

    def __init__(self, lines: TextIO) -> None:
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._read, args=(lines,), name="messages", daemon=True).start()

    def _read(self, lines: TextIO) -> None:
        try:
            for line in lines:
                self._queue.put(contract.decode(line))
        except (ValueError, OSError):
            traceback.print_exc()
        finally:
            # the supervisor is gone or speaks another language: nobody will take a result, and a model load or
            # a hung step would keep the device. Nothing here needs to be saved.
            sys.stderr.flush()
            os._exit(0)

    def waiting(self, *, block: bool) -> Iterator[Any]:
        """Messages that have arrived; with `block`, at least one."""
        try:
            yield self._queue.get(block=block)
            while True:
                yield self._queue.get_nowait()
        except queue.Empty:
            return


class Trainer:
    """Opens studies, keeps the open one's slots full, and tells of its units.

    out: where messages go, a line each. device: what the engine prepared.
    """

    def __init__(self, out: TextIO, engine: Engine, device: Any) -> None:
        self._out = out
        self._engine = engine
        self._device = device
        self._study: int | None = None  # the open one
        self._model = ""  # path of the open one's
        self._pack: Pack | None = None  # of the open study
        self._waiting: deque[TrainUnit] = deque()  # units of the open study that no slot was free for
        self._training: set[int] = set()  # units in slots
        self._told = 0.0  # when anything was
        self._progress: dict[int, float] = {}  # unit -> when its last Progress was told

    def tell(self, message: Any) -> None:
        """Send one message."""
        self._out.write(contract.encode(message) + "\n")
        self._out.flush()
        self._told = monotonic()

    def run(self, messages: Messages) -> None:
        """Serve until a Shutdown; messages are honoured between two steps."""
        while True:
            for message in messages.waiting(block=not self._training and not self._waiting):
                if isinstance(message, contract.Shutdown):
                    return
                self._take(message)
            if self._pack is not None:
                self._fill(self._pack)
                self._advance(self._pack)

    def _take(self, message: Any) -> None:
        match message:
            case contract.OpenStudy():
                self._open(message)
            case contract.TrainUnit() if message.study != self._study:
                reason = f"study {message.study} is not open in this process"
                self.tell(message.ended(Outcome.FAILED, reason))
            case contract.TrainUnit() if message.model not in (None, self._model):
                reason = f"model {message.model} is not open in this process"
                self.tell(message.ended(Outcome.FAILED, reason))
            case contract.TrainUnit():
                self._waiting.append(message)
            case contract.DropUnit():
                self._drop(message)
            case contract.Limit():
                self._limit(message)
            case _:
                print(f"the trainer does not take {type(message).__name__}", file=sys.stderr)

    def _open(self, study: contract.OpenStudy) -> None:
        """Load a study's model, tokenizer and rows in place of the last ones, whose units are dropped.

        Two models at once could leave too little memory for a unit that fits alone, and it would be called infeasible.
        """
        started = monotonic()
        for unit in [*self._training, *(unit.unit for unit in self._waiting)]:
            self._drop(contract.DropUnit(unit=unit, reason=f"study {study.study} is opened in place of this one"))
        self._study = self._pack = None
        try:
            self._pack = self._engine.open_study(study, self._device)
        except Exception as error:
            self.tell(contract.StudyRefused(study=study.study, reason=_line(error), evidence=traceback.format_exc()))
        else:
            self._study, self._model = study.study, study.model.path
            seconds = monotonic() - started
            self.tell(contract.StudyOpened(study=study.study, seconds=seconds, slots=self._pack.slots))

    def _drop(self, message: contract.DropUnit) -> None:
        if self._pack is not None:
            self._publish(self._pack.drop(message.unit, message.reason, message.keep))
        for unit in [unit for unit in self._waiting if unit.unit == message.unit]:
            self._waiting.remove(unit)
            checkpoint = unit.resume if message.keep else None
            self.tell(unit.ended(Outcome.DROPPED, message.reason, checkpoint=checkpoint))

    def _limit(self, message: contract.Limit) -> None:
        if self._pack is not None:
            self._pack.limit(message.unit, message.seconds_left)
        for place, unit in enumerate(self._waiting):
            if unit.unit == message.unit:
                self._waiting[place] = replace(unit, seconds_left=message.seconds_left)

    def _fill(self, pack: Pack) -> None:
        while self._waiting and pack.free:
            unit = self._waiting.popleft()
            pack.add(unit)
            self._training.add(unit.unit)

    def _advance(self, pack: Pack) -> None:
        """One step, or one evaluation batch, of the pack; a sign of life where there is nothing else to tell."""
        if not self._training:
            return
        self._publish(pack.advance())
        if monotonic() - self._told >= BEAT_SECONDS:
            self.tell(contract.Beat())

    def _publish(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, Progress):
                if monotonic() - self._progress.get(event.unit, 0.0) < PROGRESS_SECONDS:
                    continue
                self._progress[event.unit] = monotonic()
            if isinstance(event, UnitEnded):
                self._training.discard(event.unit)
                self._progress.pop(event.unit, None)
            self.tell(event)


def main(arguments: list[str] | None = None) -> int:
    """Serve one supervisor; the exit status."""
    options = _options(arguments)
    die_with_parent()
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # of a trainer that hangs nothing else can be asked
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as sent to a whole control group; the supervisor suspends
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the supervisor decides
    messages = Messages(os.fdopen(options.read_fd, encoding="utf-8"))
    out = os.fdopen(options.write_fd, "w", encoding="utf-8")
    try:
        engine = cast(Engine, importlib.import_module(options.engine))
        device = engine.prepare()
        trainer = Trainer(out, engine, device)
        trainer.tell(contract.Ready(device=str(device), **engine.versions()))
        trainer.run(messages)
    except BrokenPipeError:
        # the supervisor is gone; a second failure to flush at exit would only print noise
        os._exit(0)
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m trial_worker.trainer", description=__doc__)
    parser.add_argument("--read-fd", type=int, required=True, help="inherited descriptor to read messages from")
    parser.add_argument("--write-fd", type=int, required=True, help="inherited descriptor to write messages to")
    parser.add_argument("--engine", default=ENGINE, help="module that trains, see `Engine` (default: %(default)s)")
    return parser.parse_args(arguments)


def _line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
