"""A server with a small model that generates text, and the pipeline of transformers with the same checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from export.generation_defaults import generation_defaults
from serving.client import TritonPipeline
from serving.runtime.generation.engine import Engine
from serving.runtime.tasks.text_generation import TextGeneration
from tests.helpers.engine_requests import CHUNK, Make
from tests.helpers.generation_server import GenerationServer, generation_server, write_model
from tests.helpers.remembering_graph import RememberingGraph
from tests.helpers.shared import STORIES
from tests.helpers.text_generation import package_for_vllm

TEMPLATE = (
    "{% for message in messages %}{{ bos_token if loop.first }}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}<p></p>{% endif %}{% if mood is string %}{{ mood }}{% endif %}"
)
"""Chat template of the copy that has one. As that of Qwen3, it reads a variable of the request."""
LIMITS = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_length": 40,
    "min_new_tokens": 12,
    "do_sample": False,
    "no_repeat_ngram_size": 2,
    "bad_words_ids": [[403], [261, 376]],
    "suppress_tokens": [426],
    "forced_eos_token_id": 13,
}
"""``generation_config.json`` of the copy whose defaults are not those of ``transformers``."""
CAPACITY = 320
SLOW = """

import time
from pathlib import Path

from .generation.beam_search import BeamSearch
from .generation.sampling import Sampling


def _slow(advance):
    def slowly(self, *given):
        with Path({steps!r}).open("a") as steps:
            steps.write(".")
        time.sleep(0.02)
        return advance(self, *given)

    return slowly


for decoding in (Sampling, BeamSearch):
    decoding.advance = _slow(decoding.advance)
"""
"""Appended to the code of the model ``slow``: each token takes 20 ms, and is counted in a file."""


@dataclass(frozen=True, kw_only=True)
class Generating:
    """The server and the checkpoints of its models: ``stories``, ``chat`` with a chat template, ``limited`` and ``slow``.

    Attributes:
        server: The running server.
        steps: File with one byte for each token of ``slow``.
        checkpoints: Their folders by the names of the models.
        pipelines: Pipelines of transformers by the names of the models.
    """

    server: GenerationServer
    steps: Path
    checkpoints: dict[str, Path]
    pipelines: dict[str, Any]

    def url(self, protocol: str) -> str:
        return self.server.grpc if protocol == "grpc" else self.server.http

    def client(self, protocol: str, name: str = "stories", **options: Any) -> TritonPipeline:
        return TritonPipeline(name, url=self.url(protocol), protocol=protocol, **options)


@pytest.fixture(scope="session")
def generating(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Generating]:
    """The server, which also has ``lily``, a package for vLLM. Everything is made once."""
    from transformers import AutoModelForCausalLM, pipeline

    from export.generation.decoder_graph import export_decoder

    if not STORIES.exists():
        pytest.skip(f"needs {STORIES}")
    folder = tmp_path_factory.mktemp("generating")
    chat = folder / "chat-checkpoint"
    shutil.copytree(STORIES, chat)
    chat.chmod(0o755)
    (chat / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    limited = folder / "limited-checkpoint"
    shutil.copytree(STORIES, limited)
    limited.chmod(0o755)
    for name, found in (
        ("config.json", json.loads((STORIES / "config.json").read_text(encoding="utf-8")) | {"prefix": "Tom said: "}),
        ("generation_config.json", LIMITS),
    ):
        (limited / name).unlink(missing_ok=True)
        (limited / name).write_text(json.dumps(found), encoding="utf-8")
    checkpoints = {"stories": STORIES, "chat": chat, "limited": limited}
    pipelines = {name: pipeline("text-generation", model=str(path), device=-1) for name, path in checkpoints.items()}
    graph = folder / "model.onnx"
    export_decoder(AutoModelForCausalLM.from_pretrained(STORIES).eval(), graph)
    repository = folder / "repository"
    for name, path in checkpoints.items():
        _write(repository, name, graph, path, pipelines[name])
    steps = folder / "steps"
    _write(repository, "slow", graph, STORIES, pipelines["stories"])
    with (repository / "slow" / "1" / "model.py").open("a", encoding="utf-8") as code:
        code.write(SLOW.format(steps=str(steps)))
    package_for_vllm(folder / "lily", repository)
    with generation_server(repository, folder / "server") as server:
        yield Generating(server=server, steps=steps, checkpoints=checkpoints, pipelines=pipelines)


def _write(repository: Path, name: str, graph: Path, checkpoint: Path, pipe: Any) -> None:
    found = generation_defaults(
        "text-generation", pipe.model.generation_config, pipe.model.config.to_dict(), pad_token_id=pipe.tokenizer.pad_token_id
    )
    template = checkpoint / "chat_template.jinja"
    task = TextGeneration(
        generation=found.generation,
        model_generation=found.model_generation,
        vocab_size=pipe.model.config.vocab_size,
        prefix=found.prefix,
        bos_token_id=found.bos_token_id,
        pad_token_id=found.pad_token_id,
        special_tokens=pipe.tokenizer.special_tokens_map,
        model_max_length=pipe.tokenizer.model_max_length,
        chat=template.exists(),
    )
    settings = {
        "engine": {"slots": 4, "capacity": CAPACITY},
        "settings": task.to_settings(),
        "split_special_tokens": False,
    }
    text = template.read_text(encoding="utf-8") if task.chat else None
    write_model(repository, name, graph=graph, checkpoint=checkpoint, settings=settings, template=text)
    described = {"config": pipe.model.config.to_dict(), "tokenizer": {"model_max_length": CAPACITY}, "device": "cpu"}
    parameters = {"task": task.name, "settings": json.dumps(task.to_settings()), "description": json.dumps(described, default=str)}
    with (repository / name / "config.pbtxt").open("a", encoding="utf-8") as config:
        for key, value in parameters.items():
            config.write(f'parameters {{ key: "{key}" value {{ string_value: {json.dumps(value)} }} }}\n')


@pytest.fixture
def failures() -> list[BaseException]:
    """What an engine could not go on for."""
    return []


@pytest.fixture
def make(failures: list[BaseException]) -> Iterator[Make]:
    """Makes an engine and its graph."""
    made: list[Engine] = []

    def build(*, slots: int = 5, max_waiting: int = 1000) -> tuple[Engine, RememberingGraph]:
        graph = RememberingGraph(slots=slots)
        made.append(Engine(graph, chunk=CHUNK, max_waiting=max_waiting, on_failure=failures.append))
        return made[-1], graph

    yield build
    for engine in made:
        if engine._thread.ident is not None:
            engine.close()
