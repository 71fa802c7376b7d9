"""What the README says is executed, line by line, on studies cut down to seconds."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import urllib.request
from pathlib import Path

import pytest

from tests.acceptance import light
from tests.acceptance.commands import FOLDTUNE, ROOT, wait_until

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```console\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [line.removeprefix("$ ").split("#")[0].strip() for block in BLOCKS for line in block.splitlines()]
FOLDTUNE_COMMANDS = [command for command in COMMANDS if command.startswith("foldtune")]
MAKE_COMMANDS = [command for command in COMMANDS if command.startswith("make")]
SMALLER = {
    r"folds: \d+": "folds: 2",
    r"epochs: \{.*\}": "epochs: [1]",
    r"epochs: \d+": "epochs: 1",
    r"learning_rate: .*": "learning_rate: [5e-3]",
    r"batch_size: .*": "batch_size: [16]",
    r"lora_rank: .*": "lora_rank: [4]",
    r"label: label\}": "label: label, limit: 40}",
    r"budget: \{trials: \d+": "budget: {trials: 1",
}


def test_the_readme_has_commands_and_they_are_of_known_kinds() -> None:
    assert len(FOLDTUNE_COMMANDS) >= 12
    assert set(COMMANDS) == set(FOLDTUNE_COMMANDS) | set(MAKE_COMMANDS)


@pytest.mark.parametrize("command", MAKE_COMMANDS)
def test_a_make_command_of_the_readme_exists(command: str) -> None:
    done = subprocess.run([*shlex.split(command), "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.package_model
def test_the_commands_of_the_readme_work_in_their_order(
    tmp_path: Path, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the embedded Postgres, in a folder of their own; `postgres` only keeps root's servers out of /var/lib."""
    shutil.copytree(ROOT / "studies", tmp_path / "studies")
    for path in (tmp_path / "studies").glob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        for pattern, smaller in SMALLER.items():
            text = re.sub(rf"(?m)^(\s*[^#\n]*?){pattern}", rf"\g<1>{smaller}", text)
        path.write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    try:
        for command in FOLDTUNE_COMMANDS:
            _execute(shlex.split(command)[1:])
    finally:
        subprocess.run([*FOLDTUNE, "db", "stop"], check=False)


def _execute(arguments: list[str]) -> None:
    if arguments[0] == "dashboard":
        _look_at_dashboard(arguments)
        return
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if arguments[0] == "worker":  # `run` has shown what training is; starting torch again takes longer than all else
        environment |= light.LIGHT
    done = subprocess.run(
        [*FOLDTUNE, *arguments], capture_output=True, text=True, check=False, timeout=300, env=environment
    )
    assert done.returncode == 0, f"{arguments}: {done.stderr}"
    assert "Traceback" not in done.stderr
    if "--json" in arguments:
        json.loads(done.stdout)


def _look_at_dashboard(arguments: list[str]) -> None:
    dashboard = subprocess.Popen([*FOLDTUNE, *arguments], stderr=subprocess.PIPE, text=True)

    def answers() -> bool:
        try:
            with urllib.request.urlopen("http://127.0.0.1:8080/dashboard", timeout=5) as page:
                return b"<html" in page.read().lower()
        except OSError:
            return False

    try:
        wait_until(answers, seconds=30)
    finally:
        dashboard.send_signal(signal.SIGINT)
        dashboard.communicate(timeout=10)


def test_every_file_of_the_readmes_tree_exists() -> None:
    [tree] = re.findall(r"## The house\n\n```text\n(.*?)```", README, flags=re.DOTALL)
    folder = ""
    for line in tree.splitlines():
        names = re.split(r"\s{2,}", line.strip())[0].split()
        if not line.startswith(" "):
            folder = names[0]
        for name in names:
            assert (ROOT / (name if name == folder else folder + name)).exists(), f"{folder} {name}"


def test_every_link_of_the_documents_leads_somewhere() -> None:
    for document in [
        ROOT / "README.md",
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        ROOT / "studies/README.md",
    ]:
        text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name}: {target}"
