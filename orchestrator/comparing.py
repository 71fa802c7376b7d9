"""Which models may stand in one study: those whose objective is over the same items."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from orchestrator import forms, models
from orchestrator.contract import ModelPin, canonical
from orchestrator.errors import USAGE, FoldtuneError
from orchestrator.spec import ModelSource, StudySpec

FILES: tuple[str, ...] = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "tokenizer.model")
FILES += ("special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
CONFIG = "tokenizer_config.json"
NO_MATTER = ("name_or_path", "model_max_length", "transformers_version", "processor_class")  # of that file


def problem(spec: StudySpec, folder: Path, pins: Sequence[ModelPin] = ()) -> str:
    """Why the study's models cannot be compared; empty: they can be, or it takes a model of the hub to tell.

    pins: of all models; their tokenizers are fetched then. Raises FoldtuneError: the hub does not answer.
    """
    if spec.models is None or spec.task in forms.STRATIFIED:
        return ""
    each: Sequence[ModelPin | None] = pins or [None] * len(spec.models)
    known = [_folder(source, folder, pin) for source, pin in zip(spec.models, each, strict=True)]
    told = {tokenizer_digest(where) for where in known if where is not None}
    if len(told) < 2:
        return ""
    return (
        f"task {spec.task} is scored in nats of tokens, which are others for each tokenizer, and these models have "
        f"different ones; models with one tokenizer can be compared, and any for {', '.join(forms.STRATIFIED)}"
    )


def tokenizer_digest(folder: Path) -> str:
    """sha256 over the files that decide how a text becomes tokens, hexadecimal."""
    total = hashlib.sha256()
    for name in FILES:
        if (folder / name).is_file():
            total.update(f"{name}\n".encode() + (folder / name).read_bytes())
    config = models.json_object(folder / CONFIG)
    total.update(canonical({key: value for key, value in config.items() if key not in NO_MATTER}).encode())
    return total.hexdigest()


def _folder(source: ModelSource, folder: Path, pin: ModelPin | None) -> Path | None:
    if models.origin(source.path, folder) != "hub":
        return models.local_folder(source.path, folder)
    if pin is None:
        return None
    import huggingface_hub
    from huggingface_hub import errors

    wanted = [*FILES, CONFIG]
    try:
        return Path(huggingface_hub.snapshot_download(source.path, revision=pin.pin, allow_patterns=wanted))
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError) as error:
        what = next(iter(str(error).splitlines()), type(error).__name__)
        raise FoldtuneError(f"the tokenizer of {source.path!r} cannot be fetched: {what}", code=USAGE) from None
