"""A process that trains units one after the other: messages of `orchestrator.contract` on stdin and stdout."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace

from orchestrator.contract import EpochDone, UnitEnded, decode, encode
from trial_worker.engine import open_study, prepare
from trial_worker.lifeline import die_with_parent


def main() -> None:
    """An OpenStudy first, then TrainUnits; for each its EpochDones, and UnitEnded. Ends with its input."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the parent decides
    with os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1) as out:
        os.dup2(2, 1)  # a library's prints must not stand in the answers
        device = prepare()
        pack = open_study(decode(sys.stdin.readline()), device)
        for line in sys.stdin:
            pack.add(decode(line))
            began, ended = time.process_time(), False
            while not ended:
                for event in pack.advance():
                    if isinstance(event, EpochDone):
                        now = time.process_time()
                        seconds = now - began if device.type == "cpu" else event.seconds
                        print(encode(replace(event, seconds=seconds)), file=out)
                        began = now
                    elif isinstance(event, UnitEnded):
                        print(encode(event), file=out)
                        ended = True


if __name__ == "__main__":
    main()
