"""The study's own model as it is, asked for the class.

An encoder-decoder model gives the likelihood of each label's name, against that behind a source without content.

A decoder scores each label behind a prompt, against its score behind a prompt without content (Zhao et al. 2021, arXiv
2102.09690; Holtzman et al. 2021, arXiv 2104.08315). An encoder compares a row's embedding with those of the labels'
names, or of each class's shown rows (Snell et al. 2017, arXiv 1703.05175).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from trial_worker.baselines.features import embed, embeddings
from trial_worker.baselines.job import TOKENS, Job, NotApplicable, Run, class_scores, too_long
from trial_worker.engine.base import Base, locate
from trial_worker.engine.batches import split_by_length
from trial_worker.engine.choices import choice_scores
from trial_worker.tasks.interface import Item, Scores, collate, padded
from trial_worker.tasks.likelihoods import log_softmax

NO_CONTENT = "N/A"
SCALES = np.geomspace(0.1, 200, 100)  # of cosines, or of label scores: one number, fitted on the training part


def zero_shot(job: Job) -> Run:
    """Without any row of the study, but for the one number that turns scores into probabilities."""
    if job.base.family == "seq2seq":
        return (yield from _named(job))
    if _decodes(job.base):
        return (yield from _asked(job, ""))
    names = [label.replace("_", " ").replace("-", " ") for label in job.rows.task.labels]
    tokenizer = job.base.tokenizer
    centres = embed(job.base, [torch.tensor(ids) for ids in tokenizer(names)["input_ids"]])
    return (yield from _nearest(job, centres))


def few_shot(job: Job) -> Run:
    """With a few rows of each class, all of the training part."""
    shown = job.shown()
    if _decodes(job.base):
        examples = [_filled(job, number) for number in shown]
        return (yield from _asked(job, "".join(f"{example}\n\n" for example in examples)))
    found = yield from embeddings(job)
    truth, means = job.truth(shown), []
    for place, label in enumerate(job.rows.task.labels):
        mine = [found[number] for number, own in zip(shown, truth, strict=True) if own == place]
        if not mine:
            raise NotApplicable(f"the training part has no row of class {label!r} to show")
        means.append(np.mean(mine, axis=0))
    return (yield from _nearest(job, np.stack(means)))


def _nearest(job: Job, centres: np.ndarray) -> Run:
    """Classes by cosine to their centres (classes, hidden)."""
    found = yield from embeddings(job)
    centres = centres / np.linalg.norm(centres, axis=-1, keepdims=True)
    seen, unseen = (np.stack([found[n] for n in part]) @ centres.T for part in (job.unit.train, job.unit.validation))
    return _scaled(job, list(job.unit.train), seen, unseen)


def _scaled(job: Job, numbers: Sequence[int], seen: np.ndarray, unseen: np.ndarray) -> Scores:
    """Probabilities from scores, by the scale at which those of training rows have the least loss."""
    truth = job.truth(numbers)
    losses = [-log_softmax(scale * seen)[np.arange(len(truth)), truth].mean() for scale in SCALES]
    likely = log_softmax(SCALES[int(np.argmin(losses))] * unseen)
    return class_scores(likely, job.truth(job.unit.validation))


# --- encoder-decoders -------------------------------------------------------------------------------------------


def _named(job: Job) -> Run:
    """Every label's name scored as the answer to each row; the scale is fitted on at most as many training rows."""
    limit = min(job.unit.settings.max_length, job.base.limit)
    items, seen = job.rows.items(limit), list(job.unit.train)[: len(job.unit.validation)]
    (nothing,) = job.rows.further([{"text": NO_CONTENT, "label": job.rows.task.labels[0]}], limit)
    asked = [nothing, *(items[number] for number in (*seen, *job.unit.validation))]
    found = np.zeros((len(asked), job.classes))
    for group in split_by_length([item.tokens for item in asked], len(asked), TOKENS, 64):
        found[group] = _scores(job.base, [asked[place] for place in group])
        yield
    known, unknown = found[1 : 1 + len(seen)], found[1 + len(seen) :]
    return _scaled(job, seen, known - found[0], unknown - found[0])


@torch.inference_mode()
def _scores(base: Base, items: Sequence[Item]) -> np.ndarray:
    batch = collate(items, int(base.tokenizer.pad_token_id or 0), base.device)
    return np.asarray(choice_scores(base.model, batch).cpu().numpy())


# --- decoders ---------------------------------------------------------------------------------------------------


def _decodes(base: Base) -> bool:
    config = base.model.config
    if config.is_encoder_decoder:
        raise NotApplicable("an encoder-decoder that is loaded as a classifier has no decoder to prompt")
    return base.reads == "last" or bool(getattr(config, "is_decoder", False))


def _filled(job: Job, number: int) -> str:
    (text,) = job.texts([number])
    return job.template.replace("{text}", text).replace("{label}", str(job.row(number)["label"]))


def _asked(job: Job, before: str) -> Run:
    """Every label scored behind each row's prompt; the scale is fitted on at most as many training rows."""
    head = _language_head(job.base)
    yield
    empty = yield from _label_scores(job, head, before, [NO_CONTENT])
    numbers = [n for n in job.unit.train if n not in set(job.shown())][: len(job.unit.validation)]
    seen = yield from _label_scores(job, head, before, job.texts(numbers))
    unseen = yield from _label_scores(job, head, before, job.texts(job.unit.validation))
    return _scaled(job, numbers, seen - empty, unseen - empty)


def _label_scores(job: Job, head: Tensor, before: str, texts: Sequence[str]) -> Generator[None, None, np.ndarray]:
    """(texts, classes) mean log-probability of each label's tokens."""
    found = np.zeros((len(texts), job.classes))
    for place, text in enumerate(texts):
        prompt = before + job.template.removesuffix("{label}").replace("{text}", text)
        rows = [_continued(job.base.tokenizer, prompt, label) for label in job.rows.task.labels]
        if (longest := max(len(ids) for ids, _ in rows)) > job.base.limit:
            raise too_long(longest, job.base.limit)
        found[place] = _likelihoods(job.base, head, rows)
        yield
    return found


def _continued(tokenizer: PreTrainedTokenizerBase, prompt: str, label: str) -> tuple[Tensor, int]:
    """(token ids of prompt and label, how many of them are the prompt's)."""
    whole, first = (tokenizer(text)["input_ids"] for text in (prompt + label, prompt))
    same = next((i for i, (a, b) in enumerate(zip(whole, first, strict=False)) if a != b), min(len(whole), len(first)))
    return torch.tensor(whole), min(same, len(whole) - 1)


@torch.inference_mode()
def _likelihoods(base: Base, head: Tensor, rows: Sequence[tuple[Tensor, int]]) -> np.ndarray:
    ids, mask = (part.to(base.device) for part in padded([ids for ids, _ in rows]))
    states = base.model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
    found = []
    for place, (ids, start) in enumerate(rows):
        logits = (states[place, start - 1 : len(ids) - 1] @ head.t()).float().log_softmax(-1)
        found.append(float(logits.gather(1, ids[start:, None].to(base.device)).mean()))
    return np.array(found)


def _language_head(base: Base) -> Tensor:
    """(vocabulary, hidden), of the checkpoint that the classifier came from."""
    if base.model.config.get_text_config().tie_word_embeddings:
        embeddings: torch.nn.Embedding = base.model.get_input_embeddings()  # type: ignore[no-untyped-call]
        return embeddings.weight.detach()
    place, options = locate(base.pin)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            place, dtype=base.model.dtype, use_safetensors=True, trust_remote_code=False, **options
        )
    except (ValueError, OSError) as error:
        raise NotApplicable(f"the model has no language-model head ({type(error).__name__})") from error
    weight: Tensor = model.get_output_embeddings().weight.detach().to(base.device)
    return weight
