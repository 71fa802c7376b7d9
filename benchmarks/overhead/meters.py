"""What a process counts of itself: statements on the wire, and seconds inside functions of the product."""

from __future__ import annotations

import functools
import importlib
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine, event

# Timed where they exist; inclusive of what they call. `study.suggest` is the sampler alone.
FUNCTIONS = (
    "orchestrator.queries.trials",
    "orchestrator.queries.fold_results",
    "orchestrator.reconcile.settle",
    "orchestrator.reconcile._close_study",
    "orchestrator.cleaning.prune",
    "orchestrator.rungs.verdicts",
    "orchestrator.budget._usage",
    "orchestrator.waiting.next_unit",
    "orchestrator.waiting.first_rung_unit",
    "orchestrator.waiting.further_unit",
    "orchestrator.trials._ask",
    "orchestrator.study.suggest",
    "orchestrator.history.past_of",
    "orchestrator.projection._behind",
    "orchestrator.projection._project",
    "orchestrator.study.show_start",
    "orchestrator.study.show_end",
)


@dataclass
class Statements:
    """Statements and commits of some engines; of each statement also its seconds, and its slowest text."""

    count: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    calls: Counter[str] = field(default_factory=Counter)
    slowest: dict[str, tuple[float, bytes]] = field(default_factory=dict)
    deep: bool = False  # keep texts: costs time

    def watch(self, engine: Engine) -> None:
        """Count what this engine sends."""
        event.listen(engine, "before_cursor_execute", self._before)
        event.listen(engine, "after_cursor_execute", self._after)
        event.listen(engine, "commit", self._commit)

    def _before(self, connection: Any, *_: object) -> None:
        connection.info["overhead_began"] = time.perf_counter()

    def _after(self, connection: Any, cursor: Any, statement: str, parameters: Any, *_: object) -> None:
        self.count += 1
        if not self.deep:
            return
        taken = time.perf_counter() - connection.info["overhead_began"]
        self.calls[statement] += 1
        self.seconds[statement] += taken
        if taken > self.slowest.get(statement, (0.0, b""))[0]:
            self.slowest[statement] = (taken, cursor.query)

    def _commit(self, _: object) -> None:
        self.count += 1


@dataclass
class Functions:
    """Calls of the product's functions, and seconds inside them."""

    calls: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _undo: list[Callable[[], None]] = field(default_factory=list)

    def watch(self, names: tuple[str, ...] = FUNCTIONS) -> None:
        """Put a clock around each; a name that this version does not have is left out."""
        for name in names:
            module_name, _, function_name = name.rpartition(".")
            try:
                module = importlib.import_module(module_name)
            except ModuleNotFoundError:
                continue
            original = getattr(module, function_name, None)
            if original is not None:
                setattr(module, function_name, self._timed(name.removeprefix("orchestrator."), original))
                self._undo.append(functools.partial(setattr, module, function_name, original))

    def stop(self) -> None:
        """Take the clocks away."""
        while self._undo:
            self._undo.pop()()

    def _timed(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def timed(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return original(*arguments, **options)
            finally:
                self.calls[name] += 1
                self.seconds[name] += time.perf_counter() - began

        return timed
