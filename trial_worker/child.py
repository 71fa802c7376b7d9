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
ALLOWED_PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "HF_", "TRANSFORMERS_", "TORCH", "PYTORCH_", "PYTHON", "OMP_", "MKL_")
LOG_LINES = 50
DYING_SECONDS = 5.0  # between a trainer's last word and its end


class Trainer:
    """One child process on one device. Messages come out of `receive`; None means that it has ended."""

    def __init__(self, device: str) -> None:
        commands_in, commands_out = os.pipe()
        events_in, events_out = os.pipe()
        self.log: deque[str] = deque(maxlen=LOG_LINES)
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "trial_worker.trainer",
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
        self._commands = os.fdopen(commands_out, "w", buffering=1)
        self._events: queue.Queue[Any] = queue.Queue()
        threading.Thread(target=self._read, args=(os.fdopen(events_in),), daemon=True).start()
        assert self._process.stdout is not None
        threading.Thread(target=self._keep_log, args=(self._process.stdout,), daemon=True).start()

    def _read(self, events: IO[str]) -> None:
        try:
            with events:
                for line in events:
                    self._events.put(contract.decode(line))
        except ValueError as error:  # a trainer that is killed while it writes leaves half a line
            self.log.append(str(error))
        finally:
            self._events.put(None)  # without it the supervisor would wait, and renew its lease, for ever

    def _keep_log(self, output: IO[str]) -> None:
        with output:
            for line in output:
                self.log.append(line.rstrip())

    def send(self, message: Any) -> None:
        """Hand over a message; a trainer that has just died is noticed by `receive`."""
        with contextlib.suppress(BrokenPipeError):
            self._commands.write(contract.encode(message) + "\n")

    def receive(self, timeout: float) -> Any:
        """The next message; None when the trainer has ended.

        Raises:
            queue.Empty: nothing came in time.
        """
        return self._events.get(timeout=max(0.0, timeout))

    def kill(self) -> None:
        """End the process at once, whatever it does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._commands.close()

    def stop(self, timeout: float = 2.0) -> None:
        """Ask it to exit, and make it."""
        self.send(contract.Shutdown())
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)
        self.kill()

    def obituary(self) -> tuple[str, str]:
        """(how it ended, the last lines it printed). Makes it end if it still runs."""
        try:
            code = self._process.wait(DYING_SECONDS)
        except subprocess.TimeoutExpired:  # nobody reads what it says any more
            self.kill()
            code = self._process.wait()
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"the trainer process ended: {how}", "\n".join(self.log)


def environment(device: str) -> dict[str, str]:
    """The trainer's environment: an allow-list of this process's, and its one device."""
    kept = {name: value for name, value in os.environ.items() if name in ALLOWED or name.startswith(ALLOWED_PREFIXES)}
    kept["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # as nvidia-smi counts; CUDA's own order begins with the fastest
    kept["CUDA_VISIBLE_DEVICES"] = device.removeprefix("cuda:") if device.startswith("cuda:") else ""
    return kept
