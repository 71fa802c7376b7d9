"""One form in a process of its own: `python -m benchmarks.search_speed.form NAME REPLAY [--quick]`; JSON on stdout."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.search_speed import account, replay
from benchmarks.search_speed.account import Run
from benchmarks.search_speed.replay import Replay


def _plain(form: str, keep: bool, own_dropout: bool) -> Callable[[Replay], Run]:
    def run(work: Replay) -> Run:
        from benchmarks.search_speed import plain

        return plain.run(work, form, keep=keep, own_dropout=own_dropout)

    return run


def _engine(form: str, raced: bool) -> Callable[[Replay], Run]:
    def run(work: Replay) -> Run:
        from benchmarks.search_speed import fleet

        return fleet.run(work, form, raced=raced)

    return run


FORMS: dict[str, Callable[[Replay], Run]] = {
    "reload": _plain("reload", keep=False, own_dropout=False),
    "kept": _plain("kept", keep=True, own_dropout=False),
    "kept_own_dropout": _plain("kept_own_dropout", keep=True, own_dropout=True),
    "foldtune": _engine("foldtune", raced=False),
    "foldtune_racing": _engine("foldtune_racing", raced=True),
}


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search_speed.form", description=__doc__)
    parser.add_argument("form", choices=FORMS)
    parser.add_argument("replay", type=Path)
    parser.add_argument("--quick", action="store_true")
    chosen = parser.parse_args()
    account.now()
    work = replay.load(chosen.replay)
    with contextlib.redirect_stdout(sys.stderr):  # a library's prints must not stand in the answer
        import torch

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        found = FORMS[chosen.form](work.quick() if chosen.quick else work)
    print(json.dumps(found.to_json()))


if __name__ == "__main__":
    main()
