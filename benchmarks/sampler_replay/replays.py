"""All seeds of many forms, in this process or in several."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

from benchmarks.sampler_replay import figures, table
from benchmarks.sampler_replay.figures import Measured, Truth
from benchmarks.sampler_replay.simulate import Form, simulate

Task = tuple[Path, Form, int]  # (recorded file, form, seeds)


@cache
def truth(path: Path) -> Truth:
    """Of a recorded file, read once in a process."""
    return Truth(table.load(path))


def of(task: Task) -> list[Measured]:
    """Of all seeds of one form."""
    path, form, seeds = task
    known = truth(path)
    return [figures.measure(known, simulate(known.table, form, seed)) for seed in range(seeds)]


def each(tasks: Sequence[Task], jobs: int) -> Iterator[list[Measured]]:
    """Of each form, in their order. Spawned processes: a fork would inherit Optuna's and torch's threads."""
    if jobs == 1:
        yield from map(of, tasks)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(of, tasks)
