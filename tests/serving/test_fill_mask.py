"""Fill-mask through a real server, ragged and off: what ``transformers.pipeline`` gives, over gRPC and HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton

from serving.client import TritonPipeline
from serving.errors import RequestError
from serving.options import PackageOptions, ServeOptions
from serving.repository import package
from tests.helpers.digests import assert_digests_are_right
from tests.helpers.filling import exported, masked_checkpoint, text_file
from tests.helpers.parity import assert_same
from tests.helpers.servers import running, serve_options

pytestmark = pytest.mark.server
TEXTS = [
    "[MASK]",
    "the film was [MASK] again , is n't it ?",
    "[MASK] café cafe\u0301 한국어 这部 فيلم 🎬👩\u200d👩 a\u200db",
    "a [MASK] of [MASK] story [MASK]",
    "good [PAD] [MASK] " + "and every scene " * 15,
    "every [MASK]",
]
KINDS = ("ragged", "off")


@pytest.fixture(scope="module")
def masked_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and a bundle of it."""
    folder = tmp_path_factory.mktemp("masked")
    masked_checkpoint(folder / "checkpoint", "bert")
    exported(folder, folder / "checkpoint", text_file(folder / "rows.csv", 70), "--precision", "fp32")
    return folder


@pytest.fixture(scope="module")
def masked_server(masked_folder: Path) -> Iterator[ServeOptions]:
    repository = masked_folder / "model_repository"
    for kind in KINDS:
        way: dict[str, Any] = {"precision": "fp32", "device": "cpu", "batching": kind, "max_batch_size": 8}
        package(PackageOptions(name=kind, bundle=masked_folder / "fill" / "bundle", repository=repository, **way))
    with running(serve_options(repository)) as options:
        yield options


@pytest.fixture(scope="module")
def pipeline(masked_folder: Path) -> Any:
    import torch
    import transformers

    torch.set_num_threads(1)  # the server wants the other core
    return transformers.pipeline("fill-mask", model=str(masked_folder / "checkpoint"), tokenizer=str(masked_folder / "checkpoint"))


def ask(options: ServeOptions, kind: str, inputs: Any, protocol: Any = "grpc", **given: Any) -> Any:
    url = options.grpc_url if protocol == "grpc" else options.base_url.removeprefix("http://")
    with TritonPipeline(kind, url=url, protocol=protocol, batch_size=given.pop("batch_size", 1)) as pipe:
        return pipe(inputs, **given)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("kind", KINDS)
def test_gives_what_the_pipeline_gives(masked_server: ServeOptions, pipeline: Any, kind: str, protocol: str) -> None:
    expected = pipeline(TEXTS)
    assert_same(ask(masked_server, kind, TEXTS, protocol), expected)
    assert_same(ask(masked_server, kind, TEXTS, protocol, batch_size=4), expected)
    assert len({tuple(one["token"] for one in expected[place]) for place in (0, 1, 2, 4)}) > 2  # else it would prove little
    for inputs in (TEXTS[0], TEXTS[:1], TEXTS[3], TEXTS[3:4]):
        for options in ({}, {"top_k": 1}, {"top_k": None}, {"targets": "good"}, {"targets": ["good", "bad", "dreadfully"]}):
            assert_same(ask(masked_server, kind, inputs, protocol, **options), pipeline(inputs, **options))


@pytest.mark.parametrize("kind", KINDS)
def test_requests_of_all_lengths_and_options_at_once(masked_server: ServeOptions, pipeline: Any, kind: str) -> None:
    asked = [(text, {"top_k": 1 + number % 4}) for number, text in enumerate(TEXTS * 10)]
    asked += [(text, {"targets": ["good", "bad"]}) for text in TEXTS * 3]
    expected = [pipeline(text, **options) for text, options in asked]
    with TritonPipeline(kind, url=masked_server.grpc_url) as pipe, ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda one: pipe(one[0], **one[1]), asked))
    assert_same(list(found), list(expected))


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("no mask here", {}, "no mask token"),
        ("", {}, "no mask token"),
        ("word " * 10_000 + "[MASK]", {}, "within the 64 tokens"),
        ("[MASK] " * 17, {}, "at most 16"),
        ("[MASK]", {"targets": [""]}, "no token of the vocabulary"),
    ],
)
def test_bad_input_is_refused_alone(masked_server: ServeOptions, text: str, options: dict[str, Any], message: str) -> None:
    with TritonPipeline("ragged", url=masked_server.grpc_url) as pipe, ThreadPoolExecutor(8) as pool:
        good = [pool.submit(pipe, "every [MASK]", **options | {"targets": None}) for _ in range(8)]
        bad = pool.submit(pipe, text, **options)
        with pytest.raises(RequestError, match=message) as raised:
            bad.result()
        assert raised.value.status == "INVALID_ARGUMENT"
        assert all(len(one.result()) == 5 for one in good)


def test_every_answer_says_whose_it_is(masked_server: ServeOptions) -> None:
    """Texts of one mask, of several, and as long as the model takes."""
    texts = ["good [MASK]", "[MASK]", "[MASK] [MASK] film", "bad [MASK] " + "story " * 200, "한국어 [MASK]"]
    assert_digests_are_right(masked_server, KINDS, [{"TEXT": text} for text in texts])


def test_a_long_document(masked_server: ServeOptions, pipeline: Any) -> None:
    text = "good [MASK] " + "story " * 10_000
    options = {"tokenizer_kwargs": {"truncation": True}}
    assert_same(ask(masked_server, "off", text, **options), pipeline(text, **options))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"top_k": -1}, "0 or more"),
        ({"top_k": "5"}, "whole number"),
        ({"targets": "[1]"}, "JSON list"),
        ({"best": 1}, "no option best"),
    ],
)
def test_options_as_any_client_sends_them(masked_server: ServeOptions, parameters: dict[str, Any], message: str) -> None:
    text = triton.InferInput("TEXT", [1, 1], "BYTES")
    text.set_data_from_numpy(np.array([["a [MASK]"]], dtype=np.object_))
    with triton.InferenceServerClient(masked_server.grpc_url) as client:
        answer = client.infer("ragged", [text], parameters={"targets": "good, bad", "top_k": 2}).as_numpy("PREDICTIONS")
        assert answer.shape == (1, 1)
        with pytest.raises(triton.InferenceServerException, match=message):
            client.infer("ragged", [text], parameters=parameters)
