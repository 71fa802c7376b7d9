"""Forms as processes of their own, one at a time, their repeats interleaved."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.search_speed import account
from benchmarks.search_speed.account import Run

ROOT = Path(__file__).resolve().parents[2]
ENGINE_FORMS = ("foldtune", "foldtune_racing")
PLAIN_FORMS = ("kept", "reload")
FURTHER = ("reload", "kept_own_dropout", "product")  # beside what the two ratios compare
PLAIN_NEEDS = ("accelerate",)  # Trainer asks for it; without Optuna the plain script walks its list itself


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line asked for."""

    replay: Path
    quick: bool
    engine_only: bool
    repeats: int
    threads: int
    without: tuple[str, ...] = ()


def talk(line: str) -> None:
    """One line to stderr."""
    print(line, file=sys.stderr, flush=True)


def absent(options: Options) -> dict[str, str]:
    """Forms that are not run, and why."""
    why: dict[str, str] = {}
    missing = [name for name in PLAIN_NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        why |= dict.fromkeys((*PLAIN_FORMS, "kept_own_dropout"), f"not installed: {', '.join(missing)}")
    elif options.quick:
        why |= dict.fromkeys(("reload", "kept_own_dropout"), "not with --quick")
    if options.engine_only:
        why["product"] = "--engine-only"
    elif options.quick:
        why["product"] = "not with --quick: it trains whole studies"
    why |= dict.fromkeys(options.without, "--without")
    ray = importlib.util.find_spec("ray") is not None
    why["ray_tune"] = "installed, but there is no form for it yet" if ray else "not installed: ray"
    return why


def environment(threads: int) -> dict[str, str]:
    """The same for every form."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    fixed = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **dict.fromkeys(names, str(threads)), **fixed}


def run(options: Options, not_run: Mapping[str, str]) -> dict[str, list[Run]]:
    """Every form `repeats` times; each repeat begins with another form."""
    forms = [form for form in ("kept", "foldtune", "foldtune_racing", "reload") if form not in not_run]
    runs: dict[str, list[Run]] = {form: [] for form in forms}
    for repeat in range(options.repeats):
        turn = repeat % len(forms)
        for form in (*forms[turn:], *forms[:turn]):
            runs[form].append(one(options, form, options.quick))
            spent = runs[form][-1].search
            talk(f"{repeat + 1}/{options.repeats} {form}: {spent.cpu:.1f} CPU s, {spent.wall:.1f} s")
    if "kept_own_dropout" not in not_run:
        runs["kept_own_dropout"] = [one(options, "kept_own_dropout", quick=True)]
    return runs


def one(options: Options, form: str, quick: bool) -> Run:
    """One run of one form.

    Raises:
        RuntimeError: it failed; the message has the end of its talk.
    """
    command = [sys.executable, "-m", "benchmarks.search_speed.form", form, str(options.replay.resolve())]
    done = subprocess.run(
        [*command, *(["--quick"] if quick else [])],
        cwd=ROOT,
        env=environment(options.threads),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{form} failed with {done.returncode}:\n{_tail(done.stderr)}")
    return account.from_json(json.loads(done.stdout.splitlines()[-1]))


def _tail(text: str, lines: int = 20) -> str:
    return "\n".join(text.splitlines()[-lines:])
