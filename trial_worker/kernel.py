"""What the kernel says about memory."""

from __future__ import annotations

from pathlib import Path

# The first that can be read is asked: our own group (cgroup v2, v1), else the machine.
_COUNTERS = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control", "/proc/vmstat")


def oom_kills() -> int:
    """How many processes the kernel has killed for want of memory, as far as this process can see."""
    for path in _COUNTERS:
        try:
            lines = Path(path).read_text(encoding="ascii").split("\n")
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
