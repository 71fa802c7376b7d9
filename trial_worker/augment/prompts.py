"""What a model is asked to write. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from string import Template

from orchestrator.contract import derive_seed
from trial_worker.tasks.interface import Row

EXAMPLES = 4  # training rows of a class that a synthetic row is written after


@dataclass(frozen=True, slots=True)
class Asked:
    """One text to be written.

    sources: training rows that are in the prompt. seed: of its sampling; a function of what is asked alone, never of a
    trial, so that trials share what was written.
    """

    prompt: str
    sources: tuple[int, ...]
    seed: int


def paraphrase(template: str, text: str, source: int, copy: int) -> Asked:
    """Of one text of a row."""
    prompt = Template(template).safe_substitute(text=text)
    return Asked(prompt, (source,), derive_seed("paraphrase", prompt, copy))


def synthetic(template: str, rows: Mapping[int, Row], count: int) -> Iterator[tuple[str, Asked]]:
    """(label, what is asked) for so many rows of each class, each after other examples of it."""
    classes: dict[str, list[int]] = {}
    for number, row in rows.items():
        classes.setdefault(row["label"], []).append(number)
    for label, numbers in sorted(classes.items()):
        for place in range(count):
            chosen = _drawn(numbers, place)
            examples = "\n".join(f"{label}: {_line(rows[number]['text'])}" for number in chosen)
            prompt = Template(template).safe_substitute(label=label, examples=examples)
            yield label, Asked(prompt, tuple(chosen), derive_seed("synthetic", prompt, place))


def _drawn(numbers: Sequence[int], place: int) -> list[int]:
    """`EXAMPLES` of these, others for each place; a function of them and the place alone."""
    return sorted(numbers, key=lambda number: derive_seed("example", place, number))[:EXAMPLES]


def _line(text: str) -> str:
    return " ".join(text.split())


def first_line(written: str) -> str:
    """What a model wrote, up to where it went on with something else."""
    lines = [line.strip() for line in written.strip().splitlines()]
    return lines[0].strip("\"'“” ") if lines else ""
