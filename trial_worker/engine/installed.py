"""What a pack puts into the resident model while its units train, and takes out again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from torch import nn
from transformers import PreTrainedModel

from orchestrator.contract import Settings
from trial_worker.engine.base import Base
from trial_worker.engine.decoder import reading_decoder
from trial_worker.engine.heads import READERS, Answer, Reader, read_mean, read_tokens, reading_logits
from trial_worker.engine.memory import Memory
from trial_worker.engine.narrow import Reads
from trial_worker.engine.survey import Kind


class Installed(ABC):
    """Units of one kind on a base, which is changed only between `install` and `remove`.

    slots: units at most. memory: their weights. read: what the model says of a batch, while installed. answer: as
    `Task.answer`.
    """

    memory: Memory

    def __init__(self, base: Base, kind: Kind, slots: int, answer: Answer) -> None:
        self.base = base
        self.kind = kind
        self.slots = slots
        self._answer = answer
        self._open: dict[int, Settings] = {}
        trained = base.model.base_model if kind.pooling == "mean" else base.model
        self._drops = any(type(part) is nn.Dropout for part in trained.modules())
        self._installed = ExitStack()
        self._reader: Reader | None = None

    @abstractmethod
    def _in_place(self) -> AbstractContextManager[Reader]:
        """The model as the units train it; as it was behind the context."""

    @abstractmethod
    def open(self, slot: int, settings: Settings, seed: int) -> None:
        """A unit takes a slot, with weights that are a function of its seed alone.

        Raises:
            ValueError: its settings ask for what this model does not have.
        """

    @abstractmethod
    def grows(self, rank: int) -> bool:
        """Whether a unit of this rank needs all slots to be larger than they are."""

    def close(self, slot: int) -> None:
        """The unit is gone from its slot."""
        self.memory.close(slot)
        self._open.pop(slot, None)

    def install(self) -> None:
        """Put the units' weights into the model."""
        if self._reader is None:
            self._reader = self._installed.enter_context(self._in_place())

    def remove(self) -> None:
        """Leave the base as it was."""
        self._installed.close()
        self._reader = None

    @property
    def reads(self) -> Reads:
        """Which tokens of the last layer `read` needs."""
        return "all" if self.kind.pooling == "mean" else self.base.reads

    @property
    def read(self) -> Reader:
        assert self._reader is not None
        return self._reader

    def _refuse_unless_possible(self, settings: Settings) -> None:
        if settings.dropout and not self._drops:
            name = type(self.base.model).__name__
            raise ValueError(f"dropout: {name} has none but in its attention; lora_dropout is the adapters' own")

    @contextmanager
    def _reading(self, model: PreTrainedModel, mean: nn.Module | None, *, plain_head: bool) -> Iterator[Reader]:
        """What reads the model, as it stands. mean: the head of a mean-pooled encoder, which is none of the model's.

        plain_head: whether a language model's frozen linear head is all that stands behind its last states.
        """
        if mean is not None:
            yield read_mean(model, mean, self._answer)
        elif self.base.family in READERS:
            yield READERS[self.base.family](model, self._answer)
        elif self.base.family == "seq2seq":
            with reading_decoder(model, self._answer) as reader:
                yield reader
        elif plain_head:
            yield read_tokens(model)
        else:
            with reading_logits(model) as reader:
                yield reader
