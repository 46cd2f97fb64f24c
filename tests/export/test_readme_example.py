"""The worked example of export/README.md: its two files are a task that the commands below them train, export and serve."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serving.install import triton_environment
from tests.helpers.reviews import review_rows
from tests.helpers.surroundings import free_port

pytestmark = pytest.mark.long

PROJECT = Path(__file__).parents[2]
EXAMPLE = (PROJECT / "export" / "README.md").read_text(encoding="utf-8").partition("### Example: ")[2].partition("\n### ")[0]
FILES = re.findall(r"^```python\n# (\S+\.py)\n(.*?)^```$", EXAMPLE, re.DOTALL | re.MULTILINE)
COMMANDS = re.findall(r"^\$ \.venv/bin/tritonize (.+)$", EXAMPLE, re.MULTILINE)
STAGES = ["finetune", "export", "package", "serve", "predict"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project with the example's two files, and pairs of sentences with scores."""
    for package in ("export", "serving"):
        shutil.copytree(PROJECT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, code in FILES:
        (tmp_path / name).write_text(code, encoding="utf-8")
    draw = random.Random(0)
    texts = [text for text, _ in review_rows(120, seed=1)]
    rows = [f'"{text}","{draw.choice(texts)}",{draw.randint(0, 4) / 4}' for text in texts]
    (tmp_path / "pairs.csv").write_text("\n".join(["sentence1,sentence2,score", *rows]) + "\n", encoding="utf-8")
    return tmp_path


def test_the_example_is_complete() -> None:
    assert [name for name, _ in FILES] == [f"{home}/tasks/sentence_similarity.py" for home in ("serving/runtime", "export")]
    assert [command.split()[0] for command in COMMANDS] == STAGES


@pytest.mark.server
def test_the_example_runs(project: Path, base_checkpoint: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(project), "TRITONIZE_TRITON_ENV": str(triton_environment().absolute())}
    http, grpc, metrics = free_port(), free_port(), free_port()
    more = {
        "serve": ["--http-port", str(http), "--grpc-port", str(grpc), "--metrics-port", str(metrics)],
        "predict": ["--url", f"127.0.0.1:{grpc}"],
    }

    def tritonize(words: list[str]) -> str:
        command = [sys.executable, "-m", "export.cli", *words, *more.get(words[0], ())]
        run = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        return run.stdout

    try:
        for command in COMMANDS:
            shown = tritonize([str(base_checkpoint) if word == "quickstart:minilm" else word for word in shlex.split(command)])
    finally:
        if command.startswith("predict"):  # it is running
            tritonize(["stop", "--http-port", str(http)])
    answer = json.loads(shown)
    assert set(answer) == {"score"} and 0 <= answer["score"] <= 1
