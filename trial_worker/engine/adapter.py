"""A unit's trainable part on the resident base: LoRA by PEFT, and a head."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from orchestrator.contract import Settings, derive_seed
from trial_worker.engine.base import Base
from trial_worker.engine.dropout import Draws, RowDropout
from trial_worker.engine.heads import MeanHead, Reader, initialise, read_family, read_mean, reading_tokens

ADAPTER = "default"  # PEFT's name, so that an exported adapter needs no renaming


@dataclass(frozen=True)
class Network:
    """A base with one unit's adapter attached.

    logits: reader of batches. parameters: the trainable ones by name, LoRA first, then the head.
    draws: set its keys to switch the adapter's dropout on for a micro-batch.
    """

    logits: Reader
    parameters: dict[str, nn.Parameter]
    draws: Draws


@contextmanager
def attached(base: Base, settings: Settings, seed: int, classes: int) -> Iterator[Network]:
    """Attach LoRA and a head, both initialised from `seed` alone; afterwards the base is as it was before.

    classes: of the classifier; 0 for a language model.

    Raises:
        ValueError: the model has no layer that `target_modules` names.
    """
    draws = Draws(derive_seed(seed, "dropout"))
    mean = classes > 0 and resolve_pooling(base, settings) == "mean"
    model = cast(PreTrainedModel, base.model.base_model) if mean else base.model
    config = _lora_config(model, settings, base.heads if classes and not mean else (), classes, mean)
    with ExitStack() as stack:
        with _seeded(derive_seed(seed, "initialisation"), base.device):
            wrapped = stack.enter_context(_injected(model, config))
            for head in _fresh_heads(wrapped):
                initialise(head, _std(base))
            parameters = {name: p for name, p in wrapped.named_parameters() if p.requires_grad}
            if mean:
                pooled = MeanHead(_hidden(base), classes, base.pin.normalize)
                initialise(pooled, _std(base))
                pooled.to(base.device)
                parameters |= {f"head.{name}": p for name, p in pooled.named_parameters()}
        _use_row_dropout(wrapped, draws)
        if mean:
            reader: Reader = read_mean(model, pooled)
        else:
            reader = read_family(model) if classes else stack.enter_context(reading_tokens(model))
        yield Network(reader, parameters, draws)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """The process's random streams start from `seed` inside, and go on afterwards as if nothing had happened."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def resolve_pooling(base: Base, settings: Settings) -> str:
    """ "first" or "mean"."""
    return base.pin.pooling if settings.pooling == "auto" else settings.pooling


def resolve_alpha(alpha: float | str, rank: int) -> float:
    """LoRA's alpha as a number: "2r" is twice the rank.

    Raises:
        ValueError: neither a number nor a multiple of r.
    """
    if not isinstance(alpha, str):
        return float(alpha)
    text = alpha.strip().lower()
    try:
        return float(text[:-1].rstrip(" *") or 1) * rank if text.endswith("r") else float(text)
    except ValueError:
        raise ValueError(f"lora_alpha must be a number or a multiple of the rank such as 2r, got {alpha!r}") from None


def _lora_config(
    model: PreTrainedModel, settings: Settings, heads: tuple[str, ...], classes: int, mean: bool
) -> peft.LoraConfig:
    alpha = resolve_alpha(settings.lora_alpha, settings.lora_rank)
    kinds = peft.TaskType
    targets = settings.target_modules
    if not isinstance(targets, str):
        _refuse_unknown(model, targets)
    # mean pooling never reads the pooler; LoRA on it would be dead weight in every export
    unread = [name for name, part in model.named_modules() if mean and _is_linear(part) and "pooler" in name]
    return peft.LoraConfig(
        task_type=kinds.FEATURE_EXTRACTION if mean else kinds.SEQ_CLS if classes else kinds.CAUSAL_LM,
        r=settings.lora_rank,
        lora_alpha=int(alpha) if alpha == int(alpha) else alpha,  # type: ignore[arg-type]
        lora_dropout=settings.lora_dropout,
        target_modules=None if targets == "auto" else targets if isinstance(targets, str) else list(targets),
        exclude_modules=unread or None,
        modules_to_save=list(heads) or None,
        fan_in_fan_out=any(isinstance(part, Conv1D) for part in model.modules()),
        bias="none",
    )


def _refuse_unknown(model: PreTrainedModel, targets: Sequence[str]) -> None:
    """PEFT is content if one name of a list matches; the others would be without effect."""
    names = ["." + name for name, _ in model.named_modules()]
    for target in targets:
        if not any(name.endswith("." + target) for name in names):
            raise ValueError(f"target_modules: {type(model).__name__} has no layer named {target!r}")


@contextmanager
def _injected(model: PreTrainedModel, config: peft.LoraConfig) -> Iterator[peft.PeftModel]:
    """PEFT layers in the model, and out again."""
    originals = {name: model.get_submodule(name) for name in config.modules_to_save or ()}
    wrapped = None
    try:
        with warnings.catch_warnings():
            # PEFT asks transformers by names that transformers 5 deprecates, and warns that it corrects
            # fan_in_fan_out in a model with both Linear and Conv1D layers
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
            wrapped = peft.get_peft_model(model, config)
        yield wrapped
    finally:
        if wrapped is not None:
            wrapped.unload()
        else:
            _sweep(model)
        # unload leaves the *trained* copy of a head in its place
        for name, module in originals.items():
            model.set_submodule(name, module)
        model.requires_grad_(False)


def _sweep(model: PreTrainedModel) -> None:
    """Undo an injection that PEFT gave up half-way, or the next unit would train two adapters at once."""
    layers = [(name, part) for name, part in model.named_modules() if isinstance(part, BaseTunerLayer)]
    for name, part in layers:
        model.set_submodule(name, part.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config


def _fresh_heads(wrapped: peft.PeftModel) -> list[nn.Module]:
    wrappers = [
        (name, part) for name, part in wrapped.named_modules() if isinstance(part, peft.utils.ModulesToSaveWrapper)
    ]
    return [part.modules_to_save[ADAPTER] for _, part in sorted(wrappers, key=lambda pair: pair[0])]


def _use_row_dropout(wrapped: peft.PeftModel, draws: Draws) -> None:
    for name, part in wrapped.named_modules():
        layers: Any = getattr(part, "lora_dropout", None)
        if isinstance(layers, nn.ModuleDict) and isinstance(old := layers[ADAPTER], nn.Dropout):
            layers[ADAPTER] = RowDropout(old.p, draws, name)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def _std(base: Base) -> float:
    return float(getattr(base.model.config.get_text_config(), "initializer_range", None) or 0.02)


def _hidden(base: Base) -> int:
    return int(base.model.config.get_text_config().hidden_size)
