"""What this machine trains on, and how many processes share it. Loads neither torch nor a database's driver."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

from orchestrator.errors import USAGE, FoldtuneError

MEMORY_PER_CPU_WORKER = 2 * 2**30
MOST_CPU_WORKERS = 8


@dataclass(frozen=True)
class Device:
    """What a trainer trains on."""

    name: str  # "cpu", or "cuda:N" with N as the machine counts
    id: str | None = None  # a GPU's UUID; None: not exclusive

    @property
    def kind(self) -> str:
        """`cpu` or `cuda`."""
        return self.name.partition(":")[0]


def devices() -> list[Device]:
    """The GPUs of this machine that CUDA_VISIBLE_DEVICES allows; without any, the CPU. Loads no torch."""
    if shutil.which("nvidia-smi") is None:
        return [Device("cpu")]
    listed = subprocess.run(
        ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    found = [line.split(", ") for line in listed.stdout.splitlines() if ", " in line]
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = [
        Device(f"cuda:{index}", uuid)
        for index, uuid in found
        if allowed is None or index in allowed.split(",") or uuid in allowed.split(",")
    ]
    return gpus or [Device("cpu")]


def chosen_devices(wanted: str) -> list[Device]:
    """The devices that `--device` means: auto, cpu, or cuda:N.

    Raises:
        FoldtuneError: no such device here.
    """
    if wanted == "cpu":
        return [Device("cpu")]
    found = devices()
    if wanted == "auto":
        return found
    named = [device for device in found if device.name == wanted]
    if not named:
        have = ", ".join(device.name for device in found)
        raise FoldtuneError(f"no device {wanted!r} here; there is {have}", help="use --device cpu", code=USAGE)
    return named


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers(device: str) -> int:
    """Workers for `--device`: one for each GPU; on a CPU one for each core, as far as memory goes.

    Small models gain nothing from a second thread: a 16 x 32 MiniLM step took 0.21 CPU s on one thread and 0.38 on two.
    """
    found = chosen_devices(device)
    if found[0].kind != "cpu":
        return len(found)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(cores(), MOST_CPU_WORKERS, memory // MEMORY_PER_CPU_WORKER))
