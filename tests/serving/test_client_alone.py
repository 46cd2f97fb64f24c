"""The client works without the toolchain: with the distribution's own dependencies and no extra."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.helpers.servers import Server

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BLOCKED = """
import json, sys
blocked = set(json.loads(sys.argv[1]))
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Finder())
"""
IMPORT_NAMES = {"scikit-learn": "sklearn", "rouge-score": "rouge_score", "huggingface-hub": "huggingface_hub"}
OF_THE_CLIENT = {"numpy", "grpc", "aiohttp", "tritonclient"}


def toolchain() -> set[str]:
    """Names under which the packages of the extra ``toolchain`` are imported."""
    names = PROJECT["optional-dependencies"]["toolchain"]
    return {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in names} - {"protobuf", "typing_extensions"} | {"onnxruntime"}


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a process in which the toolchain cannot be imported."""
    return subprocess.run(
        [sys.executable, "-c", BLOCKED + script, json.dumps(sorted(toolchain())), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_toolchain_is_known() -> None:
    assert {"torch", "transformers", "click", "rich", "pydantic", "sklearn", "tokenizers"} <= toolchain()
    assert not toolchain() & OF_THE_CLIENT
    assert PROJECT["dependencies"] == ["numpy", "tritonclient[grpc,http]"]
    assert PROJECT["optional-dependencies"]["client"] == []


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_client_asks_a_server(protocol: str, server: Server, texts: list[str], packaged: object) -> None:
    script = """
from serving import TritonPipeline
with TritonPipeline("ragged", url=sys.argv[2], protocol=sys.argv[3]) as pipe:
    several = list(pipe(text for text in ["Dull.", "A delight."]))
    print(json.dumps([pipe("A warm film.", top_k=2), several, pipe.model.config.id2label]))
assert "torch" not in sys.modules
"""
    done = run(script, server.url(protocol), protocol)
    assert done.returncode == 0, done.stderr
    one, several, labels = json.loads(done.stdout)
    assert [answer["label"] for answer in one] and len(several) == 2 and len(labels) == 2


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("from serving import package", "serving.package"),
        ("from export import finetune", "export.finetune"),
        ("from benchmarks import benchmark", "benchmarks.benchmark"),
    ],
)
def test_a_stage_says_what_to_install(statement: str, what: str) -> None:
    done = run(statement)
    last = done.stderr.splitlines()[-1]
    assert re.fullmatch(rf"ImportError: {what} needs \w+, which is not installed: install .*tritonize\[cpu\]", last), done.stderr


def test_the_command_says_what_to_install() -> None:
    done = run("sys.argv = ['tritonize', '--help']\nfrom export.entry import main\nsys.exit(main())")
    assert done.returncode == 1 and done.stdout == ""
    assert re.fullmatch(r"error: the command tritonize needs click, which is not installed: .*tritonize\[cpu\]\n", done.stderr)
