"""How many tokens rows have, as a model's own tokenizer.json says. Loads no torch, asks no network.

Without that file tokens are estimated from the text's bytes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import models
from orchestrator.contract import ModelPin
from orchestrator.spec import ModelSource
from orchestrator.texts import shown

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILE = "tokenizer.json"
BYTES_A_TOKEN = 4  # of UTF-8, where nothing better is known: English words, or one sign of Chinese with a bit over
TURN = 5  # tokens that a chat template writes around a turn, about
MOST_BYTES = 600_000  # of text that are tokenised: half a second; of more every n-th row stands for the others


@dataclass(frozen=True)
class Tokens:
    """Of each row. exact: as the tokenizer has it; else about.

    whole: tokens before any cut, of seq2seq the source's. target: of seq2seq the target's, else 0.
    first: number of the first token that is learnt, from 0; of tasks in which a cut can leave a row without any.
    number: of the rows that were counted, see `MOST_BYTES`.
    """

    exact: bool
    number: tuple[int, ...]
    whole: tuple[int, ...]
    target: tuple[int, ...]
    first: tuple[int, ...]


def count(
    source: ModelSource, folder: Path, rows: Sequence[Mapping[str, Any]], task: str, pin: ModelPin | None = None
) -> Tokens:
    """Tokens of rows for one model. pin: of a hub model; without it the hub's cache is asked for its revision."""
    chosen = _sample(rows)
    tokenizer = _load(source, folder, pin)
    try:
        counted = [_row(rows[number], task, tokenizer) for number in chosen]
    except Exception:  # as `_load`: a vocabulary without an unknown token, say
        tokenizer = None
        counted = [_row(rows[number], task, None) for number in chosen]
    whole, target, first = zip(*counted, strict=True) if counted else ((), (), ())
    exact = tokenizer is not None and "messages" not in rows[0]
    return Tokens(exact, tuple(chosen), whole, target, first)


def _sample(rows: Sequence[Mapping[str, Any]]) -> Sequence[int]:
    """Numbers of all rows, or of every n-th."""
    size = sum(len(shown(row)) for row in rows)
    return range(0, len(rows), max(1, -(-size // MOST_BYTES)))


def _row(row: Mapping[str, Any], task: str, tokenizer: Tokenizer | None) -> tuple[int, int, int]:
    """(whole, target, first) of `Tokens`."""
    if task == "seq2seq":
        return _length(tokenizer, row["source"]), _length(tokenizer, row["target"]), 0
    if task == "question_answering":
        return _length(tokenizer, row["question"], row["context"]), 0, 0
    if "completion" in row:
        return _completion(tokenizer, row["prompt"], row["completion"])
    if "messages" in row:
        return _turns(tokenizer, row["messages"])
    closed = task == "causal_lm"  # the end of text follows
    return _length(tokenizer, row["text"], row.get("text_pair")) + closed, 0, 0


def _length(tokenizer: Tokenizer | None, text: str, pair: str | None = None) -> int:
    if tokenizer is None:
        return 2 + len((text + (pair or "")).encode()) // BYTES_A_TOKEN
    return len(tokenizer.encode(text, pair).ids)


def _completion(tokenizer: Tokenizer | None, prompt: str, completion: str) -> tuple[int, int, int]:
    """A token across the border belongs to the completion; the end of text follows, as in `tasks.causal_lm`."""
    if tokenizer is None:
        return _length(None, prompt + completion), 0, _length(None, prompt)
    coded = tokenizer.encode(prompt + completion)
    learnt = (number for number, (start, end) in enumerate(coded.offsets) if start < end and end > len(prompt))
    return len(coded.ids) + 1, 0, max(1, next(learnt, len(coded.ids)))


def _turns(tokenizer: Tokenizer | None, messages: Sequence[Mapping[str, str]]) -> tuple[int, int, int]:
    """About: the template itself is a program, which is run where the rows are trained on."""
    lengths = [TURN + _length(tokenizer, turn["content"]) for turn in messages]
    answer = next(number for number, turn in enumerate(messages) if turn["role"] == "assistant")
    return sum(lengths), 0, sum(lengths[:answer]) + TURN - 1


def _load(source: ModelSource, folder: Path, pin: ModelPin | None) -> Tokenizer | None:
    where = _file(source, folder, pin)
    if where is None or not where.is_file():
        return None
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(where))
    except Exception:  # the library raises a bare Exception; a worker says what is wrong with the file
        return None
    tokenizer.no_truncation()  # many files have one, of the length that a model was trained with
    tokenizer.no_padding()
    return tokenizer


def _file(source: ModelSource, folder: Path, pin: ModelPin | None) -> Path | None:
    if models.origin(source.path, folder) != "hub":
        found = models.files(source, folder)
        return None if found is None else found / FILE
    import huggingface_hub

    revision = pin.pin if pin is not None else source.revision
    try:
        cached = huggingface_hub.try_to_load_from_cache(source.path, FILE, revision=revision)
    except ValueError:  # no id of the hub
        return None
    return Path(cached) if isinstance(cached, str) else None
