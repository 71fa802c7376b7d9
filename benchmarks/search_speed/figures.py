"""From runs to the JSON object (pure); `benchmarks/README.md` says what each figure means."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.search_speed import account
from benchmarks.search_speed.account import Run, Spent
from benchmarks.search_speed.replay import Replay

Runs = Mapping[str, Sequence[Run]]


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median and range."""
    return {
        "median": round(statistics.median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
        "values": [round(value, 3) for value in values],
    }


def basis(runs: Runs) -> str:
    """Which seconds the ratios compare: on a GPU the processor's say nothing of the work."""
    return "wall" if any(run.device == "cuda" for each in runs.values() for run in each) else "cpu"


def ratio(runs: Runs, slow: str, fast: str, seconds: str) -> float | None:
    """Median seconds of one form over those of another; None where one was not run."""
    if slow not in runs or fast not in runs:
        return None
    medians = [_median([run.search for run in runs[form]], seconds) for form in (slow, fast)]
    return round(medians[0] / medians[1], 3)


def ratio_range(runs: Runs, slow: str, fast: str, seconds: str) -> list[float] | None:
    """Least and greatest ratio of runs of the same repeat."""
    if slow not in runs or fast not in runs:
        return None
    pairs = zip(runs[slow], runs[fast], strict=True)
    each = [getattr(one.search, seconds) / getattr(other.search, seconds) for one, other in pairs]
    return [round(min(each), 3), round(max(each), 3)]


def compose(replay: Replay, runs: Runs) -> dict[str, Any]:
    """All that the runs say."""
    seconds = basis(runs)
    pairs = {
        "ratio_training": ("kept", "foldtune"),
        "ratio_training_reload": ("reload", "foldtune"),
        "ratio_search": ("kept", "foldtune_racing"),
        "ratio_search_reload": ("reload", "foldtune_racing"),
    }
    other = "wall" if seconds == "cpu" else "cpu"
    return {
        "basis": f"{seconds} seconds",
        **{name: ratio(runs, *pair, seconds) for name, pair in pairs.items()},
        "ranges": {name: ratio_range(runs, *pair, seconds) for name, pair in pairs.items()},
        f"by_{other}_seconds": {name: ratio(runs, *pair, other) for name, pair in pairs.items()},
        "with_start": {name: with_start(runs, *pair, seconds) for name, pair in pairs.items()},
        "outcome": outcome(runs),
        "own_dropout": own_dropout(runs),
        "forms": {name: form(replay, each) for name, each in runs.items()},
        "trials": trials(replay, runs),
    }


def with_start(runs: Runs, slow: str, fast: str, seconds: str) -> float | None:
    """The ratio with imports and the first loading counted."""
    if slow not in runs or fast not in runs:
        return None
    whole = [_median([run.start + run.search for run in runs[form]], seconds) for form in (slow, fast)]
    return round(whole[0] / whole[1], 3)


def outcome(runs: Runs) -> dict[str, Any] | None:
    """Whether racing led to as good a trial as full cross-validation by the plain script."""
    if "foldtune_racing" not in runs or not {"kept", "foldtune"} & set(runs):
        return None
    raced = runs["foldtune_racing"][0].winner
    found: dict[str, Any] = {"racing": raced.trial}
    for name in ("kept", "foldtune"):
        if name in runs:
            full = runs[name][0].winner
            found[name] = {
                "winner": full.trial,
                "same_winner": raced.trial == full.trial,
                "test_loss_not_worse": raced.test_loss <= full.test_loss,
            }
    judged = found.get("kept") or found["foldtune"]
    return {**found, "as_good": judged["same_winner"] or judged["test_loss_not_worse"]}


def own_dropout(runs: Runs) -> dict[str, Any] | None:
    """What the base's own dropout, which no form here uses, costs the plain script; on the same units."""
    if "kept_own_dropout" not in runs or "kept" not in runs:
        return None
    with_it = {(unit.trial, unit.fold): unit.cpu or 0.0 for unit in runs["kept_own_dropout"][0].units}
    without = [sum(unit.cpu or 0.0 for unit in run.units if (unit.trial, unit.fold) in with_it) for run in runs["kept"]]
    return {
        "units": len(with_it),
        "cpu_ratio": round(sum(with_it.values()) / statistics.median(without), 3),
    }


def form(replay: Replay, runs: Sequence[Run]) -> dict[str, Any]:
    """One form's own figures."""
    first, searched = runs[0], [run.search for run in runs]
    count = len({unit.trial for unit in first.units})
    return {
        "device": first.device,
        "slots": first.slots,
        "trials": count,
        "units": len(first.units),
        "cpu_seconds": spread([spent.cpu for spent in searched]),
        "wall_seconds": spread([spent.wall for spent in searched]),
        "start_cpu_seconds": spread([run.start.cpu for run in runs]),
        "cpu_seconds_per_trial": round(_median(searched, "cpu") / count, 3),
        "trials_per_hour": round(3600 * count / _median(searched, "wall"), 2),
        "tokens": tokens(first),
        "winner": first.winner.trial,
        "best_cv_loss": round(first.winner.cv_loss, 4),
        "outer_test_loss": round(first.winner.test_loss, 4),
        "outer_test_accuracy": round(first.winner.test_accuracy, 4),
        "repeats_agree": all(run.winner == first.winner for run in runs),
        "stopped": {str(trial): folds for trial, folds in sorted(first.stopped.items())},
        "versions": dict(first.versions),
        **first.notes,
    }


def tokens(run: Run) -> dict[str, Any]:
    """Real tokens, and computed ones with padding; null where the model was not seen computing."""
    seen = run.tokens
    return {
        "training": {"real": seen.train_real, "computed": seen.train_computed or None},
        "evaluation": {"real": seen.evaluation_real, "computed": seen.evaluation_computed or None},
    }


def trials(replay: Replay, runs: Runs) -> list[dict[str, Any]]:
    """Every trial's loss by every form, side by side; a trial that racing stopped has none."""
    losses = {
        name: {trial: loss for trial, loss in account.cv_losses(each[0].units).items() if trial not in each[0].stopped}
        for name, each in runs.items()
        if name != "kept_own_dropout"
    }
    return [
        {
            "trial": trial.number,
            "params": dict(trial.params),
            "cv_loss": {name: _rounded(of_form.get(trial.number)) for name, of_form in losses.items()},
        }
        for trial in replay.trials
    ]


def _rounded(loss: float | None) -> float | None:
    return None if loss is None else round(loss, 4)


def _median(spent: Sequence[Spent], seconds: str) -> float:
    return statistics.median(one.cpu if seconds == "cpu" else one.wall for one in spent)
