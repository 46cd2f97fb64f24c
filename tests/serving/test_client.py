"""``TritonPipeline`` against ``transformers.pipeline`` on the same checkpoint, through a real server."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from typing import Any

import pytest

from serving.client import AsyncTritonPipeline, TritonPipeline
from serving.errors import RequestError

from .conftest import STRANGE_TEXTS, Server, free_port

pytestmark = pytest.mark.server
TOLERANCE = 1e-3


def assert_same(ours: Any, theirs: Any) -> None:
    """Same structure, keys, labels and order; scores within the tolerance of the contract."""
    if isinstance(theirs, list):
        assert isinstance(ours, list) and len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    else:
        assert ours.keys() == theirs.keys()
        assert ours["label"] == theirs["label"]
        assert ours["score"] == pytest.approx(theirs["score"], abs=TOLERANCE)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("name", ["ragged", "alone"])
def test_equals_the_pipeline_on_every_text(server: Server, expected: Any, texts: list[str], name: str, protocol: str) -> None:
    with TritonPipeline(name, url=server.url(protocol), protocol=protocol) as pipe:
        assert_same(pipe(texts), expected)
    assert len({answer["label"] for answer in expected}) == 2  # a model that always says the same would prove little


@pytest.mark.parametrize(
    "inputs", ["one text", ["one text"], ["two", "texts here"], {"text": "a dict"}, [{"text": "a"}, {"text": "b c"}], []]
)
@pytest.mark.parametrize("options", [{}, {"top_k": 1}, {"top_k": 2}, {"top_k": None}, {"top_k": 5}])
def test_gives_the_same_structure(server: Server, pipeline: Any, inputs: Any, options: dict[str, Any]) -> None:
    with TritonPipeline("ragged", url=server.url("grpc")) as pipe:
        assert_same(pipe(inputs, **options), pipeline(inputs, **options))


def test_strange_texts(server: Server, pipeline: Any) -> None:
    with TritonPipeline("ragged", url=server.url("grpc")) as pipe:
        assert_same(pipe(STRANGE_TEXTS), pipeline(STRANGE_TEXTS))


def test_pairs(server: Server, pipeline: Any, texts: list[str]) -> None:
    rows = [{"text": one, "text_pair": other} for one, other in zip(texts[:100], reversed(texts[:100]), strict=True)]
    with TritonPipeline("pairs", url=server.url("grpc"), batch_size=5) as pipe:
        assert_same(pipe(rows), pipeline(rows))
        with pytest.raises(TypeError, match="text_pair"):
            pipe("one text only")


def test_batches_larger_than_the_server_takes_are_split(server: Server, pipeline: Any, texts: list[str]) -> None:
    rows = [{"text": text, "text_pair": "again"} for text in texts[:30]]
    with TritonPipeline("pairs", url=server.url("http"), protocol="http", batch_size=1000) as pipe:  # its max_batch_size is 8
        assert_same(pipe(rows), pipeline(rows))


def test_async(server: Server, pipeline: Any, texts: list[str]) -> None:
    async def ask() -> list[Any]:
        async with AsyncTritonPipeline("ragged", url=server.url("grpc")) as pipe:
            return list(await asyncio.gather(*(pipe(text) for text in texts[:20])))

    assert_same(asyncio.run(ask()), [pipeline(text) for text in texts[:20]])


def test_stream_reads_no_further_than_it_must(server: Server) -> None:
    read = 0

    def rows() -> Any:
        nonlocal read
        for read in range(1, 10_001):
            yield f"text number {read}"

    with TritonPipeline("ragged", url=server.url("grpc"), concurrency=4) as pipe:
        answers = pipe.stream(rows())
        assert next(answers)["label"] in {"negative", "positive"}
        answers.close()
    assert read <= 8


def test_usable_from_many_threads(server: Server, pipeline: Any, texts: list[str]) -> None:
    answers: dict[int, Any] = {}
    with TritonPipeline("ragged", url=server.url("grpc")) as pipe:
        threads = [
            threading.Thread(target=lambda index=index: answers.__setitem__(index, pipe(texts[index]))) for index in range(16)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert_same([answers[index] for index in range(16)], [pipeline(texts[index]) for index in range(16)])


@pytest.mark.parametrize("inputs", [3, None, ["fine", 4], {"words": "x"}, {"text": "a", "text_pair": "b"}, {"text": 1}])
def test_inputs_of_another_form_are_refused_before_anything_is_sent(server: Server, inputs: Any) -> None:
    with TritonPipeline("ragged", url=server.url("grpc")) as pipe, pytest.raises(TypeError, match="each row must be"):
        pipe(inputs)


@pytest.mark.parametrize("options", [{"top_k": "all"}, {"top_k": 0}, {"top_k": -1}, {"temperature": 1}])
def test_unknown_and_ill_typed_options_are_refused(server: Server, options: dict[str, Any]) -> None:
    with TritonPipeline("ragged", url=server.url("grpc")) as pipe, pytest.raises(TypeError, match="top_k"):
        pipe("text", **options)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_unknown_ensemble(server: Server, protocol: str) -> None:
    with (
        TritonPipeline("nobody", url=server.url(protocol), protocol=protocol) as pipe,
        pytest.raises(RequestError, match="nobody") as caught,
    ):
        pipe("text")
    assert caught.value.status == "NOT_FOUND"


def test_a_step_is_not_an_ensemble(server: Server) -> None:
    with TritonPipeline("ragged_model", url=server.url("grpc")) as pipe, pytest.raises(RequestError, match="not an ensemble"):
        pipe("text")


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_no_server(protocol: str) -> None:
    with TritonPipeline("x", url=f"127.0.0.1:{free_port()}", protocol=protocol, retries=1) as pipe:
        started = time.monotonic()
        with pytest.raises(RequestError) as caught:
            pipe("text")
    assert caught.value.status == "UNAVAILABLE"
    assert "tritonize serve" in caught.value.hint
    assert time.monotonic() - started >= 0.1  # it did try again


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_deadline(protocol: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection and never answers
        url = f"127.0.0.1:{silent.getsockname()[1]}"
        with TritonPipeline("x", url=url, protocol=protocol, timeout=0.5) as pipe, pytest.raises(RequestError) as caught:
            pipe("text")
    assert caught.value.status == "DEADLINE_EXCEEDED"
