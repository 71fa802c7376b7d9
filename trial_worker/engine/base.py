"""The frozen base: one model and its tokenizer, loaded once and shared by every unit of a study."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from orchestrator.contract import ModelPin
from trial_worker.engine import quantized
from trial_worker.engine.choices import keeps_apart
from trial_worker.engine.errors import UnusableModel
from trial_worker.engine.heads import has_plain_head
from trial_worker.engine.hiding import Hidden
from trial_worker.engine.narrow import Reads, reads_of_head
from trial_worker.engine.recompute import recompute_layers
from trial_worker.engine.window import open_window

_FAMILIES: dict[str, Any] = {
    "sequence": AutoModelForSequenceClassification,
    "causal": AutoModelForCausalLM,
    "tokens": AutoModelForTokenClassification,
    "spans": AutoModelForQuestionAnswering,
    "seq2seq": AutoModelForSeq2SeqLM,
}
_NOT_OF_TWO_HALVES = {"causal": "no causal language model", "spans": "whose decoder does not read the text it answers"}
_HEADED = ("sequence", "tokens", "spans")


@dataclass(frozen=True)
class Base:
    """A frozen model in evaluation mode; nothing in it requires a gradient.

    streams: whether its layers take rows without padding, see `window`.
    plain_head: whether a language model's logits are its linear head's of the last states, and nothing else.
    reads: which tokens of the last layer the model's own head reads, where only these need to be computed.
    heads: names of the modules that every unit trains from a fresh start, because the checkpoint has no weights
        for them, or weights for other classes; empty for a language model.
    limit: tokens that the model's positions reach.
    family: as `load`.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    pin: ModelPin
    heads: tuple[str, ...]
    limit: int
    streams: bool
    plain_head: bool
    reads: Reads = "all"
    family: str = "sequence"

    @cached_property
    def hidden(self) -> Hidden:
        """What token dropout does with this tokenizer's tokens."""
        return Hidden.of(self.tokenizer)

    @cached_property
    def knows_segments(self) -> bool:
        """Whether it has an embedding for each text of a pair."""
        return any(
            name.endswith("token_type_embeddings") and getattr(part, "num_embeddings", 0) > 1
            for name, part in self.model.named_modules()
        )

    @classmethod
    def load(
        cls,
        pin: ModelPin,
        family: str,
        outputs: int,
        device: torch.device | str = "cpu",
        *,
        streams: bool = True,
    ) -> Base:
        """Load what the pin names, as it says: safetensors only, no code from the model's repository.

        family: "sequence" or "tokens" (a head with so many outputs for each row, or token), "spans" (two outputs for
            each token, start and end), "causal" or "seq2seq" (a language model, with an encoder too; outputs 0,
            or how many texts the decoder is asked for).
        streams: compute rows without padding where the model allows it.

        The pin's precision is that of the frozen weights and of what is computed with them. Adapters, heads, losses
        and AdamW are float32 in any case.

        Raises:
            UnusableModel: no such model, no safetensors weights, weights missing, not of this family, or it cannot be
                held as the pin says.
            OSError: a file of it cannot be read.
        """
        device, dtype = torch.device(device), _dtype(pin.precision, torch.device(device))
        if pin.quantization != "none":
            quantized.refuse_unless_possible(pin)
        place, options = locate(pin)
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, **options)
        if family in _HEADED:
            options = {**options, "num_labels": outputs, "ignore_mismatched_sizes": True}
        if pin.quantization != "none":
            config = AutoConfig.from_pretrained(place, trust_remote_code=False, **options)
            options |= quantized.options(_FAMILIES[family], config, dtype, device)
        model, found = _FAMILIES[family].from_pretrained(
            place,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
        if model.config.is_encoder_decoder and family in _NOT_OF_TWO_HALVES:
            why = _NOT_OF_TWO_HALVES[family]
            raise UnusableModel(f"{pin.path}: {type(model).__name__} is an encoder-decoder, {why}")
        _settle_padding(model, tokenizer)
        heads = _heads(model, family, {*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])}, pin)
        _keep_no_cache(model)
        if pin.quantization != "none":
            quantized.settle(model)
        model.to(device).eval().requires_grad_(False)
        if pin.gradient_checkpointing:
            recompute_layers(model)
        if family == "causal":
            _refuse_unless_causal(model, pin)
        if family == "seq2seq" and outputs and not keeps_apart(model):
            why = "its decoder counts positions from the first token, and classes are asked for side by side"
            raise UnusableModel(f"{pin.path}: {type(model).__name__} cannot sort by the classes' names: {why}")
        window = open_window(model) if streams else None
        reads: Reads = "all"
        if window is not None and window.narrow:
            reads = "targets" if family == "causal" else reads_of_head(model, window.last, family)
        plain = family == "causal" and has_plain_head(model)
        return cls(
            model, tokenizer, device, pin, heads, _limit(model, tokenizer), window is not None, plain, reads, family
        )


def _dtype(precision: str, device: torch.device) -> torch.dtype:
    if precision == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float32
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"precision must be auto, float32 or bfloat16, got {precision!r}")
    return torch.float32 if precision == "float32" else torch.bfloat16


def locate(pin: ModelPin) -> tuple[str, dict[str, Any]]:
    """What to hand to `from_pretrained`: a hub id with its revision, or a folder.

    Raises:
        UnusableModel: the folder or the package does not exist on this machine.
    """
    if pin.origin == "hub":
        return pin.path, {"revision": pin.pin}
    if pin.origin == "package":
        return str(_inside_package(pin.path)), {"local_files_only": True}
    folder = Path(pin.path).expanduser()
    if pin.root is not None:
        folder = Path(pin.root) / folder
    return str(_existing(folder, pin.path)), {"local_files_only": True}


def _inside_package(path: str) -> Path:
    name, _, inside = path.removeprefix("package:").partition("/")
    # find_spec of a dotted name, or an import, would run the package's code to reach a folder of files
    found = importlib.util.find_spec(name) if name.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise UnusableModel(f"{path}: package {name!r} is not installed")
    root = Path(next(iter(found.submodule_search_locations))).resolve()
    folder = _existing(root / inside, path)
    if not folder.resolve().is_relative_to(root):
        raise UnusableModel(f"{path}: the path must stay inside the package")
    return folder


def _existing(folder: Path, path: str) -> Path:
    if not folder.is_dir():
        raise UnusableModel(f"{path}: no model folder at {folder}")
    return folder


def _settle_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """A pad token for tokenizer and model: a decoder's classifier looks for the last token that is not it."""
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise UnusableModel("the tokenizer has neither a pad nor an eos token")
        tokenizer.pad_token = tokenizer.eos_token
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def _keep_no_cache(model: PreTrainedModel) -> None:
    """Of keys and values: nothing reads it, and a layer that is computed twice would add to it twice.

    Halves of an encoder-decoder have configurations of their own.
    """
    for part in model.modules():
        if isinstance(part, PreTrainedModel) and hasattr(part.config, "use_cache"):
            part.config.use_cache = False


def _heads(model: PreTrainedModel, family: str, absent: set[str], pin: ModelPin) -> tuple[str, ...]:
    """Modules outside the encoder, and a pooler without weights; anything else absent is a broken checkpoint.

    A module that PEFT leaves frozen at random values would spoil every trial without any error.
    """
    inner = model.base_model_prefix
    heads = set()
    if family in _HEADED:
        heads = {
            name for name, child in model.named_children() if name != inner and any(True for _ in child.parameters())
        }
    for key in absent:
        parts = key.split(".")
        if parts[0] in heads:
            continue
        if family in _HEADED and "pooler" in parts:
            heads.add(".".join(parts[: parts.index("pooler") + 1]))
            continue
        raise UnusableModel(f"{pin.path}: the checkpoint lacks weights of {type(model).__name__}: {key}")
    return tuple(sorted(heads))


def _limit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """RoBERTa counts positions from behind the pad id, so that its table reaches less far than it is long."""
    reach = int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1_000_000)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            reach -= module.padding_idx + 1
    return min(reach, int(tokenizer.model_max_length))


@torch.inference_mode()
def _refuse_unless_causal(model: PreTrainedModel, pin: ModelPin) -> None:
    """An encoder loaded as a language model sees the very tokens it is to predict, and scores close to 0 nats."""
    ids = torch.arange(8, device=model.device).unsqueeze(0) % model.config.get_text_config().vocab_size
    changed = ids.clone()
    changed[0, -1] = 0
    before, after = (model(input_ids=one).logits[0, :-1] for one in (ids, changed))
    if not torch.allclose(before, after, rtol=1e-4, atol=1e-4):
        raise UnusableModel(f"{pin.path}: {type(model).__name__} sees later tokens, so it is no causal language model")
