"""`python -m benchmarks.engine_curve [--quick]`: tokens a second of a full pack; one JSON object as the last line.

For each model shape, number of slots and tokens that each unit brings to a step: trained tokens a second, and the share
of the device's peak, which is measured by a large matrix product in the same run. Needs torch, transformers and peft.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks import machine
from benchmarks.engine_curve import shapes
from orchestrator.contract import Progress, UnitEnded
from trial_worker.engine import Pack, prepare

LENGTH = 128
STEPS = 64  # of an epoch, after which one row is evaluated
ON_GPU = (["0.13B", "0.5B", "1.2B", "8B"], [1, 2, 4, 8, 16, 32], [256, 1024, 4096])
ON_CPU = (["0.02B"], [1, 2, 4], [256, 1024])
QUICK = (["0.5B"], [1, 8, 32], [1024])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every cell; a cell that does not fit is null."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine_curve", description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=shapes.SHAPES)
    parser.add_argument("--slots", nargs="+", type=int)
    parser.add_argument("--tokens", nargs="+", type=int, help="of each unit's effective batch, rows of 128")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true", help="no talk on stderr")
    chosen = parser.parse_args(arguments)
    device = prepare()
    usual = ON_CPU if device.type == "cpu" else QUICK if chosen.quick else ON_GPU
    peak = peak_flops(device)
    cells = []
    for shape in chosen.shapes or usual[0]:
        base, cost = shapes.base(shape, device)
        for tokens in chosen.tokens or usual[2]:
            for slots in chosen.slots or usual[1]:
                cell = measure(base, cost, slots, tokens, chosen.repeats, peak)
                cells.append({"shape": shape, "slots": slots, "tokens_per_unit": tokens, **cell})
                if not chosen.json:
                    print(cells[-1], file=sys.stderr, flush=True)
        del base
        if device.type == "cuda":
            torch.cuda.empty_cache()
    found = {
        "benchmark": "engine_curve",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "length": LENGTH,
        "measured_peak_tflops": round(peak / 1e12, 3),
        "threads": int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())),
        "cells": cells,
        "machine": machine.describe(),
        "versions": machine.versions(),
    }
    print(json.dumps(found))
    return 0


def measure(base: Any, cost: shapes.Cost, slots: int, tokens: int, repeats: int, peak: float) -> dict[str, Any]:
    """Trained tokens a second, median and range, and their share of the peak."""
    batch = max(tokens // LENGTH, 1)
    rows = batch * STEPS
    texts: Any = shapes.Texts(rows, LENGTH, int(base.model.config.vocab_size))
    pack = Pack(base, texts, slots=slots)
    for unit in shapes.units(slots, rows, batch, LENGTH):
        pack.add(unit)
    found = []
    try:
        _steps(pack, 3)
        each = max(1, round(1.0 / _seconds(base.device, lambda: _steps(pack, 1))))
        for _ in range(repeats):
            seconds = _seconds(base.device, lambda: _steps(pack, each))
            found.append(each * batch * slots * LENGTH / seconds)
    except RuntimeError as error:
        return {"tokens_per_second": None, "note": str(error).splitlines()[0]}
    finally:
        for number in range(slots):
            pack.drop(number, "measured")
    rate = statistics.median(found)
    flops = rate * (cost.layers + cost.head * (LENGTH - 1) / LENGTH)
    return {
        "tokens_per_second": round(rate),
        "range": [round(min(found)), round(max(found))],
        "share_of_peak": round(flops / peak, 3),
    }


def _steps(pack: Pack, count: int) -> None:
    """So many optimizer steps of every unit.

    Raises:
        RuntimeError: a unit ended.
    """
    left = count * pack.slots
    while left > 0:
        events = pack.advance()
        for ended in (event for event in events if isinstance(event, UnitEnded)):
            raise RuntimeError(f"unit {ended.unit}: {ended.reason}\n{ended.evidence}")
        left -= sum(isinstance(event, Progress) for event in events)


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    """Wall seconds until the device is done with it."""
    _wait(device)
    began = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_flops(device: torch.device) -> float:
    """Operations a second of a large matrix product, in the type that frozen weights have there."""
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    a @ b
    best = min(_seconds(device, lambda: a @ b) for _ in range(10))
    return 2 * size**3 / best


if __name__ == "__main__":
    sys.exit(main())
