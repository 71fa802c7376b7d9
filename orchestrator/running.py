"""`run` and `watch`: local workers, a live view, the result."""

from __future__ import annotations

import json
import signal
import time

import click
from rich.live import Live
from sqlalchemy import Engine

from orchestrator import console, devices, reading, view, words
from orchestrator.database.home import locate
from orchestrator.errors import UNAVAILABLE, FoldtuneError
from orchestrator.launchers import local
from orchestrator.launchers.local import LocalWorker
from orchestrator.reading import View

EVERY = 0.5


def run(engine: Engine, name: str, *, workers: int | None, device: str, as_json: bool) -> int:
    """Train a launched study with workers of this machine and print the winner; the exit code."""
    seen = reading.view(engine, name)
    if seen.record.state == "open":
        count = workers or devices.default_workers(device)
        click.echo(f"starting {count} worker{'s' if count > 1 else ''} on this machine", err=True)
        for ending in (signal.SIGTERM, signal.SIGHUP):  # a closed terminal must not leave the workers behind
            signal.signal(ending, signal.default_int_handler)
        started = local.start(engine.url, [name], count, device, locate().client / "logs")
        try:
            seen = follow(engine, name, every=EVERY, started=started)
        except KeyboardInterrupt:
            click.echo("\nstopping the workers; finished folds are kept, the same command goes on from them", err=True)
            return 130
        finally:
            local.stop(started)
        if seen.record.state == "open":
            return _explain(started)
    return _result(seen, as_json)


def follow(engine: Engine, name: str, *, every: float, started: list[LocalWorker] | None = None) -> View:
    """Show a study until it ends, or until all the given workers have ended. The last look."""
    terminal = console.talk()
    seen = reading.view(engine, name)
    told: set[int] = set()
    with Live(console=terminal, auto_refresh=False, transient=started is not None) as screen:
        while True:
            if terminal.is_terminal:
                screen.update(view.live(seen), refresh=True)
            else:
                _tell_closed(seen, told)
            ended = started is not None and all(worker.process.poll() is not None for worker in started)
            if seen.record.state != "open" or ended:
                return seen if not ended else reading.view(engine, name)
            time.sleep(every)
            try:
                seen = reading.view(engine, name)
            except FoldtuneError as error:
                if error.code != UNAVAILABLE or started is None:
                    raise
                # the workers wait for the database, so whoever shows them does; once they gave up, the loop ends


def _tell_closed(seen: View, told: set[int]) -> None:
    """Without a terminal: one line for each trial that has ended since the last look."""
    for trial in seen.trials:
        if trial.state in ("waiting", "running") or trial.id in told:
            continue
        told.add(trial.id)
        left = reading.seconds_to_go(seen)
        value = "" if trial.value is None else f" {seen.record.spec.objective} {trial.value:.4f}"
        ahead = "" if left is None else f", about {left:.0f} s to go"
        click.echo(f"trial {trial.name} {trial.state}{value}: {words.assignment(trial.params)}{ahead}", err=True)


def _explain(started: list[LocalWorker]) -> int:
    """All workers left before the study was done."""
    click.echo("error: every worker ended before the study did; the last lines of one:", err=True)
    click.echo(started[0].tail(), err=True)
    click.echo(f"help: the whole log is {started[0].log}", err=True)
    return 1


def _result(seen: View, as_json: bool) -> int:
    found = reading.best(seen)
    if as_json:
        click.echo(json.dumps(found))
    else:
        console.data().print(view.result(seen))
    return 0 if found is not None else 1
