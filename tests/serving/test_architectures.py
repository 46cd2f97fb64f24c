"""Every architecture with every task it can do: a tiny checkpoint exported, packaged, served, and held against the original.

Some of the pairs, in which each architecture and each task occurs, run always; ``pytest -m matrix`` runs the others.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from export import graph
from export.cli import main
from export.convert import require_supported
from export.tasks import task_class, task_names
from export.tasks._encoder import ExportedEncoderTask
from serving.bundle import load_bundle
from serving.client import TritonPipeline
from serving.encoder_models import write_encoder_models
from serving.errors import ExportError
from serving.options import PackageOptions, ServeOptions
from serving.plan import make_plan
from serving.repository import package
from serving.runtime.metadata import METADATA
from tests.helpers import answering
from tests.helpers.checkpoints import ARCHITECTURES
from tests.helpers.graphs import MAX_LENGTH, random_checkpoint
from tests.helpers.parity import assert_same
from tests.helpers.reviews import LABELS, review_rows
from tests.helpers.servers import STRANGE_TEXTS, running, serve_options
from tests.helpers.triton_steps import Request, backend, initialized

NLI = {"id2label": {0: "contradiction", 1: "entailment"}, "label2id": {"contradiction": 0, "entailment": 1}}
CANDIDATES = ["good", "a dull story", "한국어"]
TEXTS = [*(text for text in STRANGE_TEXTS if text.strip()), *(text for text, _ in review_rows(12, seed=11))]
TASKS = tuple(name for name in task_names() if issubclass(task_class(name), ExportedEncoderTask))
COVERING = {
    ("albert", "question-answering"),
    ("bert", "multiple-choice"),
    ("camembert", "token-classification"),
    ("deberta-v2", "zero-shot-classification"),
    ("distilbert", "fill-mask"),
    ("electra", "text-classification"),
    ("modernbert", "token-classification"),
    ("mpnet", "question-answering"),
    ("roberta", "fill-mask"),
    ("xlm-roberta", "feature-extraction"),
}
TWICE = {("mpnet", "question-answering"), ("modernbert", "token-classification"), ("roberta", "fill-mask")}
"""Pairs whose task another pair of :data:`COVERING` has too."""
PAIRS = [
    pytest.param(architecture, task, marks=() if (architecture, task) in COVERING else pytest.mark.matrix)
    for architecture in ARCHITECTURES
    for task in TASKS
]

pytestmark = [
    pytest.mark.server,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # the pipelines' own
    pytest.mark.filterwarnings("ignore:Passing a list of SQuAD examples:FutureWarning"),
    pytest.mark.long,
]


def labelled_rows(task: str) -> list[dict[str, Any]]:
    """Rows that a bundle of the task is verified on."""
    reviews = review_rows(20, seed=12)
    choose = random.Random(13)
    match task:
        case "question-answering":
            return answering.rows(20, seed=12)
        case "token-classification":
            return [{"tokens": text.split(), "ner": [choose.choice(LABELS) for _ in text.split()]} for text, _ in reviews]
        case "feature-extraction":
            return [{"sentence1": text, "sentence2": label, "score": choose.random()} for text, label in reviews]
        case "multiple-choice":
            return [{"text": text, "choices": [*LABELS], "label": label} for text, label in reviews]
        case "fill-mask":
            return [{"text": text} for text, _ in reviews]
        case _:
            return [{"text": text, "label": label} for text, label in reviews]


@dataclass(frozen=True, kw_only=True)
class Served:
    """A server of one or more models, each packaged under its architecture and task."""

    options: ServeOptions
    artifacts: Path
    checkpoints: dict[tuple[str, str], Path]

    def ask(self, architecture: str, task: str, question: Callable[[TritonPipeline], Any]) -> Any:
        """What one of the ensembles answers."""
        with TritonPipeline(f"{architecture}_{task}", url=self.options.grpc_url) as pipe:
            assert pipe.task == task
            return question(pipe)


@contextlib.contextmanager
def serving(folder: Path, pairs: Collection[tuple[str, str]]) -> Iterator[Served]:
    """One server of random checkpoints of all these pairs of architecture and task."""
    served = Served(options=serve_options(folder / "model_repository"), artifacts=folder / "artifacts", checkpoints={})
    for architecture, task in pairs:
        name = f"{architecture}_{task}"
        more = NLI if task == "zero-shot-classification" else {}
        checkpoint = random_checkpoint(folder / "checkpoints" / name, architecture, task_class(task), **more)
        rows = folder / f"{name}.jsonl"
        rows.write_text("\n".join(map(json.dumps, labelled_rows(task))), encoding="utf-8")
        given = ["--checkpoint", checkpoint, "--test", rows, "--task", task, "--max-length", MAX_LENGTH]
        arguments = ["--name", name, "--artifacts", served.artifacts, *given, "--precision", "fp32", "--max-metric-drop", 100]
        assert main(["export", *map(str, arguments)]) == 0
        bundle, repository = served.artifacts / name / "bundle", served.options.repository
        package(PackageOptions(name=name, repository=repository, bundle=bundle, precision="fp32", device="cpu", batching="ragged"))
        served.checkpoints[architecture, task] = checkpoint
    with running(served.options):
        yield served


@pytest.fixture(scope="module")
def covering(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The server of the pairs that always run."""
    with serving(tmp_path_factory.mktemp("covering"), sorted(COVERING)) as served:
        yield served


@pytest.fixture
def served(request: pytest.FixtureRequest, tmp_path: Path, architecture: str, task: str) -> Iterator[Served]:
    """A server of this pair."""
    if reason := why_not(architecture, task):
        pytest.skip(reason)
    if (architecture, task) in COVERING:
        yield request.getfixturevalue("covering")
    else:
        with serving(tmp_path, [(architecture, task)]) as alone:
            yield alone


def encoded(checkpoint: Path, texts: list[str], others: list[str] | None = None) -> dict[str, torch.Tensor]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    found = tokenizer(texts, others, truncation=True, max_length=MAX_LENGTH, padding=True, return_tensors="pt")
    return dict(found)


def embeddings(checkpoint: Path) -> Any:
    """The mean of each text's tokens."""
    feed = encoded(checkpoint, TEXTS)
    with torch.inference_mode():
        hidden = transformers.AutoModel.from_pretrained(checkpoint).eval()(**feed).last_hidden_state
    mask = feed["attention_mask"][:, :, None]
    return ((hidden * mask).sum(dim=1) / mask.sum(dim=1)).tolist()


def choices(checkpoint: Path) -> Any:
    """Of each text's choices the scores, and the best."""
    model = transformers.AutoModelForMultipleChoice.from_pretrained(checkpoint).eval()
    answers = []
    for text in TEXTS:
        feed = encoded(checkpoint, [text] * len(CANDIDATES), CANDIDATES)
        with torch.inference_mode():
            scores = model(**{name: values[None] for name, values in feed.items()}).logits.softmax(-1)[0].tolist()
        answers.append({"choice": int(np.argmax(scores)), "score": max(scores), "scores": scores})
    return answers


def pipeline(task: str, checkpoint: Path) -> Any:
    found = transformers.pipeline(task, model=str(checkpoint), tokenizer=str(checkpoint), device="cpu")
    found.tokenizer.model_max_length = MAX_LENGTH
    return found


def compare(served: Served, architecture: str, task: str) -> None:
    """What is served, with what the original says."""
    rows: Any = TEXTS
    checkpoint = served.checkpoints[architecture, task]
    if task == "feature-extraction":
        assert_same(served.ask(architecture, task, lambda pipe: pipe(rows)), embeddings(checkpoint))
        return
    if task == "multiple-choice":
        rows = [{"text": text, "choices": CANDIDATES} for text in TEXTS]
        assert_same(served.ask(architecture, task, lambda pipe: pipe(rows)), choices(checkpoint))
        return
    options: dict[str, Any] = {}
    original = pipeline(task, checkpoint)
    match task:
        case "zero-shot-classification":
            options = {"candidate_labels": CANDIDATES}
        case "question-answering":
            # but for the longest, which are more windows of 64 tokens than the model takes at once
            rows = [{"question": answering.QUESTION, "context": text} for text in TEXTS if len(text) < 10_000]
        case "token-classification":
            options = {"aggregation_strategy": "simple"}
        case "fill-mask":
            mask = original.tokenizer.mask_token
            rows = [f"{mask} {text}" for text in TEXTS]
    found = served.ask(architecture, task, lambda pipe: pipe(rows, **options))
    cut = {"fill-mask": {"tokenizer_kwargs": {"truncation": True}}, "text-classification": {"truncation": True}}
    asked = {"question-answering": {"max_seq_len": MAX_LENGTH, "doc_stride": 32}}
    if task in asked:
        assert_same(found, original(rows, **asked[task]))
    else:
        assert_same(found, original(rows, **options, **cut.get(task, {})))


def why_not(architecture: str, task: str) -> str:
    """Why nobody can have such a model, or nobody can export it; empty: it can be served."""
    kind = task_class(task)
    config = transformers.AutoConfig.for_model(architecture)
    if type(config) not in getattr(transformers, kind.auto_model)._model_mapping:
        return f"transformers has no {kind.auto_model} of {architecture}"
    try:
        require_supported(config.to_dict(), kind)
    except ExportError as error:
        return error.message
    return ""


@pytest.mark.parametrize(("architecture", "task"), PAIRS)
def test_a_served_model_answers_as_the_original(served: Served, architecture: str, task: str) -> None:
    compare(served, architecture, task)


@pytest.mark.parametrize(
    "task", [task if task == "question-answering" else pytest.param(task, marks=pytest.mark.matrix) for task in TASKS]
)
def test_every_task_is_benchmarked(covering: Served, tmp_path: Path, task: str) -> None:
    """Speed and quality of all there is to compare: PyTorch, the pipeline where there is one, ONNX Runtime, the server."""
    pair = next(pair for pair in sorted(COVERING) if pair[1] == task)
    options = covering.options
    ports = ["--http-port", options.http_port, "--grpc-port", options.grpc_port, "--metrics-port", options.metrics_port]
    where = ["--artifacts", covering.artifacts, "--repository", options.repository, "--checkpoint", covering.checkpoints[pair]]
    short = ["--rows", 20, "--duration", 0.4, "--rounds", 1, "--concurrency", 2, "--precision", "fp32", "--batch", 1]
    short += ["--length", 16, "--rate", "none", "--protocol", "grpc", "--no-exported", "--output", tmp_path / "report"]
    assert main(["benchmark", "_".join(pair), *map(str, [*ports, *where, *short])]) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    figures = report["figures"]
    assert figures["onnx.fp32.agreement"] == figures["served.fp32.agreement"] == 1
    assert figures["served.fp32.c2.throughput"] > 0
    assert (figures.get("pipeline.fp32.agreement") == 1) == task_class(task).has_pipeline


def test_the_pairs_that_always_run_cover_all() -> None:
    assert [why_not(architecture, task) for architecture, task in COVERING] == [""] * len(COVERING)
    assert {architecture for architecture, _ in COVERING} == set(ARCHITECTURES)
    assert {task for _, task in COVERING} == set(TASKS)


def triton_rows(task: str, checkpoint: Path) -> list[dict[str, str]]:
    """Rows of a task by input tensor."""
    match task:
        case "fill-mask":
            mask = transformers.AutoTokenizer.from_pretrained(checkpoint).mask_token
            return [{"TEXT": f"{mask} {text}"} for text in TEXTS]
        case "question-answering":
            return [{"QUESTION": answering.QUESTION, "CONTEXT": text} for text in TEXTS if len(text) < 10_000]
        case "zero-shot-classification":
            return [{"TEXT": text, "CANDIDATE_LABELS": json.dumps(CANDIDATES)} for text in TEXTS]
        case "multiple-choice":
            return [{"TEXT": text, "CHOICES": json.dumps(CANDIDATES)} for text in TEXTS]
        case _:
            return [{"TEXT": text} for text in TEXTS]


@pytest.mark.parametrize(("architecture", "task"), [pair for pair in sorted(COVERING) if pair not in TWICE])
def test_the_fused_layout_gives_the_bytes_of_the_ensemble(
    covering: Served, architecture: str, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps as they are packaged, called in this process."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", backend())
    bundle = load_bundle(covering.artifacts / f"{architecture}_{task}" / "bundle")
    found = []
    for layout in ("ensemble", "fused"):
        plan = make_plan(
            bundle, precision="fp32", device="cpu", batching="off", instances=1, threads=1, max_batch_size=8, layout=layout
        )
        folder = tmp_path / layout
        folder.mkdir()
        write_encoder_models(folder, bundle, plan, "x")
        found.append(answers(folder, layout, triton_rows(task, covering.checkpoints[architecture, task])))
    for one, other in zip(*found, strict=True):
        assert (one.error and one.error.message) == (other.error and other.error.message)
        assert one.tensors.keys() == other.tensors.keys()
        assert all(np.array_equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
    assert sum(response.error is None for response in found[0]) > len(found[0]) // 2


def answers(folder: Path, layout: str, rows: list[dict[str, str]]) -> list[Any]:
    """The responses of a packaged model to requests of one row each."""
    requests = [Request({name: np.array([[text.encode()]], np.object_) for name, text in row.items()}) for row in rows]
    config = json.dumps({"parameters": {"intra_op_thread_count": {"string_value": "1"}}, "instance_group": [{"count": 1}]})
    if layout == "fused":
        return list(initialized("fused", folder / "x", config).execute(requests))
    before, after = (initialized(step, folder / f"x_{step}") for step in ("preprocess", "postprocess"))
    session = graph.session(folder / "x_model" / "1" / "model.onnx")
    names = [node.name for node in session.get_outputs()]
    responses = []
    for request in requests:
        (response,) = before.execute([request])
        if response.error is None:
            around = {name: response.tensors.pop(name) for name in (METADATA,) if name in response.tensors}
            outputs = dict(zip(names, session.run(names, response.tensors), strict=True))
            (response,) = after.execute([Request(outputs | around)])
        responses.append(response)
    return responses
