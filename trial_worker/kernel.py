"""What the kernel says about memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")


def _counters() -> Iterator[Path]:
    """Where kills are counted, the best place first: our own group (cgroup v2, v1), the container's, the machine."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                yield _GROUPS / path.lstrip("/") / "memory.events"
            elif "memory" in controllers.split(","):
                yield _GROUPS / "memory" / path.lstrip("/") / "memory.oom_control"
    # In a container without a namespace of its own for groups, the path above is the host's.
    yield _GROUPS / "memory.events"
    yield _GROUPS / "memory" / "memory.oom_control"
    yield Path("/proc/vmstat")


def oom_kills() -> int:
    """How many processes the kernel has killed for want of memory, as far as this process can see."""
    for path in _counters():
        try:
            lines = path.read_text(encoding="ascii").split("\n")
        except OSError:
            continue
        for line in lines:
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    return 0


def machine_memory() -> str:
    """`14 of 16 GiB used`, for a message."""
    try:
        pairs = (line.split(":") for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        sizes = {name: int(value.split()[0]) / 2**20 for name, value in pairs}
        return f"{sizes['MemTotal'] - sizes['MemAvailable']:.1f} of {sizes['MemTotal']:.1f} GiB used now"
    except (OSError, ValueError, KeyError):
        return "how much is used cannot be read"
