"""foldtune whole: `foldtune run` with the embedded Postgres, on the replay's configurations.

The trials of a replay are those that the `random` sampler draws from the study's seed, so a study file that asks for
it trains the same list. Beside them every study trains the default configuration, which stays in the figures.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.search_speed import harness
from benchmarks.search_speed.account import Spent
from benchmarks.search_speed.harness import Options
from benchmarks.search_speed.replay import Replay
from orchestrator.contract import Settings

FOLDTUNE = (sys.executable, "-m", "foldtune")
TICKS = os.sysconf("SC_CLK_TCK")


def run(replay: Replay, options: Options) -> dict[str, Any]:
    """Train the study once, one worker with the threads that the other forms have."""
    with tempfile.TemporaryDirectory(prefix="search-speed-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # as root, Postgres runs under another account, which must pass here
        path = write_study(replay, folder)
        homes = {"FOLDTUNE_HOME": str(folder / "home"), "FOLDTUNE_SYSTEM_HOME": str(folder / "system")}
        environment = {**harness.environment(options.threads), **homes}
        environment.pop("OPTUNA_STORAGE", None)
        with _server(environment) as server:
            before, began, idle = _children(), time.monotonic(), _server_cpu(folder)
            best = json.loads(_foldtune(environment, "run", str(path), "--workers", "1", "--json"))
            spent = Spent(_children() - before + _server_cpu(folder) - idle, time.monotonic() - began)
            status = json.loads(_foldtune(environment, "status", replay.name, "--json"))
            shown = _trials(replay.name, server)
        return composed(replay, spent, best, status, shown)


def composed(
    replay: Replay, spent: Spent, best: Mapping[str, Any], status: Mapping[str, Any], shown: list[dict[str, Any]]
) -> dict[str, Any]:
    """The product's figures (pure). shown: params and value of the trials that Optuna has.

    A default configuration outside the space is none of them, but was trained all the same.
    """
    by_params = {json.dumps(trial["params"], sort_keys=True): trial["value"] for trial in shown}
    losses = [by_params.get(json.dumps(dict(trial.params), sort_keys=True)) for trial in replay.trials]
    default = {name: getattr(Settings(), name) for name in replay.space}
    trained = len(replay.trials) + (default not in [dict(trial.params) for trial in replay.trials])
    return {
        "cpu_seconds": round(spent.cpu, 2),
        "wall_seconds": round(spent.wall, 2),
        "cpu_seconds_per_trial": round(spent.cpu / trained, 3),
        "trials": trained,
        "trials_per_hour": round(3600 * trained / spent.wall, 2),
        "same_configurations": None not in losses,
        "states": status["trials"],
        "winner": losses.index(best["value"]) if best["value"] in losses else None,
        "best_cv_loss": round(best["value"], 4),
        "cv_losses": [None if loss is None else round(loss, 4) for loss in losses],
    }


def write_study(replay: Replay, folder: Path) -> Path:
    """A study file on the inner rows; YAML 1.2 takes JSON."""
    rows = replay.rows()
    (folder / "inner.jsonl").write_text("".join(json.dumps(rows[row]) + "\n" for row in replay.inner), encoding="utf-8")
    model = replay.model.path
    if replay.model.origin == "local":
        model = str(Path(replay.model.root or ".") / model)
    source = {"path": model, "revision": replay.model.pin} if replay.model.origin == "hub" else {"path": model}
    study = {
        "study": replay.name,
        "model": source,
        "task": "classification",
        "data": {"path": "inner.jsonl"},
        "cross_validation": {"folds": replay.folds, "stratify": True, "seed": replay.fold_seed},
        "seed": replay.seed,
        "training": dict(replay.fixed),
        "search": {"sampler": "random", "space": {name: dict(entry) for name, entry in replay.space.items()}},
        "racing": {"rule": "none"},
        "baselines": [],
        "budget": {"trials": len(replay.trials)},
    }
    path = folder / "study.yaml"
    path.write_text(json.dumps(study, indent=2), encoding="utf-8")
    return path


@contextmanager
def _server(environment: Mapping[str, str]) -> Iterator[str]:
    """The embedded Postgres of a home of its own, started before the clock is."""
    _foldtune(environment, "db", "start")
    try:
        yield _foldtune(environment, "db", "url").strip()
    finally:
        _foldtune(environment, "db", "stop")


def _foldtune(environment: Mapping[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [*FOLDTUNE, *arguments], cwd=harness.ROOT, env=dict(environment), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"foldtune {' '.join(arguments)} failed with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def _trials(name: str, url: str) -> list[dict[str, Any]]:
    """Params and value of every trial, as Optuna shows them to anybody."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found = optuna.load_study(study_name=name, storage=url.replace("postgresql://", "postgresql+psycopg2://", 1))
    return [{"params": trial.params, "value": trial.value} for trial in found.get_trials(deepcopy=False)]


def _children() -> float:
    """CPU seconds of all processes that were waited for, by this one or by its children."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _server_cpu(folder: Path) -> float:
    """CPU seconds of the server under this folder: it is nobody's child. Its ended backends count in its own."""
    pids = [int(path.read_text().split()[0]) for path in folder.rglob("postmaster.pid")]
    total = 0.0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(stat.parent.name) in pids:
            total += sum(map(int, fields[11:15])) / TICKS
        elif int(fields[1]) in pids:
            total += sum(map(int, fields[11:13])) / TICKS
    return total
