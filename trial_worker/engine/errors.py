"""How training a unit ends other than by finishing."""

from __future__ import annotations

import torch

from orchestrator.contract import Outcome


class UnitStopped(Exception):
    """The unit ends with this outcome; the message is the reason, one line."""

    def __init__(self, outcome: Outcome, reason: str) -> None:
        super().__init__(reason)
        self.outcome = outcome


class UnusableModel(ValueError):
    """The model cannot be loaded or does not fit the task; the message says what to do instead."""


_MEMORY_PHRASES = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that a tensor did not fit.

    Only the CUDA allocator raises `torch.OutOfMemoryError`; torch's CPU allocator and cuBLAS raise a plain
    RuntimeError that only its words tell apart.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in _MEMORY_PHRASES)


def leaves_no_device(error: BaseException) -> bool:
    """Whether an exception leaves the process without its GPU: every later call would fail, whoever's it is.

    An illegal access or a device-side assertion; running out of memory is none.
    """
    if is_out_of_memory(error):
        return False
    return isinstance(error, getattr(torch, "AcceleratorError", ())) or "CUDA error" in str(error)
