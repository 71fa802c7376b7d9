"""What a training process asks of its system: not to outlive its parent, and to keep its memory."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def die_with_parent() -> None:
    """Ask Linux to kill this process when its parent ends; elsewhere the end of its input must do.

    The signal comes when the *thread* that started the child ends, so that thread must live as long as the parent.
    """
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)  # the parent ended before the request was in place


def keep_freed_memory() -> None:
    """Ask glibc to keep freed blocks; elsewhere nothing happens.

    By default it hands every large tensor back to the kernel, to have it faulted in again page by page at the next
    micro-step: some 5 % of a MiniLM epoch on a CPU.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that glibc accepts
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)
        mallopt(_M_TOP_PAD, 64 << 20)
