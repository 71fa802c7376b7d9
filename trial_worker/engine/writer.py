"""A model that writes texts: loaded when something is to be written, each text written once on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from orchestrator import durable
from orchestrator.contract import WriterPin, digest
from trial_worker.augment.prompts import Asked
from trial_worker.engine.base import locate


class Writer:
    """Writes what it is asked.

    cache: folder of what was written; None: nothing is kept. A file's name is the sha256 of the model's pin, the
    prompt, the sampling and its seed, its content `{"text": ...}`.
    """

    def __init__(self, pin: WriterPin, device: torch.device, cache: Path | None) -> None:
        self.pin = pin
        self._device = device
        self._cache = cache
        self._loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None

    def written(self, asked: Asked) -> str | None:
        """What was written before; None: nothing, or its file is damaged."""
        try:
            return str(json.loads(self._place(asked).read_text(encoding="utf-8"))["text"]) if self._cache else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @torch.inference_mode()
    def write(self, asked: Asked) -> str:
        """One text, sampled with the seed of what is asked and nothing else.

        Raises:
            OSError: it cannot be kept, or the model cannot be read.
        """
        model, tokenizer = self._loaded = self._loaded or self._load()
        coded = _coded(asked.prompt, tokenizer).to(self._device)
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
            torch.manual_seed(asked.seed)
            ids = model.generate(coded, attention_mask=torch.ones_like(coded), generation_config=self._sampling(model))
        new = ids[0] if model.config.is_encoder_decoder else ids[0, coded.shape[1] :]
        text = str(tokenizer.decode(new, skip_special_tokens=True))
        if self._cache is not None:
            self._cache.mkdir(parents=True, exist_ok=True)
            durable.write(self._place(asked), json.dumps({"text": text}).encode())
        return text

    def close(self) -> None:
        """Leave the device to others; the next text loads the model again."""
        if self._loaded is not None and self._device.type == "cuda":
            torch.cuda.empty_cache()
        self._loaded = None

    def _place(self, asked: Asked) -> Path:
        pin = self.pin
        sampling = (pin.temperature, pin.top_p, pin.max_new_tokens)
        name = digest([pin.model.pin, sampling, asked.prompt, asked.seed])
        return (self._cache or Path()) / f"{name}.json"

    def _load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        place, options = locate(self.pin.model)
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, **options)
        config = AutoConfig.from_pretrained(place, trust_remote_code=False, **options)
        family: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model = family.from_pretrained(
            place,
            dtype=torch.bfloat16 if self._device.type == "cuda" else torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            **options,
        )
        return model.to(self._device).eval().requires_grad_(False), tokenizer

    def _sampling(self, model: PreTrainedModel) -> GenerationConfig:
        own, pin = model.generation_config, self.pin
        ends = own.eos_token_id
        end = ends[0] if isinstance(ends, list) else ends
        return GenerationConfig(
            do_sample=True,
            temperature=pin.temperature,
            top_p=pin.top_p,
            top_k=0,
            max_new_tokens=pin.max_new_tokens,
            bos_token_id=own.bos_token_id,
            eos_token_id=ends,
            pad_token_id=end if own.pad_token_id is None else own.pad_token_id,
            decoder_start_token_id=own.decoder_start_token_id,
            forced_bos_token_id=own.forced_bos_token_id,
            bad_words_ids=own.bad_words_ids,  # a translator of Marian's kind would say its padding
        )


def _coded(prompt: str, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """(1, length) int64; a model that chats is asked in a conversation."""
    if tokenizer.chat_template is not None:
        prompt = str(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
        )
    special = tokenizer.chat_template is None
    return torch.tensor([tokenizer(prompt, add_special_tokens=special)["input_ids"]])
