"""Launching is idempotent, and a name means one study."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import optuna
import pytest
from sqlalchemy import Engine

from orchestrator import control, models, projection, reading, snapshots, study
from orchestrator import launch as launching
from orchestrator.errors import FoldtuneError
from tests.database import studies


def test_launch_writes_study_snapshot_plan_default_and_every_grid_point(engine: Engine, tmp_path: Path) -> None:
    assert studies.launched(engine, tmp_path).created
    assert studies.rows(engine, "SELECT name, state::text, trials_total FROM study") == [("s", "open", 4)]
    assert studies.rows(engine, "SELECT rows FROM snapshot") == [(12,)]
    assert studies.rows(engine, "SELECT origin, count(*) FROM trial GROUP BY origin ORDER BY 1") == [
        ("default", 1),
        ("grid", 4),
    ]
    assert studies.rows(engine, "SELECT count(*), count(DISTINCT (trial, fold)) FROM unit") == [(10, 10)]


def test_launching_the_same_file_again_says_so_and_changes_nothing(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path)
    before = studies.rows(engine, "SELECT id, state FROM trial ORDER BY id")
    again = studies.launched(engine, tmp_path)
    assert not again.created
    assert "launched before" in again.messages[0]
    assert studies.rows(engine, "SELECT id, state FROM trial ORDER BY id") == before


def test_another_file_under_the_same_name_is_refused_with_the_differing_keys(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path)
    with pytest.raises(
        FoldtuneError, match=r"cross_validation\.folds: 2 -> 3.*search\.sampler: \"grid\" -> \"random\""
    ):
        studies.launched(engine, tmp_path, folds=3, sampler="random")


def test_changed_data_is_refused_with_both_hashes(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path)
    path = studies.write(tmp_path)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(rows.read_text() + '{"text": "one more", "label": "a"}\n')
    with pytest.raises(FoldtuneError, match=r"data: was [0-9a-f]{12}, is [0-9a-f]{12}"):
        launching.launch(engine, studies.prepared(path))


def test_changed_weights_are_refused(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path)
    path = studies.write(tmp_path)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(FoldtuneError, match="model: was"):
        launching.launch(engine, studies.prepared(path))


def test_a_raised_budget_is_no_other_study_and_points_to_resume(engine: Engine, tmp_path: Path) -> None:
    studies.launched(engine, tmp_path, sampler="random", rates=studies.RANGE, budget="{trials: 3}")
    again = studies.launched(engine, tmp_path, sampler="random", rates=studies.RANGE, budget="{trials: 5}")
    assert "foldtune resume s --trials 5" in again.messages[1]
    assert studies.rows(engine, "SELECT trials_total FROM study") == [(3,)]


def test_a_crash_before_optuna_hears_of_it_is_completed_by_the_next_launch(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(projection, "project", crash)
        with pytest.raises(KeyboardInterrupt):
            studies.launched(engine, tmp_path)
    assert not study.exists(engine.url, "s")
    studies.launched(engine, tmp_path)
    assert study.exists(engine.url, "s")


def test_a_crash_inside_the_transaction_leaves_nothing(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(launching, "_plan_trials", crash)
    with pytest.raises(KeyboardInterrupt):
        studies.launched(engine, tmp_path)
    for table in ("study", "snapshot", "trial", "unit"):
        assert studies.rows(engine, f"SELECT count(*) FROM {table}") == [(0,)]


def test_eight_launches_at_once_make_one_study(engine: Engine, tmp_path: Path) -> None:
    ready = studies.prepared(studies.write(tmp_path))
    created: list[bool] = []
    threads = [
        threading.Thread(target=lambda: created.append(launching.launch(engine, ready).created)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(created) == [False] * 7 + [True]
    assert studies.rows(engine, "SELECT count(*) FROM trial") == [(5,)]


def test_an_optuna_study_of_somebody_else_is_never_taken_over(engine: Engine, tmp_path: Path) -> None:
    optuna.create_study(storage=study.storage(engine.url), study_name="s")
    with pytest.raises(FoldtuneError, match="foldtune did not make"):
        studies.launched(engine, tmp_path)


def test_grid_points_that_are_one_configuration_are_trained_once(engine: Engine, tmp_path: Path) -> None:
    """At rank 16, the default, an alpha of 2r is an alpha of 32; and what `pooling: auto` means is known at launch."""
    path = studies.write(tmp_path)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("    batch_size: [4, 8]", "    lora_alpha: [2r, 32]\n    pooling: [auto, first]"))
    launching.launch(engine, studies.prepared(path))
    assert studies.rows(engine, "SELECT count(*), count(duplicate_of) FROM trial WHERE searched") == [(8, 6)]
    assert len(studies.train_all(engine, studies.worker(engine), "s")) == (2 + 1) * 2
    assert studies.rows(engine, "SELECT state::text, count(*) FROM trial GROUP BY 1") == [("complete", 9)]
    assert studies.rows(engine, "SELECT DISTINCT settings->>'pooling', settings->>'lora_alpha' FROM trial") == [
        ("first", "32.0")
    ]


MADE = """
augmentation: {paraphraser: {path: ./writer}, generator: {path: ./writer, prompt: "$label: $examples"}}
training: {paraphrases: 1, synthetic: 2, pseudo_rounds: 1, max_length: 16}
"""


def with_augmentation(folder: Path, prompt: str = "$label: $examples", pool: str = "nobody knows") -> Path:
    """A study with a pool and models that write."""
    path = studies.write(folder, more=MADE.replace("$label: $examples", prompt))
    path.write_text(path.read_text().replace("data: {path: rows.jsonl}", "data: {path: rows.jsonl, pool: pool.jsonl}"))
    (folder / "pool.jsonl").write_text(json.dumps({"text": pool, "page": 3}) + "\n")
    shutil.copytree(folder / "model", folder / "writer", dirs_exist_ok=True)
    return path


def test_a_pool_and_writers_are_pinned_fetched_and_deleted_with_their_study(engine: Engine, tmp_path: Path) -> None:
    path = with_augmentation(tmp_path)
    assert launching.launch(engine, studies.prepared(path)).created
    record = reading.view(engine, "s").record
    assert record.writers["generator"].prompt == "$label: $examples"
    assert record.writers["paraphraser"].prompt.endswith("$text")
    assert record.writers["paraphraser"].model.pin == models.content_hash(tmp_path / "writer")
    assert "back_translator" not in record.writers
    cache = tmp_path / "cache"
    fetched = snapshots.fetch(engine, record, cache)
    assert record.pool is not None
    assert snapshots.place(cache, record.pool).read_text() == '{"text":"nobody knows"}\n'
    assert fetched == snapshots.place(cache, record.snapshot)
    assert studies.rows(engine, "SELECT count(*) FROM snapshot") == [(2,)]
    assert not launching.launch(engine, studies.prepared(path)).created
    control.delete(engine, "s")
    assert studies.rows(engine, "SELECT count(*) FROM snapshot") == [(0,)]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pool": "somebody does"}, r"data\.pool: its rows are others"),
        ({"prompt": "$label! $examples"}, r"augmentation: its models are others"),
    ],
)
def test_another_pool_or_writer_is_another_study(
    changed: dict[str, str], message: str, engine: Engine, tmp_path: Path
) -> None:
    launching.launch(engine, studies.prepared(with_augmentation(tmp_path)))
    with pytest.raises(FoldtuneError, match=message):
        launching.launch(engine, studies.prepared(with_augmentation(tmp_path, **changed)))


def test_a_pool_that_two_studies_share_stays_until_both_are_gone(engine: Engine, tmp_path: Path) -> None:
    path = with_augmentation(tmp_path)
    launching.launch(engine, studies.prepared(path))
    path.write_text(path.read_text().replace("study: s", "study: other"))
    launching.launch(engine, studies.prepared(path))
    control.delete(engine, "s")
    assert studies.rows(engine, "SELECT count(*) FROM snapshot") == [(2,)]
    control.delete(engine, "other")
    assert studies.rows(engine, "SELECT count(*) FROM snapshot") == [(0,)]
