"""What the fields of `Settings` allow: names, aliases, types and bounds (pure)."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.contract import Settings

FIELDS: Mapping[str, dataclasses.Field[Any]] = {field.name: field for field in dataclasses.fields(Settings)}
ALIASES: Mapping[str, str] = {alias: name for name, field in FIELDS.items() for alias in field.metadata["aliases"]}
TYPES: Mapping[str, Any] = typing.get_type_hints(Settings)

MODEL = "model"  # the name of the model itself, where a study has several to choose from; its values are their paths

# Names that Hugging Face users bring for what is a property of the frozen model here -> the help for them.
OF_THE_MODEL: Mapping[str, str] = {
    **dict.fromkeys(
        ("precision", "bf16", "bf16_full_eval", "dtype", "torch_dtype", "mixed_precision", "bnb_4bit_compute_dtype"),
        "write `model: {precision: bfloat16}`, or float32",
    ),
    **dict.fromkeys(("fp16", "float16"), "float16 is not supported: write `model: {precision: bfloat16}`"),
    **dict.fromkeys(
        ("gradient_checkpointing", "use_gradient_checkpointing", "activation_checkpointing"),
        "write `model: {gradient_checkpointing: true}`",
    ),
    **dict.fromkeys(
        ("quantization", "quantization_config", "load_in_4bit", "bnb_4bit_quant_type", "qlora"),
        "write `model: {quantization: nf4}`",
    ),
    MODEL: "write `model: [ONE, OTHER]` at the top of the file",
    "load_in_8bit": "8 bits are not supported: write `model: {quantization: nf4}`",
}

# Names of Hugging Face and PEFT for what is said in another way here -> the help for them.
SAID_OTHERWISE: Mapping[str, str] = {
    **OF_THE_MODEL,
    "use_dora": "write `method: dora`",
    "use_rslora": "write `lora_scaling: rslora`",
}

MODULE_RULES = ("all-linear", "auto")
_RANK_RULE = re.compile(r"(\d+(?:\.\d+)?)?r")


def canonical_name(name: str, *, model: bool = False) -> str | None:
    """The field behind a name or alias; None if there is none. model: the model is a name too."""
    return name if name in FIELDS or (model and name == MODEL) else ALIASES.get(name)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A help line for an unknown name; lists what there is when nothing is near."""
    if name in SAID_OTHERWISE:
        return SAID_OTHERWISE[name]
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean '{near[0]}'?" if near else "known keys: " + ", ".join(sorted(known))


def check(name: str, value: Any) -> tuple[Any, str | None]:
    """(value in the field's type, None), or (value, what must hold and what was got)."""
    if name == MODEL:
        return value, None if isinstance(value, str) else f"'model' must be a model's path — got {show(value)}"
    kind = TYPES[name]
    if name == "lora_alpha":
        return _alpha(value)
    if name == "target_modules":
        return _modules(value)
    if kind is str:
        choices = FIELDS[name].metadata["choices"]
        if value in choices and isinstance(value, str):
            return value, None
        return value, f"'{name}' must be one of {', '.join(choices)} — got {show(value)}"
    return _number(name, value, whole=kind is int)


def json_schema(name: str) -> dict[str, Any]:
    """JSON Schema of one hyperparameter's value."""
    metadata = FIELDS[name].metadata
    bounds = {"minimum": metadata["low"], "exclusiveMinimum": metadata["above"], "maximum": metadata["high"]}
    number = {key: value for key, value in bounds.items() if value is not None}
    kinds: dict[str, dict[str, Any]] = {
        "lora_alpha": {
            "anyOf": [{"type": "number", **number}, {"type": "string", "pattern": f"^{_RANK_RULE.pattern}$"}]
        },
        "target_modules": {"anyOf": [{"enum": list(MODULE_RULES)}, {"type": "array", "items": {"type": "string"}}]},
    }
    plain = {int: {"type": "integer", **number}, float: {"type": "number", **number}}.get(TYPES[name])
    kind = kinds.get(name) or plain or {"enum": list(metadata["choices"])}
    return {**kind, "description": metadata["doc"], "default": FIELDS[name].default}


def resolve_alpha(alpha: float | str, rank: int) -> float:
    """LoRA's alpha as a number: "2r" is twice the rank."""
    if not isinstance(alpha, str):
        return float(alpha)
    rule = _RANK_RULE.fullmatch(alpha)
    if rule is None:
        raise ValueError(f"lora_alpha must be a number or a multiple of the rank such as 2r, got {alpha!r}")
    return float(rule.group(1) or 1) * rank


def show(value: Any) -> str:
    """A value as the user wrote it, short enough for a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _number(name: str, value: Any, *, whole: bool) -> tuple[Any, str | None]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value, f"'{name}' must be {'a whole number' if whole else 'a number'} — got {show(value)}"
    if not math.isfinite(value):
        return value, f"'{name}' must be {_bounds(name)} — got {value}"
    if whole:
        if value != int(value):
            return value, f"'{name}' must be a whole number — got {show(value)}"
        value = int(value)
    else:
        value = float(value)
    if not _within(name, value):
        return value, f"'{name}' must be {_bounds(name)} — got {show(value)}"
    return value, None


def _within(name: str, value: float) -> bool:
    metadata = FIELDS[name].metadata
    low, above, high = metadata["low"], metadata["above"], metadata["high"]
    return not (
        (low is not None and value < low)
        or (above is not None and value <= above)
        or (high is not None and value > high)
    )


def _bounds(name: str) -> str:
    metadata = FIELDS[name].metadata
    lower = f"above {metadata['above']:g}" if metadata["above"] is not None else f"at least {metadata['low']:g}"
    return f"{lower} and at most {metadata['high']:g}"


def _alpha(value: Any) -> tuple[Any, str | None]:
    if isinstance(value, str):
        highest = FIELDS["lora_alpha"].metadata["high"]
        if _RANK_RULE.fullmatch(value) and 0 < resolve_alpha(value, 1) <= highest:
            return value, None
        return (
            value,
            f"'lora_alpha' must be a number or a multiple of the rank such as 2r — got {show(value)}",
        )
    return _number("lora_alpha", value, whole=False)


def _modules(value: Any) -> tuple[Any, str | None]:
    if isinstance(value, str) and value in MODULE_RULES:
        return value, None
    if isinstance(value, list | tuple) and value and all(isinstance(item, str) and item for item in value):
        return tuple(value), None
    rule = "'target_modules' must be all-linear, auto, or a list of layer names"
    return value, f"{rule} — got {show(value)}"
