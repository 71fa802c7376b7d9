"""Tiny models with random weights, made on the fly: the shapes of real families, nothing learnt, no network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers.decoders import ByteLevel
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5ForConditionalGeneration,
)

from orchestrator.contract import ModelPin, Settings, TrainUnit

CORPUS = (
    "a small sharp tool for cutting wood or stone",
    "a feeling of deep and lasting joy",
    "a sweet red fruit eaten raw or baked in a pie",
    "the act of cutting something with a sharp tool",
    "a strong feeling of anger about something unjust",
    "bread baked from flour, water and salt",
)
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """BERT's way: lower-cased words, [CLS] ... [SEP]."""
    inner = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    inner.train_from_iterator(CORPUS, trainers.WordLevelTrainer(special_tokens=special))
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        model_max_length=64,
    )


def byte_tokenizer(*, bos: bool = False, eos: bool = False, pad_is_eos: bool = True) -> PreTrainedTokenizerFast:
    """GPT-2's way: byte-level BPE; `bos`: each text begins with <s>, as Llama's do; `eos`: it ends with </s>."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = ByteLevel()
    special = ["<s>", "</s>", "<pad>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
    inner.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    template = ("<s> " if bos else "") + "$A" + (" </s>" if eos else "")
    pair = template.replace("$A", "$A </s> </s> $B")
    inner.post_processor = processors.TemplateProcessing(
        single=template, pair=pair, special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", model_max_length=64)
    if not pad_is_eos:
        tokenizer.pad_token = "<pad>"
    return tokenizer


def save_bert(folder: Path) -> Path:
    """A BERT encoder without pooler weights' use or head: hidden 16, 2 layers."""
    tokenizer = word_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    return _save(BertModel, config, tokenizer, folder)


def save_roberta(folder: Path) -> Path:
    """A RoBERTa encoder: positions counted from behind the pad id."""
    tokenizer = byte_tokenizer(bos=True, pad_is_eos=False)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
        pad_token_id=2,
    )
    return _save(RobertaModel, config, tokenizer, folder, add_pooling_layer=False)


def save_gpt2(folder: Path) -> Path:
    """A GPT-2 language model whose pad token is its end-of-text token; Conv1D layers, tied embeddings."""
    tokenizer = byte_tokenizer()
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=1
    )
    return _save(GPT2LMHeadModel, config, tokenizer, folder)


def save_llama(folder: Path, *, layers: int = 2) -> Path:
    """A Llama-type language model with a chat template."""
    tokenizer = byte_tokenizer(bos=True)
    tokenizer.chat_template = CHAT_TEMPLATE
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=1,
    )
    return _save(LlamaForCausalLM, config, tokenizer, folder)


def save_t5(folder: Path) -> Path:
    """A T5 encoder-decoder with its relative position bias; gated feed-forward layers, as since T5 1.1."""
    tokenizer = byte_tokenizer(eos=True, pad_is_eos=False)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        pad_token_id=2,
        eos_token_id=1,
        decoder_start_token_id=2,
    )
    return _save(T5ForConditionalGeneration, config, tokenizer, folder)


def _save(
    kind: type[PreTrainedModel], config: Any, tokenizer: PreTrainedTokenizerFast, folder: Path, **options: Any
) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kind(config, **options).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def pin(folder: Path, *, pooling: str = "first", normalize: bool = False, **holding: Any) -> ModelPin:
    """A pin of a local folder. holding: how its weights are held, see `ModelPin`."""
    return ModelPin(path=str(folder), origin="local", pin="0" * 64, pooling=pooling, normalize=normalize, **holding)


def classification_rows(count: int = 24) -> list[dict[str, str]]:
    """Texts of mixed lengths in three classes."""
    names = ("tool", "feeling", "food")
    words = " ".join(CORPUS).split()
    return [
        {"text": " ".join(words[(7 * i + j) % len(words)] for j in range(2 + i % 9)), "label": names[i % 3]}
        for i in range(count)
    ]


def number_rows(count: int = 24) -> list[dict[str, Any]]:
    """The same texts, each with a number that has little to do with its scale."""
    return [{"text": row["text"], "number": 1900.0 + 3 * len(row["text"])} for row in classification_rows(count)]


def labels_rows(count: int = 24) -> list[dict[str, Any]]:
    """The same texts with none, one or more of the labels."""
    return [
        {"text": row["text"], "labels": [label for n, label in enumerate(LABELS) if (i >> n) % 2]}
        for i, row in enumerate(classification_rows(count))
    ]


TAGS = ("B-food", "B-tool", "I-food", "O")


def tagged_rows(count: int = 24) -> list[dict[str, Any]]:
    """The same texts with a tag for each word."""
    rows = []
    for i, row in enumerate(classification_rows(count)):
        text, words, at = row["text"], [], 0
        for word in text.split():
            words.append([at, at + len(word)])
            at += len(word) + 1
        rows.append({"text": text, "words": words, "tags": [TAGS[(len(text) + i * n) % 4] for n in range(len(words))]})
    return rows


def question_rows(count: int = 24) -> list[dict[str, Any]]:
    """A few words of a text are asked for by the word before them."""
    rows = []
    for i in range(count):
        words = " ".join(CORPUS[(i + j) % 6] for j in range(1 + i % 2)).split()
        at, length = 1 + i % (len(words) - 3), 1 + i % 3
        answer = " ".join(words[at : at + length])
        start = len(" ".join(words[:at])) + 1
        question = f"what is behind {words[at - 1]}"
        rows.append({"context": " ".join(words), "question": question, "answer": answer, "start": start})
    return rows


def uneven_rows(count: int = 24) -> list[dict[str, str]]:
    """The same with one class that has most of them."""
    return [{**row, "label": "food"} if i % 5 < 3 else row for i, row in enumerate(classification_rows(count))]


def pair_rows(count: int = 24) -> list[dict[str, str]]:
    """Pairs of texts of mixed lengths in three classes."""
    rows = classification_rows(count)
    return [{**row, "text_pair": rows[(5 * i + 2) % count]["text"]} for i, row in enumerate(rows)]


def causal_rows(count: int = 24) -> list[dict[str, str]]:
    """Prompts and completions of mixed lengths."""
    return [
        {"prompt": CORPUS[i % 6][: 4 + i % 11], "completion": CORPUS[(i + 1) % 6][: 9 + i % 17]} for i in range(count)
    ]


def rewriting_rows(count: int = 24) -> list[dict[str, str]]:
    """Sources and targets of mixed lengths."""
    return [
        {"source": CORPUS[i % 6][: 6 + i % 13], "target": CORPUS[(i + 2) % 6][: 3 + (5 * i) % 17]} for i in range(count)
    ]


LABELS = ("feeling", "food", "tool")


def write_rows(path: Path, rows: Sequence[Any]) -> Path:
    """A snapshot's JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def unit(rows: int = 24, *, number: int = 1, seed: int = 11, **settings: Any) -> TrainUnit:
    """A unit on the first fold of four."""
    chosen = {"learning_rate": 5e-2, "batch_size": 8, "epochs": 2, "lora_rank": 4, **settings}
    return TrainUnit(
        study=1,
        unit=number,
        lease_epoch=1,
        trial=1,
        repeat=0,
        fold=0,
        seed=seed,
        settings=Settings(**chosen),
        train=tuple(i for i in range(rows) if i % 4),
        validation=tuple(i for i in range(rows) if i % 4 == 0),
    )
