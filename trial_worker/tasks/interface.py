"""What a task gives the engine: items, batches, scores and additive tallies.

A task knows how a row becomes tokens and targets and how outputs become numbers. It knows nothing of adapters,
optimizers or folds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a language model is to write for a row. text: as the data has it. prompt: tokens of `Item.ids` before it.

    end: the token that ends it, where training teaches one.
    """

    text: str
    prompt: int
    end: int | None


@dataclass(frozen=True, slots=True)
class Choices:
    """Texts that a decoder is asked for, of which one is right: ids and owners (tokens,) int64, one text after another.

    owners: which text each token is of, from 0.
    """

    ids: Tensor
    owners: Tensor


@dataclass(frozen=True, slots=True)
class Item:
    """One row, tokenised, its longest form: `Task.shorten` cuts it.

    ids: (length,) int64.
    targets: (targets, ...), a class or the supervised tokens, int64; or of another form that the task knows.
    positions: (targets,) int64, the token whose output predicts each target; None where the row has one output.
    size: UTF-8 bytes of the supervised text; 0 for a class.
    ends: (targets,) int64, bytes of the supervised text that are covered once this target is; None for a class.
    segments: (length,) int64, which text of a pair each token is of; None: all are of the first.
    centre, spread: of a target that is a number: what was taken off it, and what it was then divided by.
    gold: what else the task compares answers with; of a language model a `Wanted`, or None.
    decoded: whether the targets are tokens of a decoder of their own.
    choices: the same for all items, texts of which the target names one; None: there are none.
    """

    ids: Tensor
    targets: Tensor
    positions: Tensor | None = None
    size: int = 0
    ends: Tensor | None = None
    segments: Tensor | None = None
    centre: float = 0.0
    spread: float = 1.0
    gold: Any = None
    decoded: bool = False
    choices: Choices | None = None

    @property
    def length(self) -> int:
        """Tokens of `ids`."""
        return len(self.ids)

    @property
    def tokens(self) -> int:
        """Tokens that are computed, a decoder's included."""
        of_decoder = len(self.targets) if self.decoded else 0 if self.choices is None else len(self.choices.ids)
        return len(self.ids) + of_decoder

    @property
    def longest(self) -> int:
        """Tokens of the longer half, which `max_length` bounds."""
        return max(len(self.ids), len(self.targets) if self.decoded else 0)

    @property
    def weight(self) -> int:
        """What the row counts in a mean: 1 for a class, its supervised tokens for a language model."""
        return len(self.targets)


@dataclass(frozen=True, slots=True)
class Batch:
    """Items side by side, padded on the right.

    ids: (rows, length) int64.
    mask: (rows, length) int64, 1 where a token is real; None where nothing is padded, which attention does faster.
    targets: (targets, ...), the items' targets one after another.
    positions: (targets,) int64 into rows * length; None where each row has one output.
    owners: (targets,) int64, the row of each target.
    smoothing: (targets,) float32, how much of each target's weight is spread over all outputs; None: nothing.
    segments: (rows, length) int64, as `Item.segments`; None: the model knows none, or all are 0.
    weights: (targets,) float64, what each target's training loss is multiplied by; None: 1.
    choices: as `Item.choices`.
    """

    ids: Tensor
    mask: Tensor | None
    targets: Tensor
    positions: Tensor | None
    owners: Tensor
    smoothing: Tensor | None = None
    segments: Tensor | None = None
    weights: Tensor | None = None
    choices: Choices | None = None

    @property
    def inputs(self) -> dict[str, Tensor | None]:
        """What a transformers model calls them."""
        pair = {} if self.segments is None else {"token_type_ids": self.segments}
        return {"input_ids": self.ids, "attention_mask": self.mask, **pair}

    @property
    def rows(self) -> int:
        return self.ids.shape[0]


@dataclass(frozen=True, slots=True)
class Answers:
    """What a model said of a batch's targets.

    nats: (targets,) float64, negative log-likelihood. hits: (targets,) bool, whether it was the most likely output.
    logits: (targets, outputs) of a head; None of a language model, whose logits are never all there.
    smoothed: (targets,) float64, what training makes small instead of `nats`, where targets are smoothed.
    """

    nats: Tensor
    hits: Tensor
    logits: Tensor | None = None
    smoothed: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Scores:
    """What a model said of some items.

    nats: (items,) float64, negative log-likelihood summed over the item's targets.
    counts: (items,) int64, targets of the item.
    correct: (items,) int64, targets that were the most likely output.
    logits: (items, outputs) float32 of a head that reads the whole row, else None.
    outputs: what tallies of other tasks need to know of each item, of a form that the task knows.
    """

    nats: np.ndarray
    counts: np.ndarray
    correct: np.ndarray
    logits: np.ndarray | None
    outputs: Sequence[np.ndarray] | None = None


class Task(Protocol):
    """One kind of learning. Stateless but for its labels; safe to share.

    family: which transformers class, see `Base.load`. labels: class names in logit order, if it has classes.
    one_class: each row is of one of them, so that rows can be mixed, compared and weighed by class.
    """

    family: str
    labels: tuple[str, ...] = ()
    one_class: bool = False

    @property
    def outputs(self) -> int:
        """Of the head; 0 for a language model."""
        return len(self.labels)

    def encode(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> list[Item]:
        """Tokenise snapshot rows without a limit on their length.

        Raises:
            ValueError: a row is not of this task's form; the message names its number, counted from 0.
        """
        raise NotImplementedError

    def shorten(self, item: Item, row: Row, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Item:
        """The item of a row that has more than `max_length` tokens."""
        raise NotImplementedError

    def fitted(self, items: Sequence[Item], train: Sequence[int]) -> Sequence[Item]:
        """All items as a unit sees them that trains on these of them."""
        return items

    def answer(self, outputs: Tensor, batch: Batch) -> Answers:
        """What a head's outputs (targets, outputs) say of a batch's targets."""
        return answers(outputs, batch)

    def score(self, said: Answers, batch: Batch) -> Scores:
        """Scores of a batch's rows, with all that `tallies` needs."""
        return score(said, batch)

    def tallies(self, items: Sequence[Item], scores: Scores) -> dict[str, Any]:
        """Additive sums: any metric of any set of folds is a function of their sum."""
        raise NotImplementedError


def collate(items: Sequence[Item], pad_id: int, device: torch.device) -> Batch:
    """Pad items to the longest of them. Padding is known by `mask`, never by `pad_id`, which may equal eos."""
    ids, mask = padded([item.ids for item in items], pad_id)
    length = ids.shape[1]
    segments = None if all(item.segments is None for item in items) else torch.zeros_like(ids)
    for row, item in enumerate(items):
        if segments is not None and item.segments is not None:
            segments[row, : item.length] = item.segments
    weights = torch.tensor([item.weight for item in items])
    owners = torch.repeat_interleave(torch.arange(len(items)), weights)
    positions, choices = None, items[0].choices
    if items[0].positions is not None:
        inside = torch.cat([item.positions for item in items if item.positions is not None])
        positions = (inside + owners * length).to(device)
    return Batch(
        ids=ids.to(device),
        mask=None if bool(mask.all()) else mask.to(device),
        targets=torch.cat([item.targets for item in items]).to(device),
        positions=positions,
        owners=owners.to(device),
        segments=None if segments is None else segments.to(device),
        choices=None if choices is None else Choices(choices.ids.to(device), choices.owners.to(device)),
    )


def padded(rows: Sequence[Tensor], pad_id: int = 0, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Token ids (length,) each, side by side: ids and mask, (rows, longest) int64; padded at the right, or the left."""
    ids = pad_sequence(list(rows), batch_first=True, padding_value=pad_id, padding_side="left" if left else "right")
    lengths = torch.tensor([len(row) for row in rows])[:, None]
    places = torch.arange(ids.shape[1])
    real = places >= ids.shape[1] - lengths if left else places < lengths
    return ids, real.long()


def answers(logits: Tensor, batch: Batch) -> Answers:
    """What logits (targets, outputs) say of a batch's targets.

    The softmax is taken in float32 (float64 if the logits are) whatever the model computes in; sums over targets
    want float64, or thousands of tokens would lose the digits in which two configurations differ.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    nats = torch.nn.functional.cross_entropy(wide, batch.targets, reduction="none").double()
    smoothed = None
    if batch.smoothing is not None:  # Szegedy et al. 2016, arXiv 1512.00567, section 7
        spread = -wide.log_softmax(-1).mean(-1).double()
        smoothed = torch.lerp(nats, spread, batch.smoothing.double())
    return Answers(nats, logits.argmax(-1) == batch.targets, logits, smoothed)


def score(said: Answers, batch: Batch) -> Scores:
    """Scores of the batch's rows.

    Logits of choices are log-likelihoods of whole texts, far below 0, where float16 is coarse: as they are kept, the
    best of a row is 0. A softmax is the same.
    """
    logits = said.logits
    if logits is not None and batch.choices is not None:
        logits = logits - logits.amax(-1, keepdim=True)
    zeros = torch.zeros(batch.rows, dtype=torch.float64, device=said.nats.device)
    return Scores(
        nats=zeros.index_add(0, batch.owners, said.nats).cpu().numpy(),
        counts=torch.bincount(batch.owners, minlength=batch.rows).cpu().numpy(),
        correct=zeros.long().index_add(0, batch.owners, said.hits.long()).cpu().numpy(),
        logits=None if logits is None else logits.float().cpu().numpy(),
    )
