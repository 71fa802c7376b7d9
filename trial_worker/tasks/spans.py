"""Which characters of a row a language model is to learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from trial_worker.tasks.interface import Row


@dataclass(frozen=True, slots=True)
class Span:
    """Characters [start, end) are supervised; [text_start, text_end) of them are the data's own text."""

    start: int
    end: int
    text_start: int
    text_end: int


@dataclass(frozen=True, slots=True)
class Marked:
    """A row as one text.

    add_special: whether the tokenizer adds its own special tokens (a chat template has written them already).
    close: whether the end-of-sequence token follows and is supervised.
    wanted: the data's own text of the last span, where something comes before it that asks for it; else None.
    """

    text: str
    spans: tuple[Span, ...]
    add_special: bool
    close: bool
    wanted: str | None = None


def mark(row: Row, tokenizer: PreTrainedTokenizerBase) -> Marked:
    """The row's text and supervised spans.

    Raises:
        ValueError: none of the three forms, or a chat template that cannot be followed turn by turn.
    """
    if isinstance(row.get("text"), str):
        return _whole(row["text"])
    if isinstance(row.get("prompt"), str) and isinstance(row.get("completion"), str):
        return _completion(row["prompt"], row["completion"])
    if isinstance(row.get("messages"), list):
        return _turns(row["messages"], tokenizer)
    raise ValueError("needs text, prompt and completion, or messages")


def _whole(text: str) -> Marked:
    return Marked(text, (Span(0, len(text), 0, len(text)),), add_special=True, close=True)


def _completion(prompt: str, completion: str) -> Marked:
    # Tokenised as one text, as pretraining did: a completion tokenised alone begins with other tokens
    # (" yes" against "yes") in most vocabularies. A token across the border belongs to the completion.
    text = prompt + completion
    span = Span(len(prompt), len(text), len(prompt), len(text))
    return Marked(text, (span,), add_special=True, close=True, wanted=completion)


def _turns(messages: Sequence[Any], tokenizer: PreTrainedTokenizerBase) -> Marked:
    """Supervise what the model itself must write: each assistant turn after its header, end-of-turn included."""
    if tokenizer.chat_template is None:
        raise ValueError("messages need a chat template, and this tokenizer has none")
    if not messages or messages[0].get("role") == "assistant":
        raise ValueError("a conversation must begin with another role than assistant")
    text = _render(messages, tokenizer, prompt=False)
    spans = []
    for number, message in enumerate(messages):
        if message.get("role") != "assistant":
            continue
        if not isinstance(message.get("content"), str):
            raise ValueError(f"message {number}: content must be a string")
        before = _render(messages[:number], tokenizer, prompt=True)
        until = _render(messages[: number + 1], tokenizer, prompt=False).rstrip()
        if not (text.startswith(until) and until.startswith(before)):
            raise ValueError(
                "the chat template writes a conversation differently from its beginnings, "
                "so the assistant's part cannot be told apart"
            )
        content = message["content"].strip()
        at = text.find(content, len(before), len(until))
        if at < 0:
            raise ValueError(f"the chat template changes the content of message {number}")
        spans.append(Span(len(before), len(until), at, at + len(content)))
    last = text[spans[-1].text_start : spans[-1].text_end] if spans else None
    return Marked(text, tuple(spans), add_special=False, close=False, wanted=last)


def _render(messages: Sequence[Any], tokenizer: PreTrainedTokenizerBase, *, prompt: bool) -> str:
    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt))
    except TemplateError as error:
        raise ValueError(f"the chat template refuses this conversation: {error}") from error
