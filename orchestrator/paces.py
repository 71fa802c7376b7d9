"""How fast a model was trained on this machine before: what a forecast knows better than any rule of thumb."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from statistics import fmean
from typing import Any

from sqlalchemy import Engine, text

from orchestrator import forecast
from orchestrator.contract import Settings, build
from orchestrator.database.engine import transaction
from orchestrator.forecast import FROM_HISTORY, Forecast, Given, Span
from orchestrator.prepare import Prepared, expected, given

LATEST = 200  # configurations whose epochs are looked at


def forecast_of(engine: Engine, prepared: Prepared) -> Forecast:
    """Of a study about to be trained here: by what its model took here before, else by sizes alone."""
    loaded, snapshot = prepared.loaded, prepared.snapshot
    plain = expected(loaded, snapshot, prepared.tokens, prepared.models)
    each = [pass_seconds(engine, pin.pin, plain.device, len(snapshot.content)) for pin in prepared.models]
    known = [seconds for seconds in each if seconds is not None]
    if len(known) < len(each):
        return plain
    pace = Span(low=fmean(known), high=fmean(known)).times(*FROM_HISTORY)
    return forecast.by_pace(
        loaded.spec,
        forecast.work(loaded.spec, given(snapshot, prepared.pool)),
        pace,
        basis="history",
        device=plain.device,
        workers=plain.workers,
        memory=plain.memory,
    )


def pass_seconds(engine: Engine, pin: str, device: str, size: int) -> float | None:
    """Device seconds of one forward pass over rows of so many bytes; None: this model never trained on this machine.

    device: "cpu" or "cuda".
    """
    took = passed = 0.0
    alone = Given(rows=1)  # rows that were written, or labelled, were others in each study, and are not counted
    for settings, folds, size_then, epochs, seconds in _epochs(engine, pin, device):
        took += seconds
        passed += epochs * forecast.passes(replace(settings, epochs=1), folds, alone) * size_then
    return took / passed * size if passed else None


def _epochs(engine: Engine, pin: str, device: str) -> list[tuple[Settings, int, int, int, float]]:
    """(settings, folds, bytes of the rows, epochs reported, device seconds) of the latest configurations."""
    query = text(
        "SELECT CAST(t.settings AS text) AS settings, CAST(s.plan->>'folds' AS integer) AS folds, n.bytes, "
        "count(*) AS epochs, sum(r.seconds) AS seconds FROM result r JOIN unit u ON u.id = r.unit "
        "JOIN trial t ON t.id = u.trial JOIN study s ON s.id = u.study JOIN snapshot n ON n.sha256 = s.snapshot "
        "JOIN attempt a ON a.unit = r.unit AND a.lease_epoch = r.lease_epoch JOIN worker w ON w.id = a.worker "
        "WHERE CASE json_typeof(s.model) WHEN 'array' THEN (SELECT m->>'pin' FROM json_array_elements(s.model) AS m "
        "WHERE m->>'path' = t.params->>'model') ELSE s.model->>'pin' END = :pin "  # of a list, the trial's own
        "AND t.origin <> 'baseline' AND w.host = :host "
        "AND split_part(w.device, ':', 1) = :device "
        "GROUP BY t.id, CAST(t.settings AS text), s.plan->>'folds', n.bytes ORDER BY t.id DESC LIMIT :latest"
    )
    asked: dict[str, Any] = {"pin": pin, "host": socket.gethostname(), "device": device, "latest": LATEST}
    with transaction(engine) as connection:
        rows = connection.execute(query, asked).all()
    return [(_settings(row.settings), row.folds, row.bytes, row.epochs, row.seconds) for row in rows]


def _settings(stored: str) -> Settings:
    built: Settings = build(Settings, json.loads(stored))
    return built
