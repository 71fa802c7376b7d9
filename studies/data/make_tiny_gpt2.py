"""Train studies/data/tiny-gpt2: a language model of 2.2 million weights that has read Python's documentation.

    OMP_NUM_THREADS=1 python studies/data/make_tiny_gpt2.py

Purpose: `studies/causal.yaml` needs a base that runs on two CPU cores, may be redistributed and has really
learned something. A LoRA on random weights cannot even learn how often each token occurs, so that its losses
would say nothing about a search. This base is good for showing that the machinery learns, and for nothing else.

Text: `pydoc_data.topics` of the running Python (the language reference behind `help("for")`), PSF licence.
It differs between Python versions; the README that this script writes beside the weights names the version.
The seed fixes the run on one machine; other processors and versions of torch round differently.
"""

from __future__ import annotations

import datetime
import json
import math
import platform
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

SEED = 7
HELD_OUT = ("comparisons", "execmodel", "import", "strings", "try")
VOCABULARY = 2048
BLOCK = 128  # tokens; also the model's number of positions
BATCH = 8  # blocks
STEPS = 800
WARM_UP = 40
LEARNING_RATE = 2e-3
END, PAD = "<|endoftext|>", "<|pad|>"

OUT = Path(__file__).with_name("tiny-gpt2")


@dataclass(frozen=True)
class Losses:
    """Mean negative log-likelihood of the held-out topics, nats per token."""

    model: float
    uniform: float
    unigram: float  # token frequencies of the training text, one added to each
    per_byte: float  # the model's, in nats per UTF-8 byte


def split_topics() -> tuple[list[str], list[str]]:
    """Training and held-out documents.

    Topics quote each other at length (`compound` holds all of `try`), so every paragraph counts once only, and
    the held-out topics choose first: else they would be scored on text that the model was trained on.
    """
    seen: set[str] = set()
    documents = {}
    for name in sorted(topics, key=lambda name: (name not in HELD_OUT, name)):
        paragraphs = [p for p in topics[name].split("\n\n") if p.strip() and p not in seen]
        seen.update(paragraphs)
        documents[name] = "\n\n".join(paragraphs)
    train = [text for name, text in documents.items() if name not in HELD_OUT and text]
    return train, [documents[name] for name in HELD_OUT]


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE: any text can be written with it, whatever the training text held."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[END, PAD],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    # Padding has its own token: with END as padding, whoever masks labels by token would never learn to end.
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=END, eos_token=END, pad_token=PAD, model_max_length=BLOCK
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    """One stream of token ids (n,), END after each document."""
    encoded = tokenizer.backend_tokenizer.encode_batch([text + END for text in texts])
    return torch.tensor([token for row in encoded for token in row.ids])


def new_model(tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=BLOCK,
        n_embd=192,
        n_layer=4,
        n_head=4,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=pad,
    )
    return GPT2LMHeadModel(config)


def learning_rate(step: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < WARM_UP:
        return LEARNING_RATE * (step + 1) / WARM_UP
    return LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * (step - WARM_UP) / (STEPS - WARM_UP)))


def train(model: GPT2LMHeadModel, stream: Tensor, held_out: Tensor) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.1)
    for step in range(STEPS):
        starts = torch.randint(len(stream) - BLOCK, (BATCH,)).tolist()
        blocks = torch.stack([stream[start : start + BLOCK] for start in starts])  # (BATCH, BLOCK)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        loss = next_token_loss(model, blocks, "mean")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0:
            print(
                f"step {step + 1}/{STEPS}: training {loss.item():.3f}, held out {nats(model, held_out):.3f}",
                file=sys.stderr,
            )
            model.train()


def next_token_loss(model: GPT2LMHeadModel, blocks: Tensor, reduction: str) -> Tensor:
    """Negative log-likelihood, nats, of every token of blocks (rows, length) but each row's first."""
    logits = model(input_ids=blocks).logits[:, :-1]
    return cross_entropy(logits.flatten(0, 1), blocks[:, 1:].flatten(), reduction=reduction)


@torch.no_grad()
def nats(model: GPT2LMHeadModel, stream: Tensor) -> float:
    """Per predicted token, over the whole stream cut into blocks; a block's first token has no context."""
    model.eval()
    total, count = 0.0, 0
    for block in stream.split(BLOCK):
        if len(block) > 1:
            total += next_token_loss(model, block[None], "sum").item()
            count += len(block) - 1
    return total / count


def unigram_nats(train_stream: Tensor, held_out: Tensor) -> float:
    counts = Counter(train_stream.tolist())
    total = len(train_stream) + VOCABULARY
    return -sum(math.log((counts[token] + 1) / total) for token in held_out.tolist()) / len(held_out)


def save(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """float16 on disk halves the file; config.json says float32, so that everyone computes in float32."""
    # Dropout served this training; a fine-tune that switches it on in the frozen base would only add noise.
    model.config.update({"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0})
    model.half().save_pretrained(OUT)
    (OUT / "model.safetensors").chmod(0o644)  # written 0600: other accounts could not read a shared checkout
    tokenizer.save_pretrained(OUT)
    path = OUT / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def measure_saved(stream: Tensor, held_out: Tensor, held_out_bytes: int) -> Losses:
    """Of the files as committed, not of the weights in memory."""
    model = AutoModelForCausalLM.from_pretrained(OUT)
    if model.dtype != torch.float32:
        raise ValueError(f"the saved model must load as float32, got {model.dtype}")
    if AutoTokenizer.from_pretrained(OUT).pad_token_id != model.config.pad_token_id:
        raise ValueError("the saved tokenizer and model must agree on the padding token")
    loss = nats(model, held_out)
    return Losses(
        model=loss,
        uniform=math.log(VOCABULARY),
        unigram=unigram_nats(stream, held_out),
        per_byte=loss * len(held_out) / held_out_bytes,
    )


def readme(losses: Losses, weights: int, sizes: tuple[int, int], cpu_seconds: float) -> str:
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return f"""# tiny-gpt2

A GPT-2 of {weights / 1e6:.1f} million weights, made by `make_tiny_gpt2.py` for `studies/causal.yaml`. It is
self-made and tiny. It shows that fine-tuning and the search over it work on a CPU; it says nothing about how
good a language model can be, and it is useful for nothing else.

| | |
|---|---|
| architecture | GPT-2: 4 layers, width 192, 4 heads, {BLOCK} positions, byte-level BPE of {VOCABULARY} tokens |
| text | `pydoc_data.topics` of Python {platform.python_version()}, each paragraph once: {sizes[0]:,} tokens |
| held out | {", ".join(HELD_OUT)}: {sizes[1]:,} tokens, none of their paragraphs in training |
| training | {STEPS} steps of {BATCH} x {BLOCK} tokens, AdamW at {LEARNING_RATE}, dropout 0.1, seed {SEED} |
| made | {datetime.date.today()}, {versions}, {cpu_seconds:.0f} CPU seconds on one thread |
| on disk | float16; `config.json` asks for float32, in which it was measured |

Loss on the held-out topics, nats per token:

| | loss |
|---|---|
| uniform over the vocabulary | {losses.uniform:.3f} |
| unigram, frequencies of the training text | {losses.unigram:.3f} |
| **this model** | **{losses.model:.3f}** ({losses.per_byte:.3f} nats per byte) |

Licence: the weights and the tokenizer are derived from Python's documentation, Copyright Python Software
Foundation, and are distributed under the PSF licence (`../NOTICE-Python.txt`).
"""


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    train_texts, held_out_texts = split_topics()
    tokenizer = make_tokenizer(train_texts)
    stream, held_out = encode(tokenizer, train_texts), encode(tokenizer, held_out_texts)
    model = new_model(tokenizer)
    weights = sum(parameter.numel() for parameter in model.parameters())
    print(f"{weights:,} weights, {len(stream):,} tokens, {len(held_out):,} held out", file=sys.stderr)

    started = time.process_time()
    train(model, stream, held_out)
    cpu_seconds = time.process_time() - started

    save(model, tokenizer)
    losses = measure_saved(stream, held_out, sum(len(text.encode()) for text in held_out_texts))
    text = readme(losses, weights, (len(stream), len(held_out)), cpu_seconds)
    (OUT / "README.md").write_text(text, encoding="utf-8")
    print(losses, file=sys.stderr)


if __name__ == "__main__":
    main()
