"""YAML 1.2 as plain values, with places."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import document
from orchestrator.errors import BadInput, FoldtuneError, Problem

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="$\x85\u2028\u2029\ufeff"), max_size=8)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(values=st.dictionaries(TEXT, PLAIN, min_size=1))
def test_json_is_read_as_json(values: dict[str, object]) -> None:
    assert document.parse(json.dumps(values, ensure_ascii=False), "x").values == values


@given(number=st.floats(allow_nan=False))
def test_every_float_is_read_exactly(number: float) -> None:
    text = repr(number).replace("inf", ".inf")
    assert document.parse(f"a: {text}", "x").values["a"] == number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("no", "no"),
        ("on", "on"),
        ("yes", "yes"),
        ("True", True),
        ("012", 12),
        ("0o17", 15),
        ("0x1F", 31),
        ("12:30", "12:30"),
        ("1_000", 1000),
        ("-3", -3),
        ("~", None),
        ("", None),
        ("2020-01-01", "2020-01-01"),
        ("!!str 5", "5"),
        ("'5'", "5"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    read = document.parse(f"a: {text}", "x").values["a"]
    assert (read, type(read)) == (value, type(value))


def test_places_are_those_of_the_keys() -> None:
    found = document.parse("a: 1\nb:\n  c: [x,\n      y]\n", "f")
    assert found.place(("b", "c")) == (3, 3)
    assert found.place(("b", "c", 1)) == (4, 7)
    assert found.place(("b", "not there")) == (2, 1)
    assert str(found.problem(("b", "c"), "code", "wrong", "do this")) == "error[code] f:3:3: wrong\n  help: do this"


def test_an_alias_gives_the_anchors_value() -> None:
    assert document.parse("a: &x [1, 2]\nb: *x\n", "f").values == {"a": [1, 2], "b": [1, 2]}


def test_a_variable_is_replaced_by_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "here")
    assert document.parse("a: x/${PLACE}/y $PLACE", "f").values["a"] == "x/here/y $PLACE"


def test_every_problem_is_said_at_once() -> None:
    with pytest.raises(BadInput) as raised:
        document.parse("a: ${NOT_SET_1}\na: 1\nb: !!bool maybe\nc: !x y\n", "f")
    assert [problem.line for problem in raised.value.problems] == [1, 2, 3, 4]


@pytest.mark.parametrize("text", ["[" * 30_000, "{a: " * 8000, "a: [x, " * 4000, "- " * 15_000, "? " * 15_000])
def test_towers_are_refused_at_once(text: str) -> None:
    started = time.process_time()
    with pytest.raises(BadInput):
        document.parse(text[: document.MAX_BYTES], "f")
    assert time.process_time() - started < 1.5


def test_a_wide_alias_bomb_is_refused_at_once() -> None:
    wide = "a: &a [" + "x, " * 2000 + "x]\nb: [" + "*a, " * 90 + "*a]\n"
    started = time.process_time()
    with pytest.raises(BadInput, match="refused"):
        document.parse(wide, "f")
    assert time.process_time() - started < 1.5


def test_messages_cannot_steer_a_terminal() -> None:
    nasty = "a\x1b[31m\nerror: fake\u202e\ud800\x9b"
    shown = r"a\x1b[31m\nerror: fake\u202e\ud800\x9b"
    assert str(Problem(code="c", message=nasty, help=nasty, file="f")) == f"error[c] f: {shown}\n  help: {shown}"
    assert str(FoldtuneError(nasty, help=nasty)) == f"error: {shown}\nhelp: {shown}"
    assert str(FoldtuneError("größer – als 日本")) == "error: größer – als 日本"
