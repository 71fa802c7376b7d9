"""Figures for the dashboard, as plotly.js reads them: plain JSON, so that no plotting library is needed (pure)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator import curves, objective
from orchestrator.curves import Epoch, FoldCurve
from orchestrator.folds import FoldPlan

MOST_EPOCHS = 50  # of a line
MOST_FOLDS = 25  # with a line each; of more none has one
COLOURS = ("#1565c0", "#9e9e9e")


def learning_curves(plan: FoldPlan, trials: Mapping[str, Sequence[FoldCurve]]) -> dict[str, Any]:
    """Losses by epoch: for each trial, by its label, both pooled losses and each fold's validation loss.

    A dotted upright stands where overfitting begins.
    """
    lines: list[dict[str, Any]] = []
    marks: list[dict[str, Any]] = []
    for (label, folds), colour in zip(trials.items(), COLOURS, strict=False):
        curve = curves.pooled(folds, plan)
        shown = curves.thinned(curve, most=MOST_EPOCHS)
        epochs = [each.epoch for each in shown]
        lines += _folds(label, folds, epochs, colour) if len(folds) <= MOST_FOLDS else []
        lines += _pooled(label, shown, colour)
        if (found := curves.overfitting(curve)) is not None:
            where = {"x0": found.onset, "x1": found.onset, "y0": 0, "y1": 1, "yref": "paper"}
            marks.append({"type": "line", "line": {"color": colour, "width": 1, "dash": "dot"}, **where})
    last = max((epoch for line in lines for epoch in line["x"]), default=1)
    return {
        "data": lines,
        "layout": {
            "title": {"text": "Learning curves (thin: each fold)", "x": 0.02, "font": {"size": 16}},
            "xaxis": {"title": {"text": "epoch"}, "tick0": 1, "dtick": max(1, round(last / 10))},
            "yaxis": {"title": {"text": "nats per item"}},
            "legend": {"orientation": "h", "y": -0.25},
            "margin": {"t": 48, "b": 32, "l": 64, "r": 16},
            "shapes": marks,
        },
    }


def _folds(label: str, folds: Sequence[FoldCurve], epochs: Sequence[int], colour: str) -> list[dict[str, Any]]:
    return [
        {
            **_line(
                f"{label}, repeat {fold.repeat} fold {fold.fold}",
                epochs,
                [objective.validation_loss(fold.epochs[epoch][1]) for epoch in epochs],
                {"color": colour, "width": 1},
            ),
            "mode": "lines",
            "opacity": 0.35,
            "showlegend": False,
        }
        for fold in folds
    ]


def _pooled(label: str, curve: Sequence[Epoch], colour: str) -> list[dict[str, Any]]:
    epochs = [each.epoch for each in curve]
    validation = [each.validation_loss for each in curve]
    trained = [each.train_loss for each in curve]
    return [
        _line(f"{label}: validation", epochs, validation, {"color": colour, "width": 3}),
        _line(f"{label}: training", epochs, trained, {"color": colour, "width": 2, "dash": "dash"}),
    ]


def _line(name: str, epochs: Sequence[int], values: Sequence[float | None], line: dict[str, Any]) -> dict[str, Any]:
    rounded = [None if value is None else float(f"{value:.5g}") for value in values]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": list(epochs),
        "y": rounded,
        "line": line,
    }
