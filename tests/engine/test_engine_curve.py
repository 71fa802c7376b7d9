"""The benchmark of throughput runs on a machine without a GPU, and counts what it says."""

from __future__ import annotations

import json

import pytest

from benchmarks.engine_curve import __main__ as curve
from benchmarks.engine_curve import shapes


def test_every_cell_has_a_rate_and_a_share_of_the_peak(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = {"hidden": 16, "layers": 2, "heads": 2, "keys": 1, "wide": 32, "words": 100}
    monkeypatch.setitem(shapes.SHAPES, "tiny", tiny)
    monkeypatch.setattr(curve, "_seconds", lambda device, work: (work(), 0.5)[1])
    wanted = ["--shapes", "tiny", "--slots", "1", "2", "--tokens", "256", "--repeats", "1", "--json"]
    assert curve.main(wanted) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [cell["slots"] for cell in found["cells"]] == [1, 2]
    one, two = found["cells"]
    # two repeats of half a second: a unit brings 256 tokens to each of two steps
    assert (one["tokens_per_second"], two["tokens_per_second"]) == (2 * 256 * 2, 2 * 2 * 256 * 2)
    _, cost = shapes.base("tiny", curve.prepare())
    assert cost.head == 4 * 16 * 100
    share = one["tokens_per_second"] * (cost.layers + cost.head * 127 / 128) / (found["measured_peak_tflops"] * 1e12)
    assert one["share_of_peak"] == pytest.approx(share, abs=2e-3)
