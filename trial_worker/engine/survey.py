"""Which layers get LoRA and which modules are heads: as PEFT decides, asked once for each kind of unit."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import peft
import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from orchestrator.contract import Settings
from trial_worker.engine.base import Base
from trial_worker.engine.heads import MeanHead
from trial_worker.engine.lora import is_linear
from trial_worker.engine.memory import HeadWeight, Site
from trial_worker.engine.optimizer import decays

ADAPTER = "default"  # PEFT's name, so that an exported adapter needs no renaming
_TYPES = {
    "sequence": peft.TaskType.SEQ_CLS,
    "tokens": peft.TaskType.TOKEN_CLS,
    "spans": peft.TaskType.QUESTION_ANS,
    "causal": peft.TaskType.CAUSAL_LM,
    "seq2seq": peft.TaskType.SEQ_2_SEQ_LM,
}
MEAN_HEAD = "head"  # where a mean-pooled encoder has its head; it is none of the model's own modules


@dataclass(frozen=True)
class Kind:
    """What units must have in common to share a pack.

    targets: as `Settings.target_modules`; None: no adapters. top_layers: as `Settings.top_layers`. pooling: "first" or
    "mean" of a head that reads the whole row, else "". classes: outputs of the head; 0: none. whole: the model's own
    weights are trained. dora: adapters have magnitudes.
    """

    targets: str | tuple[str, ...] | None
    pooling: str
    classes: int
    top_layers: int = 0
    whole: bool = False
    dora: bool = False

    @classmethod
    def of(cls, base: Base, settings: Settings, classes: int) -> Kind:
        """The kind of a unit."""
        pooling = base.pin.pooling if settings.pooling == "auto" else settings.pooling
        return cls(
            targets=settings.target_modules if settings.method in ("lora", "dora") else None,
            pooling=pooling if base.family == "sequence" else "",
            classes=classes,
            top_layers=settings.top_layers if settings.method != "head" else 0,
            whole=settings.method == "full",
            dora=settings.method == "dora",
        )


@dataclass(frozen=True)
class Head:
    """A module that each slot trains its own copy of. template: one of it. prefix: of its parameters' names."""

    name: str
    prefix: str
    template: nn.Module


@dataclass(frozen=True)
class Survey:
    """Layers and heads of one kind on one base. model: that takes the batch: the whole, or a mean head's encoder."""

    model: PreTrainedModel
    sites: tuple[Site, ...]
    heads: tuple[Head, ...]


def survey(base: Base, kind: Kind) -> Survey:
    """Ask PEFT; the base is afterwards as it was.

    Raises:
        ValueError: the model has no layer that `target_modules` names, or nothing would be trained.
    """
    mean = kind.pooling == "mean"
    model = cast(PreTrainedModel, base.model.base_model) if mean else base.model
    # PEFT would take the norm of every weight, and throw it away
    config = lora_config(base, replace(kind, dora=False), rank=1, alpha=1)
    originals = {name: model.get_submodule(name) for name in config.modules_to_save or ()}
    wrapped = None
    try:
        with warnings.catch_warnings(), torch.random.fork_rng():
            # PEFT asks transformers by names that transformers 5 deprecates, and warns that it corrects
            # fan_in_fan_out in a model with both Linear and Conv1D layers
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
            wrapped = peft.get_peft_model(model, config)
        sites, heads = _found(wrapped)
    finally:
        if wrapped is not None:
            wrapped.unload()
        else:
            _sweep(model)
        # unload leaves a copy of a head in its place
        for name, module in originals.items():
            model.set_submodule(name, module)
        model.requires_grad_(False)
    if mean:
        hidden = int(base.model.config.get_text_config().hidden_size)
        template = MeanHead(hidden, kind.classes, base.pin.normalize).requires_grad_(False)
        heads.append(Head("", MEAN_HEAD, template))
    sites = [] if kind.targets is None else [site for site in sites if _is_top(model, site.name, kind.top_layers)]
    if not sites and not heads:
        raise ValueError("method head needs a classifier's head, and this model has none: use method lora")
    return Survey(model, tuple(sites), tuple(heads))


def layers_above(model: nn.Module, name: str) -> int | None:
    """How many layers of its list stand above the one that a module or parameter belongs to; None: it is in none."""
    parts = name.split(".")
    for end in range(1, len(parts)):
        layers = model.get_submodule(".".join(parts[:end]))
        if isinstance(layers, nn.ModuleList) and len(layers) > 1:
            return len(layers) - 1 - int(parts[end])
    return None


def _is_top(model: nn.Module, name: str, count: int) -> bool:
    """Whether a layer has adapters where the last `count` layers have, or all with 0; what is in no list has."""
    above = layers_above(model, name)
    return not count or above is None or above < count


def _found(wrapped: peft.PeftModel) -> tuple[list[Site], list[Head]]:
    sites, heads = [], []
    for prefix, part in wrapped.named_modules():
        name = prefix.removeprefix("base_model.model.")
        if isinstance(part, LoraLayer):
            sites.append(Site(name, prefix, int(part.in_features), int(part.out_features)))
        elif isinstance(part, ModulesToSaveWrapper):
            template = copy.deepcopy(part.modules_to_save[ADAPTER]).requires_grad_(False)
            heads.append(Head(name, f"{prefix}.modules_to_save.{ADAPTER}", template))
    return sites, heads


def lora_config(base: Base, kind: Kind, *, rank: int, alpha: float, dropout: float = 0.0) -> peft.LoraConfig:
    """PEFT's configuration of a unit's adapter.

    Raises:
        ValueError: the model has no layer that `target_modules` names.
    """
    mean = kind.pooling == "mean"
    model = cast(PreTrainedModel, base.model.base_model) if mean else base.model
    targets = kind.targets or "all-linear"
    if not isinstance(targets, str):
        _refuse_unknown(model, targets)
    # mean pooling never reads the pooler; LoRA on it would be dead weight in every export
    unread = [name for name, part in model.named_modules() if mean and is_linear(part) and "pooler" in name]
    return peft.LoraConfig(
        task_type=peft.TaskType.FEATURE_EXTRACTION if mean else _TYPES[base.family],
        r=rank,
        lora_alpha=int(alpha) if alpha == int(alpha) else alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=None if targets == "auto" else targets if isinstance(targets, str) else list(targets),
        exclude_modules=unread or None,
        modules_to_save=(list(base.heads) or None) if kind.classes and not mean else None,
        fan_in_fan_out=any(isinstance(part, Conv1D) for part in model.modules()),
        bias="none",
        use_dora=kind.dora,
    )


def _refuse_unknown(model: PreTrainedModel, targets: Sequence[str]) -> None:
    """PEFT is content if one name of a list matches; the others would be without effect."""
    names = ["." + name for name, _ in model.named_modules()]
    for target in targets:
        if not any(name.endswith("." + target) for name in names):
            raise ValueError(f"target_modules: {type(model).__name__} has no layer named {target!r}")


def _sweep(model: PreTrainedModel) -> None:
    """Undo an injection that PEFT gave up half-way, or units would train on two adapters at once."""
    layers = [(name, part) for name, part in model.named_modules() if isinstance(part, BaseTunerLayer)]
    for name, part in layers:
        model.set_submodule(name, part.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config


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


def lora_scale(settings: Settings) -> float:
    """What a LoRA update is multiplied by. rslora: Kalajdzievski 2023, arXiv 2312.03732."""
    rank = settings.lora_rank
    alpha = resolve_alpha(settings.lora_alpha, rank)
    return alpha / (math.sqrt(rank) if settings.lora_scaling == "rslora" else rank)


def head_weights(heads: Sequence[Head]) -> tuple[HeadWeight, ...]:
    """Every parameter of the heads."""
    return tuple(
        HeadWeight(f"{head.prefix}.{name}", tuple(p.shape), decays(f"{head.prefix}.{name}"))
        for head in heads
        for name, p in head.template.named_parameters()
    )
