"""Texts that are nearly equal are found, no others are, and no fold has one without the other."""

from __future__ import annotations

import itertools
import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import dataset, folds, near, repeats
from orchestrator.errors import BadInput
from orchestrator.near import ALIKE, Link
from orchestrator.spec import DataSource
from orchestrator.texts import together
from tests.unit.study_text import jsonl

GLOSSES = Path(__file__).parents[2] / "studies" / "data" / "glosses.jsonl"
TEXTS = st.lists(st.lists(st.sampled_from("abcdefghijkl"), min_size=0, max_size=12).map(" ".join), max_size=30)


def brute(texts: list[str]) -> set[frozenset[int]]:
    """Sets of texts that chains of nearly equal pairs connect, by comparing all."""
    bags = near.bags(texts)
    sets = {row: {row} for row in range(len(texts))}
    for row, one in enumerate(bags):
        for like, other in enumerate(bags[:row]):
            if one and other and len(one & other) / len(one | other) >= ALIKE and sets[row] is not sets[like]:
                sets[like] |= sets[row]
                sets.update(dict.fromkeys(sets[row], sets[like]))
    return {frozenset(each) for each in sets.values()}


def joined(count: int, links: list[Link]) -> set[frozenset[int]]:
    sets = {row: {row} for row in range(count)}
    for link in links:
        assert sets[link.row] is not sets[link.like], "a link that connects nothing new"
        sets[link.like] |= sets[link.row]
        sets.update(dict.fromkeys(sets[link.row], sets[link.like]))
    return {frozenset(each) for each in sets.values()}


@given(texts=TEXTS)
def test_the_links_connect_what_comparing_all_connects(texts: list[str]) -> None:
    links = near.links(texts)
    assert joined(len(texts), links) == brute(texts)
    bags = near.bags(texts)
    for link in links:
        assert link.like < link.row
        assert link.alike == near.jaccard(bags[link.row], bags[link.like]) >= ALIKE


def grouped(texts: list[str], groups: list[int | None]) -> list[dict[str, str]]:
    """Rows with these texts, the first of them in these groups."""
    rows = [{"text": text} for text in texts]
    for row, by in zip(rows, groups, strict=False):
        row |= {} if by is None else {"group": str(by)}
    return rows


GROUPS = st.lists(st.none() | st.integers(0, 3), min_size=30, max_size=30)


@given(texts=TEXTS.filter(len), groups=GROUPS, auto=st.booleans())
def test_rows_share_a_name_where_texts_groups_or_likeness_connect_them(
    texts: list[str], groups: list[int | None], auto: bool
) -> None:
    rows = grouped(texts, groups)
    names, _ = repeats.find(rows, range(len(rows)), auto=auto)
    sets = [{row} for row in range(len(rows))]
    near_sets = brute(texts) if auto else set()
    for one in range(len(rows)):
        for other in range(one):
            same = texts[one] == texts[other] or (groups[one] is not None and groups[one] == groups[other])
            if same or any({one, other} <= each for each in near_sets):
                sets[one] |= sets[other]
                for member in sets[one]:
                    sets[member] = sets[one]
    if names is None:
        assert all(len(each) == 1 for each in sets)
    else:
        for one, other in itertools.combinations(range(len(rows)), 2):
            assert (names[one] == names[other]) == (sets[one] is sets[other])


def changed(words: list[str], count: int, draw: random.Random) -> str:
    words = list(words)
    for place in draw.sample(range(len(words)), count):
        words[place] = f"new{draw.getrandbits(40)}"
    return " ".join(words)


def test_among_many_texts_the_hashes_miss_next_to_none_and_invent_none() -> None:
    draw = random.Random(3)
    vocabulary = [f"w{number}" for number in range(3000)]
    originals = [draw.sample(vocabulary, 40) for _ in range(700)]
    # 4 of 40 words: 36 of 44 are shared, 0.82; 5 of 40: 35 of 45, 0.78
    texts = [" ".join(each) for each in originals]
    texts += [changed(each, 4, draw) for each in originals[:300]] + [changed(each, 5, draw) for each in originals[300:]]
    found = {(link.like, link.row) for link in near.links(texts)}
    close = {(row, 700 + row) for row in range(300)}
    assert found <= close
    assert len(found) >= 298
    assert near.links(texts) == near.links(texts)


def test_five_thousand_rows_of_a_hundred_words_take_a_second_or_two() -> None:
    draw = random.Random(1)
    vocabulary = [f"w{number}" for number in range(2000)]
    texts = [" ".join(draw.choices(vocabulary, k=100)) for _ in range(5000)]
    began = time.process_time()
    near.links(texts)
    took = time.process_time() - began
    began = time.process_time()
    for _ in range(2_000_000):  # what this core is worth now, with whatever runs beside: 0.1 s on a quiet one
        pass
    assert took < 60 * (time.process_time() - began)


def glosses() -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in GLOSSES.read_text(encoding="utf-8").splitlines()]
    places = [
        "a port city in western Finland on the Gulf of Bothnia",
        "a port city in western Sweden on the Gulf of Bothnia",
    ]
    return [*rows, *({"text": text, "label": "location"} for text in places)]


def frozen(folder: Path, rows: list[dict[str, Any]], **source: Any) -> dataset.Snapshot:
    (folder / "rows.jsonl").write_text(jsonl(rows), encoding="utf-8")
    return dataset.snapshot(DataSource(path="rows.jsonl", **source), "classification", folder, seed=1)


def test_two_port_cities_among_the_glosses_are_told_of_with_their_lines_and_what_to_do(tmp_path: Path) -> None:
    found = frozen(tmp_path, glosses())
    (finding,) = found.findings
    assert (finding.kind, finding.count, finding.rows) == ("near_repeats", 2, (301, 302))
    assert "lines 301 and 302 ('a port city in western finland" in str(finding)
    assert str(finding).endswith("; `data: {group: auto}` keeps them together")
    assert found.groups is None


@pytest.mark.parametrize("seed", range(5))
def test_group_auto_keeps_nearly_equal_rows_and_equal_ones_in_one_fold(seed: int, tmp_path: Path) -> None:
    rows = glosses()
    rows += [{"text": f" {rows[7]['text'].upper()}", "label": rows[7]["label"]}]
    found = frozen(tmp_path, rows, group="auto")
    assert found.groups is not None
    assert {finding.kind: finding.count for finding in found.findings} == {"repeats": 2, "near_repeats": 2}
    (row_folds,) = folds.plan(found.rows, 5, seed=seed, labels=found.strata, groups=found.groups).assignment
    assert row_folds[300] == row_folds[301]
    assert row_folds[7] == row_folds[302]
    assert len(set(found.groups)) == 301
    parted_again = together(dict(enumerate(found.parsed)))
    assert sorted(each for each in parted_again.values() if len(each) > 1) == [[7, 302], [300, 301]]


@given(texts=TEXTS.filter(len), groups=GROUPS, auto=st.booleans())
def test_rows_of_a_snapshot_know_themselves_what_they_must_stay_with(
    texts: list[str], groups: list[int | None], auto: bool
) -> None:
    """Early stopping and self-training part a fold's rows again, and see nothing but these rows."""
    rows = grouped(texts, groups)
    names, _ = repeats.find(rows, range(len(rows)), auto=auto)
    told = rows if names is None else repeats.named(rows, names)
    expected: dict[str, list[int]] = {}
    for number in range(len(rows)):
        expected.setdefault(str(number) if names is None else names[number], []).append(number)
    assert sorted(together(dict(enumerate(told))).values()) == sorted(expected.values())


def test_a_snapshot_is_the_same_with_group_auto_where_no_rows_are_near(tmp_path: Path) -> None:
    assert frozen(tmp_path, glosses()[:300]).sha256 == frozen(tmp_path, glosses()[:300], group="auto").sha256


def test_a_column_named_auto_is_in_the_way_of_group_auto(tmp_path: Path) -> None:
    rows = [{**row, "auto": number} for number, row in enumerate(glosses())]
    with pytest.raises(BadInput, match=r"`data: \{group: auto\}` keeps .* here is a column named 'auto'"):
        frozen(tmp_path, rows, group="auto")
    assert frozen(tmp_path, rows).rows == 302


def test_rows_of_one_group_are_no_news_and_of_two_groups_are(tmp_path: Path) -> None:
    rows = [{**row, "by": number // 2} for number, row in enumerate(glosses())]
    assert frozen(tmp_path, rows, group="by").findings == ()
    (finding,) = frozen(tmp_path, [{**row, "by": number} for number, row in enumerate(rows)], group="by").findings
    assert finding.advice == "give them one group"


def test_a_prompts_fixed_wording_makes_no_rows_alike() -> None:
    form = "you are a helpful assistant and answer this question in one short word please"
    assert near.links([f"{form} {number}" for number in range(30)]) == []
    assert len(near.links([f"{form} {number}" for number in range(3)])) == 2  # nothing is a form in so few


def test_scripts_without_blanks_are_compared_by_their_characters() -> None:
    one, other = "這是一個位於芬蘭西部的港口城市", "這是一個位於芬蘭東部的港口城市"
    assert [(link.like, link.row) for link in near.links([one, "完全不同的一句話而已", other])] == [(0, 2)]


def test_equal_texts_with_different_labels_are_named(tmp_path: Path) -> None:
    rows = [*glosses()[:50], {"text": glosses()[3]["text"], "label": "feeling"}]
    found = {finding.kind: finding for finding in frozen(tmp_path, rows).findings}
    assert found["conflicts"].rows == (4, 51)
    assert "lines 4 and 51 ('any of various cosmetic or" in str(found["conflicts"])
    assert "is artifact and feeling): no model can get all of them right" in str(found["conflicts"])


def test_too_much_text_is_not_searched_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, lines = glosses(), list(range(302))
    monkeypatch.setattr(repeats, "MOST_CHARACTERS", 1000)
    assert [finding.kind for finding in repeats.find(rows, lines, auto=False)[1]] == ["unsearched"]
    assert [finding.kind for finding in repeats.find(rows, lines, auto=True)[1]] == ["near_repeats"]
