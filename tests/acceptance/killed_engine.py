"""An engine that meets the end which a process meets when memory runs out."""

import os
import signal
from typing import Any


def prepare() -> str:
    return "cpu"


def open_study(study: Any, device: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
