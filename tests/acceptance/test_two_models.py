"""A search over two models of two families: real processes, real tiny models, one worker."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

from sqlalchemy import Engine

from orchestrator.launch import launch
from tests import tiny_models
from tests.acceptance.commands import foldtune, wait_until
from tests.acceptance.light import count, table, worker
from tests.database import studies
from tests.database.studies import rows

STUDY = """
study: {name}
model: [./bert, {{path: ./roberta, precision: float32}}]
task: classification
data: {{path: rows.jsonl}}
cross_validation: {{folds: 2}}
baselines: [majority, features]
training: {{max_length: 16, epochs: {epochs}}}
search:
  sampler: grid
  space:
    learning_rate: [1e-2]
    lora_rank: {{choices: [4, 8], when: {{model: ./bert}}}}
racing: {{rule: none}}
"""
ENGINE = "trial_worker.engine"
UNITS = 2 * (2 + 1 + 1 + 2)  # points of either model, the default configuration, baselines; two folds


def launched(engine: Engine, folder: Path, name: str, epochs: int) -> None:
    tiny_models.save_bert(folder / "bert")
    tiny_models.save_roberta(folder / "roberta")
    lines = (json.dumps(row) + "\n" for row in tiny_models.classification_rows(24))
    (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    path = folder / f"{name}.yaml"
    path.write_text(STUDY.format(name=name, epochs=epochs), encoding="utf-8")
    launch(engine, studies.prepared(path))


def opened(talk: str) -> list[str]:
    """The models that were loaded, in their order."""
    return re.findall(r"model (\S+) is open", talk)


def test_each_model_is_loaded_once_and_a_kill_in_between_changes_no_number(
    engine: Engine, storage: str, tmp_path: Path
) -> None:
    launched(engine, tmp_path, "whole", epochs=3)
    launched(engine, tmp_path, "killed", epochs=3)
    done = "unit u JOIN study s ON s.id = u.study WHERE s.name = 'killed' AND u.state = 'done'"
    with worker(storage, "killed", FOLDTUNE_ENGINE=ENGINE) as process:
        wait_until(lambda: count(engine, done) > 4, seconds=120)
        os.kill(process.pid, signal.SIGKILL)
    with worker(storage, "whole", "killed", FOLDTUNE_ENGINE=ENGINE) as process:
        assert process.end(seconds=200) == 0, process.talk
        loads = opened(process.talk)
    assert loads[:2] == ["./bert", "./roberta"]  # of the older study, which comes first
    assert sorted(loads[2:]) in (["./bert", "./roberta"], ["./roberta"])
    assert count(engine, "unit WHERE state = 'done'") == 2 * UNITS
    unbroken = table(engine, "whole")
    assert len(unbroken) == 6
    assert table(engine, "killed") == unbroken  # bit for bit, from the same seeds

    best = json.loads(foldtune("best", "whole", "--json", OPTUNA_STORAGE=storage).stdout)
    assert best["params"]["model"] in ("./bert", "./roberta")
    assert ("lora_rank" in best["params"]) == (best["params"]["model"] == "./bert")
    [(first,)] = rows(
        engine,
        "SELECT params->>'model' FROM trial t JOIN study s ON s.id = t.study WHERE is_default AND s.name = 'whole'",
    )
    assert first == "./bert"
