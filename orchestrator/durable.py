"""Files that are there whole or not at all, whatever dies meanwhile. Standard library only."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from orchestrator.crash_points import reach

TEMPORARY = ".tmp"  # suffix of a file that is being written; one that stays behind belongs to a dead process


def write(path: Path, content: bytes) -> str:
    """Write a file through a temporary one beside it; its sha256.

    After a crash at any moment, of this process or of the machine, the path holds what it held before or all of this.

    Raises:
        OSError: the disk is full, or the folder cannot be written; nothing of the file stays.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            reach("before write")
            file.write(content)
            file.flush()
            reach("before fsync")
            os.fsync(file.fileno())
        reach("before rename")
        temporary.replace(path)
        reach("after rename")
        sync_folder(path.parent)
        reach("after fsync of the folder")
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    return sha256(content)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(content: bytes) -> str:
    """Hexadecimal."""
    return hashlib.sha256(content).hexdigest()
