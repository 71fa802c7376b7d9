"""Workers as processes of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.engine import URL

from orchestrator.devices import cores


@dataclass(frozen=True)
class LocalWorker:
    """A worker process and where it talks to."""

    process: subprocess.Popen[bytes]
    log: Path

    def tail(self, lines: int = 10) -> str:
        """The last lines of its talk."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def environment(url: URL, workers_here: int) -> dict[str, str]:
    """The environment of a worker process: the storage, never in its arguments, and its share of the cores."""
    threads = str(max(1, cores() // workers_here))
    return {
        **os.environ,
        "OPTUNA_STORAGE": url.render_as_string(hide_password=False),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads),
    }


def command(studies: Sequence[str], *options: str) -> list[str]:
    """The command line of a worker."""
    return [sys.executable, "-m", "trial_worker", *options, *studies]


def start(url: URL, studies: Sequence[str], count: int, device: str, logs: Path) -> list[LocalWorker]:
    """Start worker processes; their talk goes to files in `logs`."""
    logs.mkdir(parents=True, exist_ok=True)
    started = []
    for index in range(count):
        log = logs / f"{'-'.join(studies)}-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}-{index}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                command(studies, "--device", device),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment(url, count),
                start_new_session=True,  # a Ctrl-C at the terminal is the parent's to pass on, once
            )
        started.append(LocalWorker(process, log))
    return started


def stop(running: Sequence[LocalWorker], patience: float = 8.0) -> None:
    """Ask all to leave, and end those that do not."""
    for worker in running:
        if worker.process.poll() is None:
            worker.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + patience
    for worker in running:
        try:
            worker.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.kill()
