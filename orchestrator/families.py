"""Which models can do a task, by what their config.json says of them (pure).

Only what is certain is refused here: a worker asks the model itself when it has loaded it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ENCODERS = {"albert", "bert", "camembert", "convbert", "data2vec-text", "deberta", "deberta-v2", "distilbert"}
ENCODERS |= {"electra", "ernie", "esm", "eurobert", "flaubert", "fnet", "funnel", "ibert", "layoutlm", "longformer"}
ENCODERS |= {"luke", "megatron-bert", "mobilebert", "modernbert", "mpnet", "nomic_bert", "nystromformer", "rembert"}
ENCODERS |= {"roberta", "roberta-prelayernorm", "roformer", "squeezebert", "xlm-roberta", "xlm-roberta-xl", "xmod"}
TWO_HALVES = {"bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "encoder-decoder", "fsmt", "led", "longt5"}
TWO_HALVES |= {"m2m_100", "marian", "mbart", "mt5", "nllb-moe", "pegasus", "pegasus_x", "plbart", "prophetnet"}
TWO_HALVES |= {"switch_transformers", "t5", "t5gemma", "umt5"}

WRITERS = ("paraphraser", "back_translator", "generator")  # what augmentation has a model for

Config = Mapping[str, Any]


def problem(wanted: str, config: Config) -> str:
    """Why a model of this configuration cannot do a task; empty where it can, or where that is not told.

    wanted: a task, or one of `WRITERS`.
    """
    names = config.get("architectures")
    if not isinstance(names, list) or not names:
        return ""
    kind = _kind(config, [str(name) for name in names])
    if kind == "encoder" and wanted in ("causal_lm", *WRITERS):
        return _refused(wanted, "a model that writes, such as GPT-2 or Llama", "an encoder", names)
    if kind == "encoder-decoder" and wanted in ("causal_lm", "generator"):
        return _refused(wanted, "a decoder, such as GPT-2 or Llama", "an encoder-decoder", names)
    if kind == "encoder-decoder" and wanted == "question_answering":
        return _refused(wanted, "a model that reads both ways, such as BERT", "an encoder-decoder", names)
    if kind != "encoder-decoder" and wanted in ("seq2seq", "seq2seq_classification"):
        got = "an encoder" if kind == "encoder" else "no encoder-decoder"
        return _refused(wanted, "an encoder-decoder, such as T5", got, names)
    return ""


def help_for(wanted: str, config: Config) -> str:
    """What to do about it."""
    halves = _kind(config, []) == "encoder-decoder"
    return "use task seq2seq, or another model" if wanted == "causal_lm" and halves else "name another model"


def _kind(config: Config, names: list[str]) -> str:
    kind = config.get("model_type")
    if config.get("is_encoder_decoder") is True or kind in TWO_HALVES:
        return "encoder-decoder"
    encodes = kind in ENCODERS or any(name.endswith("ForMaskedLM") for name in names)
    return "encoder" if encodes and config.get("is_decoder") is not True else "decoder"


def _refused(wanted: str, needed: str, got: str, names: list[Any]) -> str:
    role = f"a {wanted}" if wanted in WRITERS else f"task {wanted}"
    return f"{role} needs {needed} — got {got}, {', '.join(map(str, names[:3]))}"
