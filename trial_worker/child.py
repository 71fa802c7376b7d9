"""The trainer process as its supervisor sees it: start it, talk to it, notice its end. No torch here."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

from orchestrator import contract

# Only the supervisor talks to the database: nothing that holds its URL or password reaches the trainer.
ALLOWED = frozenset(
    {
        "PATH",
        "HOME",
        "USER",
        "LANG",
        "TZ",
        "TMPDIR",
        "VIRTUAL_ENV",
        "LD_LIBRARY_PATH",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "REQUESTS_CA_BUNDLE",
        "XDG_CACHE_HOME",
    }
    | {"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "KMP_AFFINITY"}
)
ALLOWED_PREFIXES: tuple[str, ...] = (
    "LC_",
    "CUDA_",
    "NVIDIA_",
    "HF_",
    "TRANSFORMERS_",
    "TORCH",
    "PYTORCH_",
    "PYTHON",
    "OMP_",
    "MKL_",
)
ALLOWED_PREFIXES += ("FOLDTUNE_LIGHT_", "FOLDTUNE_CRASH_")  # of the fault harness; no secret has such a name
LOG_LINES = 200
DYING_SECONDS = 2.0  # between a trainer's last word and its end
DUMP_SECONDS = 1.0  # for the stacks of a process that hangs
ENGINE = "trial_worker.engine"


@dataclass(frozen=True)
class Death:
    """How a trainer ended, and the last lines it printed."""

    how: str
    signal: int | None
    log: str


class Trainer:
    """One child process on one device. What it says goes to `hear`; None means that it has ended.

    hear: called with (this trainer, message) from a thread.
    """

    def __init__(self, device: str, hear: Callable[[Trainer, Any], None]) -> None:
        commands_in, commands_out = os.pipe()
        events_in, events_out = os.pipe()
        self.log: deque[str] = deque(maxlen=LOG_LINES)
        self._hear = hear
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "trial_worker.trainer",
                "--engine",
                os.environ.get("FOLDTUNE_ENGINE", ENGINE),
                "--read-fd",
                str(commands_in),
                "--write-fd",
                str(events_out),
            ],
            pass_fds=(commands_in, events_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment(device),
            text=True,
            encoding="utf-8",
            errors="replace",  # a library's stray byte must not end the thread that empties this pipe
            start_new_session=True,  # a Ctrl-C at the terminal is the supervisor's to handle
        )
        os.close(commands_in)
        os.close(events_out)
        self._commands: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._write, args=(os.fdopen(commands_out, "w", buffering=1),), daemon=True).start()
        threading.Thread(target=self._read, args=(os.fdopen(events_in),), daemon=True).start()
        assert self._process.stdout is not None
        self._logger = threading.Thread(target=self._keep_log, args=(self._process.stdout,), daemon=True)
        self._logger.start()

    def _write(self, commands: IO[str]) -> None:
        # in a thread: a trainer that hangs reads nothing, and a full pipe would stop the supervisor too
        with contextlib.suppress(BrokenPipeError), commands:
            while (message := self._commands.get()) is not None:
                commands.write(contract.encode(message) + "\n")

    def _read(self, events: IO[str]) -> None:
        try:
            with events:
                for line in events:
                    self._hear(self, contract.decode(line))
        except ValueError as error:  # a trainer that is killed while it writes leaves half a line
            self.log.append(str(error))
        finally:
            self._hear(self, None)  # without it the supervisor would wait, and renew its lease, for ever

    def _keep_log(self, output: IO[str]) -> None:
        with output:
            for line in output:
                self.log.append(line.rstrip())

    def send(self, message: Any) -> None:
        """Hand over a message; that a trainer has just died is heard."""
        self._commands.put(message)

    def kill(self) -> None:
        """End the process at once, whatever it does."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._commands.put(None)

    def dump_and_kill(self) -> None:
        """Have it print the stacks of all its threads, then end it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGUSR1)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(DUMP_SECONDS)
        self.kill()

    def stop(self, timeout: float = 2.0) -> None:
        """Ask it to exit, and make it."""
        self.send(contract.Shutdown())
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)
        self.kill()

    def death(self) -> Death:
        """How it ended. Makes it end if it still runs."""
        try:
            code = self._process.wait(DYING_SECONDS)
        except subprocess.TimeoutExpired:  # nobody reads what it says any more
            self.kill()
            code = self._process.wait()
        self._logger.join(DYING_SECONDS)
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return Death(f"the trainer process ended: {how}", -code if code < 0 else None, "\n".join(self.log))


def environment(device: str) -> dict[str, str]:
    """The trainer's environment: an allow-list of this process's, and its one device."""
    kept = {name: value for name, value in os.environ.items() if name in ALLOWED or name.startswith(ALLOWED_PREFIXES)}
    kept["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # as nvidia-smi counts; CUDA's own order begins with the fastest
    kept["CUDA_VISIBLE_DEVICES"] = device.removeprefix("cuda:") if device.startswith("cuda:") else ""
    return kept
