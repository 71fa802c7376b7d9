"""Train studies/data/tiny-t5: an encoder-decoder of 0.5 million weights that has read the King James Version.

    OMP_NUM_THREADS=1 python studies/data/make_tiny_t5.py bibles       # the folder of make_verses.py

Purpose: `studies/rewriting.yaml` needs a base of T5's architecture that may be redistributed and has learned something;
no pretrained one comes in a package. It learnt to write a verse of which it is shown five words in six, on verses that
are in none of the study's files. It is good for showing that the machinery learns, and for nothing else.

The seed fixes the run on one machine; other processors and versions of torch round differently.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import torch
from make_verses import king_james
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

SEED = 7
VOCABULARY, LONGEST = 1024, 64
BATCH, STEPS, LEARNING_RATE = 16, 400, 4e-3
OUT = Path(__file__).with_name("tiny-t5")


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE with T5's special tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=LONGEST
    )


def new_model(tokenizer: PreTrainedTokenizerFast) -> T5ForConditionalGeneration:
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=96,
        d_kv=24,
        d_ff=192,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    return T5ForConditionalGeneration(config)


def loss_of(
    model: T5ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, texts: list[str], draw: random.Random
) -> torch.Tensor:
    """Nats per token of the whole verse, shown without every sixth word or so."""
    shown = [" ".join(word for word in text.split() if draw.random() > 1 / 6) or text for text in texts]
    options = {"return_tensors": "pt", "padding": True, "truncation": True, "max_length": LONGEST}
    sources, targets = tokenizer(shown, **options), tokenizer(texts, **options)
    labels = targets["input_ids"].masked_fill(targets["attention_mask"] == 0, -100)
    loss: torch.Tensor = model(
        input_ids=sources["input_ids"], attention_mask=sources["attention_mask"], labels=labels
    ).loss
    return loss


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("one argument is needed: the folder of make_verses.py")
    torch.manual_seed(SEED)
    draw = random.Random(SEED)
    studied = {
        json.loads(line)[column]
        for name, column in (("verses.jsonl", "source"), ("verse_pairs.jsonl", "text"))
        for line in Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines()
    }
    verses = [text for text in king_james(Path(sys.argv[1])).values() if text not in studied]
    held_out, verses = verses[::100], [text for n, text in enumerate(verses) if n % 100]
    tokenizer = make_tokenizer(verses)
    model = new_model(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS)
    for step in range(STEPS):
        loss = loss_of(model, tokenizer, draw.sample(verses, BATCH), draw)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}/{STEPS}: {loss.item():.3f}", file=sys.stderr, flush=True)
    model.eval()
    with torch.inference_mode():
        found = loss_of(model, tokenizer, held_out, random.Random(0)).item()
    model.half().save_pretrained(OUT)
    tokenizer.save_pretrained(OUT)
    size = sum(p.numel() for p in model.parameters())
    about = f"""# tiny-t5

T5 architecture, {size:,} weights in float16, made by make_tiny_t5.py from the King James Version (public domain,
../NOTICE-Bible.txt). Verses with words left out, held out of its training: {found:.2f} nats per token of the whole.
It shows that the machinery learns, and nothing about how well T5 does.
"""
    (OUT / "README.md").write_text(about, encoding="utf-8")
    print(f"{size} weights, held out {found:.3f}", file=sys.stderr)


if __name__ == "__main__":
    main()
