"""A writer that is no model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from orchestrator.contract import WriterPin
from tests import tiny_models
from trial_worker.augment.prompts import Asked
from trial_worker.engine.writer import Writer


class Scripted(Writer):
    """Says what a script says, and remembers what it was asked."""

    def __init__(self, say: Any, prompt: str = "$text", cache: Path | None = None) -> None:
        pin = WriterPin(model=tiny_models.pin(Path("scripted")), prompt=prompt, max_new_tokens=8)
        super().__init__(pin, torch.device("cpu"), cache)
        self.say = say
        self.asked: list[Asked] = []

    def write(self, asked: Asked) -> str:
        self.asked.append(asked)
        text = str(self.say(asked))
        if self._cache is not None:
            self._cache.mkdir(parents=True, exist_ok=True)
            self._place(asked).write_text(json.dumps({"text": text}))
        return text
