"""Messages survive the pipe; digests and seeds depend on values alone."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import contract
from orchestrator.contract import (
    MESSAGES,
    EpochDone,
    Generation,
    ModelPin,
    OpenStudy,
    Outcome,
    Predictions,
    Settings,
    TrainUnit,
    UnitEnded,
)

TEXT = st.text(max_size=10)
NUMBERS = st.floats(allow_nan=False)
SETTINGS = st.builds(
    Settings,
    learning_rate=NUMBERS,
    lora_alpha=st.one_of(NUMBERS, st.just("2r")),
    target_modules=st.one_of(st.just("auto"), st.lists(TEXT).map(tuple)),
)
ROWS = st.lists(st.integers(0, 99), max_size=5).map(tuple)
PREDICTIONS = st.builds(Predictions, nats=TEXT, counts=TEXT, logits=st.none() | TEXT)
PINS = st.builds(ModelPin, root=st.none() | TEXT, **dict.fromkeys(("path", "origin", "pin", "pooling"), TEXT))
SPECIAL = {
    OpenStudy: st.builds(
        OpenStudy,
        model=PINS,
        labels=st.lists(TEXT).map(tuple),
        generation=st.none() | st.builds(Generation, metrics=st.lists(TEXT).map(tuple)),
    ),
    TrainUnit: st.builds(TrainUnit, settings=SETTINGS, train=ROWS, validation=ROWS, seconds_left=st.none() | NUMBERS),
    EpochDone: st.builds(
        EpochDone,
        train_loss=NUMBERS,
        seconds=NUMBERS,
        predictions=PREDICTIONS,
        tallies=st.dictionaries(TEXT, st.integers() | st.lists(st.integers())),
    ),
    UnitEnded: st.builds(UnitEnded, outcome=st.sampled_from(Outcome), reason=TEXT),
}
ANY_MESSAGE = st.one_of(
    *SPECIAL.values(),
    *(
        st.builds(kind, **{name: NUMBERS for name, hint in typing.get_type_hints(kind).items() if hint is float})
        for kind in MESSAGES.values()
        if kind not in SPECIAL
    ),
)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@given(message=ANY_MESSAGE)
def test_every_message_comes_back_as_it_was_sent(message: object) -> None:
    line = contract.encode(message)
    assert "\n" not in line
    assert contract.decode(line) == message


@pytest.mark.parametrize(
    "line",
    [
        "",
        "7",
        "null",
        "[]",
        "{}",
        "{",
        '{"type": "Nobody"}',
        '{"type": "Shutdown", "more": 1}',
        '{"type": "UnitEnded"}',
        '{"type": "UnitEnded", "unit": 1, "lease_epoch": 1, "outcome": "famous"}',
        '{"type": ["a"]}',
    ],
)
def test_a_line_that_is_no_message_is_a_value_error(line: str) -> None:
    with pytest.raises(ValueError, match=r"not a message|is not a valid Outcome"):
        contract.decode(line)


@given(values=st.dictionaries(TEXT, PLAIN))
def test_a_digest_does_not_depend_on_the_order_of_keys(values: dict[str, object]) -> None:
    assert contract.digest(values) == contract.digest(dict(reversed(values.items())))
    assert json.loads(contract.canonical(values)) == values


def test_a_seed_depends_on_every_part_and_on_their_borders() -> None:
    seeds = [contract.derive_seed(*parts) for parts in [("a", "b"), ("ab",), ("a", "b", ""), ("b", "a"), (1, 2), (12,)]]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_seed_is_the_same_in_every_process() -> None:
    code = "from orchestrator.contract import derive_seed; print(derive_seed('x', 1, 2.5))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"}
    )
    assert int(done.stdout) == contract.derive_seed("x", 1, 2.5)


def test_messages_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().epochs = 4  # type: ignore[misc]


def test_floats_are_packed_little_endian() -> None:
    assert contract.pack_floats([1.0]) == "AACAPw=="


def test_a_model_that_was_pinned_before_there_were_options_has_their_defaults() -> None:
    stored = {"path": "m", "origin": "hub", "pin": "0", "pooling": "first", "normalize": False, "root": None}
    found = contract.build(ModelPin, stored)
    assert (found.precision, found.gradient_checkpointing, found.quantization) == ("auto", False, "none")
