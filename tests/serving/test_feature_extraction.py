"""A served embedder: a small BERT, ragged and not, against ``transformers.pipeline`` over gRPC and HTTP."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.cli import main
from serving.client import TritonPipeline
from serving.errors import RequestError
from serving.options import PackageOptions, ServeOptions
from serving.repository import package
from tests.helpers.digests import assert_digests_are_right
from tests.helpers.servers import STRANGE_TEXTS, running, serve_options

pytestmark = pytest.mark.server
MAX_LENGTH = 96
NAMES = ("ragged", "alone")


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory, trained_checkpoint: Path, texts: list[str]) -> Iterator[ServeOptions]:
    """Mean of the tokens, not normalised; verified on made-up pairs."""
    folder = tmp_path_factory.mktemp("embedder")
    lines = [f"{one}\t{other}\t{place % 6}.5" for place, (one, other) in enumerate(pairwise(texts[:71]))]
    (folder / "pairs.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *lines]) + "\n", encoding="utf-8")
    arguments = ["--checkpoint", str(trained_checkpoint), "--test", str(folder / "pairs.tsv"), "--max-length", str(MAX_LENGTH)]
    shared = ["--name", "e", "--task", "feature-extraction", "--artifacts", str(folder), "--precision", "fp32"]
    assert main(["export", *shared, *arguments]) == 0
    repository = folder / "model_repository"
    for name in NAMES:
        batching = "ragged" if name == "ragged" else "off"
        package(
            PackageOptions(
                bundle=folder / "e" / "bundle", repository=repository, name=name, device="cpu", batching=batching, max_batch_size=8
            )
        )
    with running(serve_options(repository)) as options:
        yield options


@pytest.fixture(scope="module")
def pooled(trained_checkpoint: Path) -> Callable[[str], Any]:
    """The mean over what the pipeline gives for a text."""
    import transformers

    torch.set_num_threads(1)
    pipe = transformers.pipeline("feature-extraction", model=str(trained_checkpoint), device="cpu")
    return lambda text: np.array(pipe(text, truncation=True, max_length=MAX_LENGTH)[0]).mean(axis=0)


@pytest.fixture(params=["grpc", "http"])
def pipes(request: pytest.FixtureRequest, embedder: ServeOptions) -> Iterator[dict[str, TritonPipeline]]:
    url = embedder.grpc_url if request.param == "grpc" else embedder.base_url.removeprefix("http://")
    opened = {name: TritonPipeline(name, url=url, protocol=request.param) for name in NAMES}
    yield opened
    for pipe in opened.values():
        pipe.close()


@pytest.mark.parametrize("name", NAMES)
def test_pooling_the_pipeline_gives_the_same(
    name: str, pipes: dict[str, TritonPipeline], pooled: Callable[[str], Any], texts: list[str]
) -> None:
    """Texts of every kind and length, all at once: whoever shares a batch with whom."""
    mixed = [*STRANGE_TEXTS, *texts[:40]]
    found = pipes[name](mixed)
    assert isinstance(found, list) and isinstance(found[0], list) and isinstance(found[0][0], float)
    np.testing.assert_allclose(found, np.stack([pooled(text) for text in mixed]), atol=1e-3)


def test_every_answer_says_whose_it_is(embedder: ServeOptions) -> None:
    assert_digests_are_right(embedder, NAMES, [{"TEXT": text} for text in STRANGE_TEXTS[:8]])


def test_forms(pipes: dict[str, TritonPipeline], pooled: Callable[[str], Any]) -> None:
    pipe = pipes["alone"]
    wanted = pooled("a warm film")
    np.testing.assert_allclose(pipe("a warm film"), wanted, atol=1e-3)
    np.testing.assert_allclose(pipe(["a warm film"]), [wanted], atol=1e-3)
    array = pipe(["a warm film", "a"], return_tensors=True)
    assert (type(array), array.shape, array.dtype) == (np.ndarray, (2, 64), np.float32)
    assert pipe("a warm film", return_tensors=True).shape == (64,)
    np.testing.assert_allclose(list(pipe.stream(["a warm film"])), [wanted], atol=1e-3)


def test_options(pipes: dict[str, TritonPipeline], pooled: Callable[[str], Any]) -> None:
    pipe = pipes["ragged"]
    wanted = pooled("a warm film")
    np.testing.assert_allclose(pipe("a warm film", normalize=True), wanted / np.linalg.norm(wanted), atol=1e-3)
    cut = wanted[:16]
    np.testing.assert_allclose(pipe("a warm film", truncate_dim=16), cut, atol=1e-3)
    np.testing.assert_allclose(pipe("a warm film", truncate_dim=16, normalize=True), cut / np.linalg.norm(cut), atol=1e-3)
    np.testing.assert_allclose(pipe("film", prompt="a warm "), wanted, atol=1e-3)
    for wrong in ({"normalize": "yes"}, {"tokenize_kwargs": 1}, {"return_tensors": "tf"}):
        with pytest.raises(TypeError):
            pipe("a warm film", **wrong)
    with pytest.raises(ValueError, match="truncate_dim must be 64 or less"):
        pipe("a warm film", truncate_dim=65)
    np.testing.assert_allclose(pipe("a warm film", tokenize_kwargs={"max_length": 3}), pooled("a"), atol=1e-3)


def test_bad_requests_fail_alone(embedder: ServeOptions, pooled: Callable[[str], Any]) -> None:
    """Good ones sent in the same moment are answered."""
    good = {"inputs": [_text("a warm film")]}
    bad: list[tuple[dict[str, Any], str]] = [
        (good | {"parameters": {"truncate_dim": 65}}, "option truncate_dim must be 64 or less, not 65"),
        (good | {"parameters": {"normalize": "yes"}}, "option normalize must be true or false"),
        (good | {"parameters": {"pooling": "cls"}}, "feature-extraction has no option pooling"),
        ({"inputs": [_text("film " * 500)], "parameters": {"truncation": False}}, "longer than the 96 tokens"),
        ({"inputs": [_text("film", rows=9)]}, "batch"),
    ]
    with ThreadPoolExecutor(10) as pool:
        futures = [pool.submit(_post, embedder, body) for one, _ in bad for body in (one, good)]
        found = [future.result() for future in futures]
    for (status, answer), (_, message) in zip(found[::2], bad, strict=True):
        assert status == 400 and message in answer["error"], answer
        assert "Traceback" not in answer["error"]
    for status, answer in found[1::2]:
        assert status == 200
        np.testing.assert_allclose(_output(answer, "EMBEDDING")["data"], pooled("a warm film"), atol=1e-3)


def test_truncated_answers_keep_their_shape_over_plain_http(embedder: ServeOptions) -> None:
    status, answer = _post(embedder, {"inputs": [_text("a warm film")], "parameters": {"truncate_dim": 16, "normalize": True}})
    assert status == 200
    output = _output(answer, "EMBEDDING")
    assert (output["datatype"], output["shape"]) == ("FP32", [1, 64])
    assert not any(output["data"][16:])
    assert np.linalg.norm(output["data"]) == pytest.approx(1, abs=1e-4)


def test_bytes_that_are_no_text(embedder: ServeOptions) -> None:
    from tritonclient import grpc
    from tritonclient.utils import InferenceServerException

    client = grpc.InferenceServerClient(embedder.grpc_url)
    tensor = grpc.InferInput("TEXT", [2, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[b"film"], [b"\xff"]], dtype=np.object_))
    with pytest.raises(InferenceServerException, match="TEXT, row 1: byte 0 is not valid UTF-8") as error:
        client.infer("alone", [tensor])
    assert "INVALID_ARGUMENT" in str(error.value.status())
    client.close()


def test_too_long_for_a_caller_who_wants_no_cut(pipes: dict[str, TritonPipeline]) -> None:
    with pytest.raises(RequestError, match="truncation is off"):
        pipes["alone"]("film " * 500, truncation=False)


def _output(answer: dict[str, Any], name: str) -> dict[str, Any]:
    (output,) = [output for output in answer["outputs"] if output["name"] == name]
    return output


def _text(text: str, rows: int = 1) -> dict[str, Any]:
    return {"name": "TEXT", "datatype": "BYTES", "shape": [rows, 1], "data": [text] * rows}


def _post(embedder: ServeOptions, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(f"{embedder.base_url}/v2/models/ragged/infer", json.dumps(body).encode())  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
