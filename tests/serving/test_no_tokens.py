"""A text without a token: a tokenizer like GPT-2's adds none to an empty text, and no model has an answer to nothing."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import transformers

from export.cli import main
from serving.background import start_detached, stop
from serving.client import TritonPipeline
from serving.errors import RequestError
from serving.options import PackageOptions, ServeOptions
from serving.repository import package
from serving.runtime.tasks import load_served
from serving.runtime.tokenization import TextEncoder
from tests.helpers.checkpoints import randomize
from tests.helpers.generating import gpt2
from tests.helpers.parity import assert_same
from tests.helpers.reviews import LABELS, review_rows
from tests.helpers.servers import serve_options

pytestmark = pytest.mark.long

AUTO = {"text-classification": "AutoModelForSequenceClassification", "token-classification": "AutoModelForTokenClassification"}
NO_TOKENS = "row {} has no tokens, so the model cannot answer it: its tokenizer makes none of an empty text"


def checkpoint(folder: Path, task: str) -> Path:
    """A random GPT-2 with a head."""
    tokenizer, config = gpt2()
    tokenizer.pad_token, config.pad_token_id = tokenizer.eos_token, 0
    config.id2label, config.label2id = dict(enumerate(LABELS)), {label: index for index, label in enumerate(LABELS)}
    model = getattr(transformers, AUTO[task]).from_config(config)
    randomize(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def export(folder: Path, task: str, rows: list[dict[str, Any]]) -> int:
    file = folder / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    places = ["--name", task, "--task", task, "--artifacts", str(folder), "--checkpoint", str(folder / task), "--test", str(file)]
    return main(["export", *places, "--precision", "fp32", "--max-metric-drop", "100"])


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints and bundles of both tasks."""
    folder = tmp_path_factory.mktemp("gpt2")
    reviews = review_rows(20, seed=5)
    rows = {
        "text-classification": [{"text": text, "label": label} for text, label in reviews],
        "token-classification": [{"tokens": text.split(), "ner": [label] * len(text.split())} for text, label in reviews],
    }
    for task in AUTO:
        checkpoint(folder / task, task)
        assert export(folder, task, rows[task]) == 0
    return folder


@pytest.fixture(scope="module")
def options(artifacts: Path) -> Iterator[ServeOptions]:
    """A server of both."""
    options = serve_options(artifacts / "model_repository")
    for task in AUTO:
        bundle = artifacts / task / "bundle"
        package(PackageOptions(bundle=bundle, repository=options.repository, name=task, device="cpu", batching="ragged"))
    start_detached(options)
    yield options
    stop(options.http_port)


@pytest.mark.server
@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("task", list(AUTO))
def test_a_row_without_tokens_is_refused_alone(task: str, protocol: str, artifacts: Path, options: ServeOptions) -> None:
    url = options.grpc_url if protocol == "grpc" else options.base_url.removeprefix("http://")
    texts = [*(text for text, _ in review_rows(20, seed=6)), " ", "a"]
    theirs = transformers.pipeline(task, str(artifacts / task), device="cpu")
    expected = [theirs(text) for text in texts]
    with TritonPipeline(task, url=url, protocol=protocol) as pipe, ThreadPoolExecutor(8) as pool:

        def ask(text: str) -> Any:
            try:
                return pipe(text)
            except RequestError as error:
                return error

        answers = list(pool.map(ask, [text for pair in zip(texts, [""] * len(texts), strict=True) for text in pair]))
        assert_same(answers[::2], [[one] if isinstance(one, dict) else one for one in expected])
    for refused in answers[1::2]:
        assert (refused.status, refused.message) == ("INVALID_ARGUMENT", f"in ensemble '{task}', {NO_TOKENS.format(0)}")


@pytest.mark.server
def test_the_row_of_a_request_is_named(options: ServeOptions) -> None:
    body = {"inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [4, 1], "data": ["good", "bad", "", "dull"]}]}
    url = f"{options.base_url}/v2/models/text-classification/infer"
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()))  # noqa: S310 - our own server
    assert caught.value.code == 400
    assert NO_TOKENS.format(2) in json.loads(caught.value.read())["error"]


def test_rows_to_verify_on_must_have_tokens(artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text-classification").symlink_to(artifacts / "text-classification")
    rows = [{"text": text, "label": label} for text, label in [*review_rows(20, seed=5), ("", "negative")]]
    assert export(tmp_path, "text-classification", rows) == 1
    said = "error: a row has no tokens: its text is empty (leave out rows with empty texts for this model)"
    assert capsys.readouterr().err.splitlines()[-1] == said


SCORES = {"labels": ["a", "b"], "function_to_apply": "softmax"}


@pytest.mark.parametrize(
    ("task", "settings", "columns"),
    [
        ("text-classification", SCORES, [["good", ""]]),
        ("text-classification", {**SCORES, "pair": True}, [["", ""], ["good", ""]]),
        ("token-classification", {"labels": ["a", "b"]}, [["good", ""]]),
        ("feature-extraction", {"dims": 4}, [["good", ""]]),
        ("multiple-choice", {}, [["", ""], ['["a", "good"]', '["a", ""]']]),
        ("question-answering", {}, [["good", ""], ["", ""]]),
        ("zero-shot-classification", {"entailment": 0, "contradiction": 1}, [["", ""], ['["a"]', '["b", ""]']]),
    ],
)
def test_no_task_passes_a_row_without_tokens_on(task: str, settings: dict[str, Any], columns: list[list[str]]) -> None:
    """A row needs one token only: of a pair, one text may be empty."""
    served = load_served(task, settings)
    if task == "zero-shot-classification":
        served = served.with_options({"hypothesis_template": "{}"})
    encoder = TextEncoder(gpt2()[0].backend_tokenizer, max_length=48, names=["input_ids"], padding={})
    assert len(served.preprocess([column[:1] for column in columns], encoder).encodings) >= 1
    with pytest.raises(ValueError, match=NO_TOKENS.format(1)):
        served.preprocess(columns, encoder)
