"""A language model's rows: token frequencies, the model as it is, and the model with rows before each prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from trial_worker.baselines.job import TOKENS, Job, NotApplicable, Run, too_long
from trial_worker.engine.batches import split_by_length
from trial_worker.engine.heads import read_tokens, reading_logits
from trial_worker.tasks.interface import Item, Row, Scores, collate, score


def unigram(job: Job) -> Run:
    """Frequencies of the training part's supervised tokens, with one added to each of the vocabulary (Laplace)."""
    items = job.items
    vocabulary = int(job.base.model.config.get_text_config().vocab_size)
    seen = torch.cat([items[number].targets for number in job.unit.train])
    counts = torch.bincount(seen, minlength=vocabulary).double().numpy() + 1.0
    likely, best = np.log(counts / counts.sum()), int(counts.argmax())
    yield
    unseen = [items[number].targets.numpy() for number in job.unit.validation]
    return Scores(
        nats=np.array([-likely[targets].sum() for targets in unseen]),
        counts=np.array([len(targets) for targets in unseen]),
        correct=np.array([int((targets == best).sum()) for targets in unseen]),
        logits=None,
    )


def zero_shot(job: Job) -> Run:
    """The model as it is."""
    return (yield from _scored(job, [job.items[number] for number in job.unit.validation]))


def few_shot(job: Job) -> Run:
    """The model as it is, behind a few rows of the training part; what is scored stays the same."""
    shown = [job.row(number) for number in job.shown()]
    rows = [_behind(shown, job.row(number)) for number in job.unit.validation]
    plain = job.items
    items = [
        _last_targets(item, plain[number].weight)
        for item, number in zip(job.rows.task.encode(rows, job.base.tokenizer), job.unit.validation, strict=True)
    ]
    if (longest := max(item.length for item in items)) > job.base.limit:
        raise too_long(longest, job.base.limit)
    yield
    return (yield from _scored(job, items))


def _behind(shown: Sequence[Row], row: Row) -> dict[str, Any]:
    if "prompt" in row:
        examples = "".join(f"{one['prompt']}{one['completion']}\n\n" for one in shown)
        return {"prompt": examples + row["prompt"], "completion": row["completion"]}
    if "messages" in row:
        return {"messages": [turn for one in (*shown, row) for turn in one["messages"]]}
    raise NotApplicable("rows of plain text have no prompt to show others before")


def _last_targets(item: Item, count: int) -> Item:
    """The item with its last targets alone: those of shown rows are not scored."""
    assert item.positions is not None
    first = max(len(item.targets) - count, 0)
    return Item(ids=item.ids, targets=item.targets[first:], positions=item.positions[first:])


def _scored(job: Job, items: Sequence[Item]) -> Run:
    """In the order of the items."""
    pad = int(job.base.tokenizer.pad_token_id or 0)
    nats, counts, correct = (np.zeros(len(items)) for _ in range(3))
    for group in split_by_length([item.length for item in items], len(items), TOKENS, 64):
        batch = collate([items[place] for place in group], pad, job.base.device)
        with torch.inference_mode():
            if job.base.plain_head:
                found = score(read_tokens(job.base.model)(batch), batch)
            else:
                with reading_logits(job.base.model) as read:
                    found = score(read(batch), batch)
        nats[group], counts[group], correct[group] = found.nats, found.counts, found.correct
        yield
    return Scores(nats=nats, counts=counts.astype(np.int64), correct=correct.astype(np.int64), logits=None)
