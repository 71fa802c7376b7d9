"""Learning curves as `status --curves` and `best` show them: plain JSON values, and a table (pure)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from orchestrator import curves, objective, words
from orchestrator.curves import Epoch, FoldCurve
from orchestrator.records import TrialRecord

COLUMNS = 8  # epochs in the table


def finite(values: Mapping[str, float | None]) -> dict[str, float | None]:
    """JSON has no NaN: what is not finite is null."""
    return {name: None if value is None or not math.isfinite(value) else value for name, value in values.items()}


def course(curve: Sequence[Epoch], end: Epoch | None) -> dict[str, Any]:
    """Training loss and gap at the epoch that counts, and where overfitting began.

    curve: pooled. end: as `curves.reported`.
    """
    found = curves.overfitting(curve)
    return {
        "train_loss": None if end is None else end.train_loss,
        "gap": None if end is None else end.gap,
        "overfitting": None if found is None else dataclasses.asdict(found),
    }


def described(
    trial: TrialRecord, folds: Sequence[FoldCurve], curve: Sequence[Epoch], end: Epoch | None
) -> dict[str, Any]:
    """One trial's curves.

    folds: all that reported an epoch, with whole tallies; curve: of finished ones, pooled; end: as `curves.reported`.
    """
    return {
        "trial": trial.number,
        "default": trial.is_default,
        "state": trial.state,
        **course(curve, end),
        "epochs": [_losses(each.epoch, each.train_loss, each.validation_loss) for each in curve],
        "folds": [
            {
                "repeat": fold.repeat,
                "fold": fold.fold,
                "done": fold.done,
                "epochs": [_epoch(epoch, *said) for epoch, said in fold.epochs.items()],
            }
            for fold in folds
        ],
    }


def _epoch(epoch: int, train: float | None, tallies: objective.Tallies) -> dict[str, Any]:
    values = objective.metrics(tallies)
    return _losses(epoch, train, values["validation_loss"]) | {"metrics": finite(values)}


def _losses(epoch: int, train: float | None, validation: float) -> dict[str, Any]:
    return {"epoch": epoch} | finite({"train_loss": train, "validation_loss": validation})


def table(trials: Sequence[tuple[TrialRecord, Sequence[Epoch], Epoch | None]]) -> Table:
    """Pooled validation loss by epoch, of long runs some epochs; a line for each trial with its curve and its end."""
    longest = max((curve for _, curve, _ in trials), key=len, default=())
    shown = [each.epoch for each in curves.thinned(longest, most=COLUMNS)]
    made = Table(
        title="validation loss by epoch, finished folds pooled", title_justify="left", box=None, padding=(0, 2)
    )
    for heading in ("trial", *(f"epoch {epoch}" for epoch in shown), "training loss", "gap", "overfits after"):
        made.add_column(heading, justify="right", header_style="dim")
    for trial, curve, end in trials:
        losses = {each.epoch: each.validation_loss for each in curve}
        found = curves.overfitting(curve)
        cells = [words.number(losses[epoch]) if epoch in losses else "" for epoch in shown]
        cells += ["–", "–"] if end is None else [words.number(end.train_loss), words.number(end.gap)]
        made.add_row(trial.name, *cells, "–" if found is None else f"epoch {found.onset}")
    return made
