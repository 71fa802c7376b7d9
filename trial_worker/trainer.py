"""The child process that trains, one per device: `python -m trial_worker.trainer --read-fd N --write-fd M`.

It speaks to its supervisor only, one message of `orchestrator.contract` a line: it reads them from one inherited
file descriptor and writes to another, so that stdout and stderr stay free for what libraries print. It knows no
database. It dies with its parent, and when the descriptor it reads ends.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import queue
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Iterator
from importlib.metadata import version
from time import monotonic
from typing import Any, TextIO

from orchestrator import contract
from orchestrator.contract import Outcome, Progress, TrainUnit, UnitEnded
from trial_worker.lifeline import die_with_parent, keep_freed_memory

PROGRESS_SECONDS = 1.0


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
    """Opens studies, trains units one after another, and tells of them.

    out: where messages go, a line each.
    """

    def __init__(self, out: TextIO, device: Any) -> None:
        self._out = out
        self._device = device
        self._packs: dict[int, Any] = {}  # study -> engine.Pack, kept with model and data until another study is opened
        self._units: deque[TrainUnit] = deque()  # to train; the first may be in its pack already
        self._running: Any = None  # the pack of the first unit once it is in
        self._told = 0.0  # when the last Progress was sent

    def tell(self, message: Any) -> None:
        """Send one message."""
        self._out.write(contract.encode(message) + "\n")
        self._out.flush()

    def run(self, messages: Messages) -> None:
        """Serve until a Shutdown; messages are honoured between two steps."""
        while True:
            for message in messages.waiting(block=not self._units):
                if isinstance(message, contract.Shutdown):
                    return
                self._take(message)
            if self._units:
                self._advance()

    def _take(self, message: Any) -> None:
        match message:
            case contract.OpenStudy():
                self._open(message)
            case contract.TrainUnit():
                self._units.append(message)
            case contract.DropUnit():
                self._drop(message)
            case contract.Limit():
                self._limit(message)
            case _:
                print(f"the trainer does not take {type(message).__name__}", file=sys.stderr)

    def _open(self, study: contract.OpenStudy) -> None:
        """Load a study's model, tokenizer and rows in place of the last one's.

        Two models at once could leave too little memory for a unit that fits alone, and it would be called infeasible.
        """
        started = monotonic()
        self._packs.clear()
        try:
            from trial_worker.engine import Base, Pack, Rows, read_snapshot
            from trial_worker.tasks import task_named

            task = task_named(study.task, study.labels)
            rows = read_snapshot(study.data)
            base = Base.load(study.model, task.family, len(task.labels), self._device)
            self._packs[study.study] = Pack(base, Rows(task, rows, base.tokenizer))
        except Exception as error:
            self.tell(contract.StudyRefused(study=study.study, reason=_line(error), evidence=traceback.format_exc()))
        else:
            self.tell(contract.StudyOpened(study=study.study, seconds=monotonic() - started))

    def _drop(self, message: contract.DropUnit) -> None:
        if self._running is not None and self._units[0].unit == message.unit:
            self._publish(self._running.drop(message.unit, message.reason))
            return
        for unit in [unit for unit in self._units if unit.unit == message.unit]:
            self._units.remove(unit)
            self.tell(_ended(unit, Outcome.DROPPED, message.reason))

    def _limit(self, message: contract.Limit) -> None:
        if self._running is not None and self._units[0].unit == message.unit:
            self._running.limit(message.unit, message.seconds_left)

    def _advance(self) -> None:
        """One step of the first unit."""
        unit = self._units[0]
        if self._running is None:
            pack = self._packs.get(unit.study)
            if pack is None:
                self._units.popleft()
                self.tell(_ended(unit, Outcome.FAILED, f"study {unit.study} is not open in this process"))
                return
            pack.add(unit)
            self._running = pack
        self._publish(self._running.advance())

    def _publish(self, events: list[Any]) -> None:
        for event in events:
            if isinstance(event, Progress):
                if monotonic() - self._told < PROGRESS_SECONDS:
                    continue
                self._told = monotonic()
            if isinstance(event, UnitEnded):
                self._units.popleft()
                self._running = None
            self.tell(event)


def main(arguments: list[str] | None = None) -> int:
    """Serve one supervisor; the exit status."""
    options = _options(arguments)
    die_with_parent()
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the supervisor decides
    messages = Messages(os.fdopen(options.read_fd, encoding="utf-8"))
    out = os.fdopen(options.write_fd, "w", encoding="utf-8")
    try:
        device = _prepare()
        trainer = Trainer(out, device)
        trainer.tell(_ready(device))
        trainer.run(messages)
    except BrokenPipeError:
        # the supervisor is gone; a second failure to flush at exit would only print noise
        os._exit(0)
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m trial_worker.trainer", description=__doc__)
    parser.add_argument("--read-fd", type=int, required=True, help="inherited descriptor to read messages from")
    parser.add_argument("--write-fd", type=int, required=True, help="inherited descriptor to write messages to")
    return parser.parse_args(arguments)


def _prepare() -> Any:
    """Import torch with the process's threads, quieten the libraries; the device."""
    keep_freed_memory()
    # a tokenizer's threads would compete with torch's for the same cores
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import torch
    import transformers

    if threads := os.environ.get("OMP_NUM_THREADS", "").split(",")[0]:
        torch.set_num_threads(int(threads))
    transformers.logging.disable_progress_bar()
    # the table of fresh head weights at every load; what matters of it, the engine checks itself
    transformers.logging.set_verbosity(logging.ERROR)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _ready(device: Any) -> contract.Ready:
    return contract.Ready(
        device=str(device),
        torch=version("torch"),
        transformers=version("transformers"),
        peft=version("peft"),
    )


def _ended(unit: TrainUnit, outcome: Outcome, reason: str) -> UnitEnded:
    return UnitEnded(unit=unit.unit, lease_epoch=unit.lease_epoch, outcome=outcome, reason=reason)


def _line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
