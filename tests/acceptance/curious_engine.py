"""An engine that looks for secrets in its environment, and tells their names."""

import os
from typing import Any


def prepare() -> str:
    return "cpu"


def open_study(study: Any, device: Any) -> None:
    raise ValueError(f"it sees {sorted(name for name, value in os.environ.items() if 'hunter2' in value)}")
