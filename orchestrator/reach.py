"""How many tokens a model can read at once, from its JSON files: what a worker will find when it has loaded it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator import models
from orchestrator.contract import ModelPin
from orchestrator.spec import ModelSource, StudySpec

# Model types whose configuration has another name for it; T5's `n_positions` is none, its positions have no end.
NAMES: Mapping[str, str] = {
    **dict.fromkeys(("codegen", "ctrl", "gpt-sw3", "gpt2", "gpt_bigcode", "gptj", "openai-gpt"), "n_positions"),
    "dbrx": "max_seq_len",
}
# Those that count positions from behind the pad id: their table reaches less far than it is long.
BEHIND_PAD = {"camembert", "data2vec-text", "esm", "lilt", "longformer", "luke", "mpnet", "roberta"}
BEHIND_PAD |= {"roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"}
PAD = 1  # where the configuration does not say
ENDLESS = 1_000_000_000  # tokenizers without a limit write 1e30


def cautions(spec: StudySpec, source: ModelSource, folder: Path, pin: ModelPin | None = None) -> list[str]:
    """What a `max_length` beyond the model leads to; only the tokenizer knows whether a row is that long.

    source: one of the study's models. pin: of a model of the hub, whose files are not looked for without it.
    """
    length = int(spec.training["max_length"])
    where = models.files(source, folder, pin)
    reach = None if where is None else tokens(where)
    if reach is None or length <= reach:
        return []
    return [
        f"max_length must be at most {reach} for {source.path!r} if any row is longer than that, got {length}: "
        f"one such row fails every unit; write `training: {{max_length: {reach}}}` to have rows cut there"
    ]


def tokens(folder: Path) -> int | None:
    """The reach of a model's positions, or of its tokenizer where that is less; None where the files do not say."""
    config = models.json_object(folder / "config.json")
    inner = config.get("text_config")
    told = (_positions(inner if isinstance(inner, dict) else config), _most(folder / "tokenizer_config.json"))
    return min((reach for reach in told if reach is not None), default=None)


def _positions(config: Mapping[str, Any]) -> int | None:
    kind = str(config.get("model_type"))
    reach = _count(config.get(NAMES.get(kind, "max_position_embeddings")))
    if reach is None or kind not in BEHIND_PAD:
        return reach
    pad = config.get("pad_token_id", PAD)
    return reach - (pad if isinstance(pad, int) else PAD) - 1


def _most(file: Path) -> int | None:
    return _count(models.json_object(file).get("model_max_length"))


def _count(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and 0 < value < ENDLESS else None
