"""Text in pieces: all of them are the text that a call returns, and who stops reading ends the generation."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from typing import Any

import pytest

from serving.client import AsyncTritonPipeline, TritonPipeline
from serving.errors import InvalidArgumentError, RequestError
from serving.generation_request import LATE_SECONDS
from tests.serving.generation.conftest import Generating
from tests.serving.generation.test_client import CHAT, PREFILL, TEXTS

LONG: dict[str, Any] = {"do_sample": False, "max_new_tokens": 300, "eos_token_id": []}
SHORT: dict[str, Any] = {"do_sample": False, "max_new_tokens": 40}


@pytest.fixture(scope="module", params=["grpc", "http"])
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def pipe(generating: Generating, protocol: str) -> Iterator[TritonPipeline]:
    with generating.client(protocol, "chat") as pipe:
        yield pipe


def tokens(generating: Generating) -> int:
    """Number of tokens that the slow model has generated."""
    return generating.steps.stat().st_size


def further_tokens(generating: Generating) -> int:
    """Number of tokens that the slow model generates from now on, though nobody should read them."""
    before = tokens(generating)
    time.sleep(0.5)
    return tokens(generating) - before


@pytest.mark.parametrize("inputs", [*TEXTS, CHAT, PREFILL], ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"clean_up_tokenization_spaces": False}, {"stop_strings": [" and"], "stop_sequence": "was"}], ids=str
)
def test_pieces_are_the_text_of_a_call(pipe: TritonPipeline, inputs: Any, options: dict[str, Any]) -> None:
    pieces = list(pipe.stream_text(inputs, **SHORT, **options))
    (answer,) = pipe(inputs, return_full_text=False, **SHORT, **options)
    assert "".join(pieces) == answer["generated_text"]
    assert all(pieces)
    assert len(pieces) > 1 or len(answer["generated_text"]) < 20  # pieces that wait together come as one


def test_pieces_come_while_the_server_generates(generating: Generating, protocol: str) -> None:
    with generating.client(protocol, "slow") as pipe:
        began = time.perf_counter()
        times = [time.perf_counter() - began for _ in pipe.stream_text("Once", **LONG | {"max_new_tokens": 40})]
    assert len(times) > 20
    assert times[0] < 0.5 * times[-1]


def test_closing_ends_the_generation(generating: Generating, protocol: str) -> None:
    with generating.client(protocol, "slow") as pipe:
        stream = pipe.stream_text("Once upon a time", **LONG)
        assert next(stream)
        stream.close()
        assert further_tokens(generating) <= 3
        assert "".join(pipe.stream_text("Once", do_sample=False, max_new_tokens=3)), "the client goes on"


def test_closing_the_client_ends_the_generation(generating: Generating, protocol: str) -> None:
    with generating.client(protocol, "slow") as pipe:
        assert next(pipe.stream_text("Once upon a time", **LONG))
    assert further_tokens(generating) <= 3


def test_a_cancelled_call_ends_the_generation(generating: Generating, protocol: str) -> None:
    async def run() -> None:
        async with AsyncTritonPipeline("slow", url=generating.url(protocol), protocol=protocol) as pipe:  # type: ignore[arg-type]
            before = tokens(generating)
            call = asyncio.ensure_future(pipe(["Once upon a time"] * 3, **LONG))
            while tokens(generating) < before + 9:
                await asyncio.sleep(0.01)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call

    asyncio.run(run())
    assert further_tokens(generating) <= 9, "three for each of three texts"


def test_the_time_limit_of_a_call_ends_the_generation(generating: Generating, protocol: str) -> None:
    with generating.client(protocol, "slow", timeout=0.5) as pipe, pytest.raises(RequestError) as late:
        pipe("Once upon a time", **LONG)
    assert late.value.status == "DEADLINE_EXCEEDED"
    assert further_tokens(generating) <= 3


@pytest.mark.parametrize(
    "options", [{"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}, {"return_tensors": True}], ids=str
)
@pytest.mark.long
def test_an_answer_without_pieces_ends_soon_after_its_time_limit(
    generating: Generating, protocol: str, options: dict[str, Any]
) -> None:
    with generating.client(protocol, "slow", timeout=0.5) as pipe, pytest.raises(RequestError) as late:
        pipe("Once upon a time", **LONG | options)
    assert late.value.status == "DEADLINE_EXCEEDED"
    left = tokens(generating)
    time.sleep(LATE_SECONDS + 0.3 if protocol == "http" else 0.1)
    assert tokens(generating) - left < 70, "the whole answer has 300"
    assert further_tokens(generating) == 0


def test_a_call_without_a_time_limit_is_answered(generating: Generating, protocol: str) -> None:
    with generating.client(protocol, "slow", timeout=math.inf) as pipe:
        assert pipe("Once", num_beams=2, **SHORT | {"max_new_tokens": 3})


def test_asynchronous_streams_run_at_the_same_time(generating: Generating, protocol: str) -> None:
    async def run() -> tuple[list[str], list[str]]:
        async with AsyncTritonPipeline("chat", url=generating.url(protocol), protocol=protocol, concurrency=4) as pipe:  # type: ignore[arg-type]

            async def read(text: str) -> str:
                return "".join([piece async for piece in pipe.stream_text(text, **SHORT)])

            streamed = await asyncio.gather(*map(read, TEXTS))
            called = await pipe(TEXTS, return_full_text=False, **SHORT)
            return streamed, [answer["generated_text"] for (answer,) in called]

    streamed, called = asyncio.run(run())
    assert streamed == called


@pytest.mark.parametrize(
    ("inputs", "options", "error"),
    [
        (["a", "b"], {}, TypeError),
        ([CHAT, CHAT], {}, TypeError),
        (None, {}, TypeError),
        ("a", {"top_k": "many"}, ValueError),
        ("a", {"num_beams": 2}, InvalidArgumentError),
        ("a", {"max_new_tokens": 999}, InvalidArgumentError),
    ],
    ids=str,
)
def test_bad_streams(pipe: TritonPipeline, inputs: Any, options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        list(pipe.stream_text(inputs, **SHORT | options))
