"""A frozen base in 4 bits: NF4 with quantized constants, as QLoRA (Dettmers et al. 2023, arXiv 2305.14314)."""

from __future__ import annotations

from typing import Any

import torch
from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel
from transformers.utils.import_utils import is_bitsandbytes_available

from orchestrator.contract import ModelPin
from trial_worker.engine.errors import UnusableModel


def refuse_unless_possible(pin: ModelPin) -> None:
    """Ask before anything is downloaded or read.

    Raises:
        UnusableModel: bitsandbytes is not installed, or too old for transformers.
    """
    if not is_bitsandbytes_available():
        raise UnusableModel(
            f"model.quantization: {pin.quantization} needs bitsandbytes on every worker, and there is none here that "
            "transformers can use: pip install 'foldtune[quantized]'"
        )


def options(family: Any, config: PretrainedConfig, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` must be told besides. family: an auto class. dtype: of what is computed.

    Raises:
        UnusableModel: the checkpoint is quantized already.
    """
    if getattr(config, "quantization_config", None) is not None:
        raise UnusableModel(
            "model.quantization: nf4 needs a checkpoint in full precision, and this one is quantized already: "
            "name the model that it was made from, or write none"
        )
    quantization = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=_kept(family, config),
    )
    return {"quantization_config": quantization, "device_map": {"": device}}


def _kept(family: Any, config: PretrainedConfig) -> list[str]:
    """Modules that stay as they are: heads and poolers, of which every unit trains its own copy from a fresh start."""
    with torch.device("meta"):
        model = family.from_config(config)
    parts = dict(model.named_children())
    if model.base_model_prefix in parts:
        heads = [name for name in parts if name != model.base_model_prefix]
    else:  # T5 has its two halves beside its head
        heads = [name for name, part in parts.items() if part is model.get_output_embeddings()]
    return heads + [name for name, _ in model.named_modules() if name.rpartition(".")[2] == "pooler"]


def settle(model: PreTrainedModel) -> None:
    """Make sure that layers are quantized, and stay as they are. Call before the model's first use.

    Raises:
        UnusableModel: not a single layer is.
    """
    from bitsandbytes.nn import Linear4bit

    layers = [part for part in model.modules() if isinstance(part, Linear4bit)]
    if not layers:
        raise UnusableModel(f"model.quantization: {type(model).__name__} has no layers that nf4 applies to: write none")
    for layer in layers:
        # On a CPU with AVX512-BF16 bitsandbytes repacks a layer when it is first used without a gradient, for good and
        # with rounded scales: nothing could be trained through it any more, and numbers would depend on the CPU.
        layer.support_avx512bf16_for_cpu = False
