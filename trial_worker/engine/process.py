"""What the engine asks of the process that it runs in: once, before the first study."""

from __future__ import annotations

import logging
import os
import resource
from functools import cache
from importlib.metadata import version

import torch
import transformers
from huggingface_hub.utils.tqdm import disable_progress_bars

from trial_worker.lifeline import keep_freed_memory


def prepare() -> torch.device:
    """Take the threads that the process was given, quieten the libraries; the device to train on."""
    keep_freed_memory()
    # a tokenizer's threads would compete with torch's for the same cores
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if "HF_HUB_DISABLE_PROGRESS_BARS" not in os.environ:  # once set, it has the last word, and a call only warns
        disable_progress_bars()
    if threads := os.environ.get("OMP_NUM_THREADS", "").split(",")[0]:
        torch.set_num_threads(int(threads))
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    # the table of fresh head weights at every load; what matters of it, the engine checks itself
    transformers.logging.set_verbosity(logging.ERROR)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@cache
def versions() -> dict[str, str]:
    """What the numbers depend on beside a unit itself."""
    return {name: version(name) for name in ("torch", "transformers", "peft")}


def peak_bytes(device: torch.device) -> int:
    """The most memory at any time: of tensors on a GPU, of this process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux has kibibytes
