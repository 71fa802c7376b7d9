"""Train studies/data/tiny-roberta: an encoder of 0.7 million weights that has read Jane Austen's novels.

    apt-get download r-cran-janeaustenr && dpkg -x r-cran-janeaustenr_*.deb janeaustenr
    OMP_NUM_THREADS=1 python studies/data/make_tiny_roberta.py \
        janeaustenr/usr/lib/R/site-library/janeaustenr/data/Rdata.rdb

Purpose: `studies/novels.yaml` needs a base of RoBERTa's architecture that may be redistributed and has learned
something; no pretrained one comes in a package. It learnt to fill in masked tokens (Liu et al. 2019, arXiv 1907.11692;
three in ten of them, not three in twenty) of paragraphs that are in none of the study's files. It is good for showing
that the machinery learns, and for nothing else.

The seed fixes the run on one machine; other processors and versions of torch round differently.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import torch
from make_austen import novels
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast, RobertaConfig, RobertaForMaskedLM

SEED = 7
VOCABULARY, LONGEST = 2048, 128
BATCH, STEPS, LEARNING_RATE = 32, 4000, 2e-3
MASKED = 0.3
WORDS = range(8, 41)
OUT = Path(__file__).with_name("tiny-roberta")
SPECIAL = {
    "bos_token": "<s>",
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
    "cls_token": "<s>",
    "sep_token": "</s>",
}


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE with RoBERTa's special tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(dict.fromkeys(SPECIAL.values())),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    ends = [(name, bpe.token_to_id(name)) for name in ("<s>", "</s>")]
    bpe.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=ends
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, model_max_length=LONGEST, **SPECIAL)


def new_model(tokenizer: PreTrainedTokenizerFast) -> RobertaForMaskedLM:
    config = RobertaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=LONGEST + 2,  # RoBERTa counts positions from the padding's id
        type_vocab_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return RobertaForMaskedLM(config)


def texts_to_read(rdb: Path) -> list[str]:
    """Paragraphs of all novels but those of the studies."""
    columns = (("austen.jsonl", "text"), ("speech.jsonl", "text"), ("speakers.jsonl", "context"))
    studied = {
        json.loads(line)[column].replace('"', "")
        for name, column in columns
        for line in Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines()
    }
    found = []
    for lines in novels(rdb):
        for block in "\n".join(lines).split("\n\n"):
            text = " ".join(block.split())
            if len(text.split()) in WORDS and text.replace('"', "") not in studied:
                found.append(text)
    return found


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("one argument is needed: the path of janeaustenr's Rdata.rdb")
    torch.manual_seed(SEED)
    draw = random.Random(SEED)
    texts = texts_to_read(Path(sys.argv[1]))
    held_out, texts = texts[::100], [text for n, text in enumerate(texts) if n % 100]
    tokenizer = make_tokenizer(texts)
    masking = DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASKED)
    coded = [tokenizer(text, truncation=True) for text in texts]
    model = new_model(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS)
    for step in range(STEPS):
        loss = model(**masking(draw.sample(coded, BATCH))).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}/{STEPS}: {loss.item():.3f}", file=sys.stderr, flush=True)
    model.eval()
    torch.manual_seed(SEED)
    with torch.inference_mode():
        found = model(**masking([tokenizer(text, truncation=True) for text in held_out])).loss.item()
    model.half().save_pretrained(OUT)
    tokenizer.save_pretrained(OUT)
    size = sum(p.numel() for p in model.parameters())
    about = f"""# tiny-roberta

RoBERTa's architecture, {size:,} weights in float16, made by make_tiny_roberta.py from {len(texts):,} paragraphs of Jane
Austen's novels (public domain, ../NOTICE-Austen.txt). Masked tokens of paragraphs that it has not read:
{found:.2f} nats each. It shows that the machinery learns, and nothing about how well RoBERTa does.
"""
    (OUT / "README.md").write_text(about, encoding="utf-8")
    print(f"{size} weights, held out {found:.3f}", file=sys.stderr)


if __name__ == "__main__":
    main()
