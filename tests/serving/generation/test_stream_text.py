"""Text in pieces: all of them are the text that a call returns, and who stops reading ends the generation."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from serving.client import AsyncTritonPipeline, TritonPipeline
from serving.errors import InvalidArgumentError
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


def responses(generating: Generating, first: int) -> int:
    """Number of responses that the model sent, as the ``first`` of their streams or later."""
    with urllib.request.urlopen(f"http://{generating.server.http}/v2/models/chat/stats", timeout=5) as answer:
        (stats,) = json.load(answer)["model_stats"]
    return sum(entry["success"]["count"] for place, entry in stats["response_stats"].items() if int(place) >= first)


@pytest.mark.parametrize("inputs", [*TEXTS, CHAT, PREFILL], ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"clean_up_tokenization_spaces": False}, {"stop_strings": [" and"], "stop_sequence": "was"}], ids=str
)
def test_pieces_are_the_text_of_a_call(pipe: TritonPipeline, inputs: Any, options: dict[str, Any]) -> None:
    pieces = list(pipe.stream_text(inputs, **SHORT, **options))
    (answer,) = pipe(inputs, return_full_text=False, **SHORT, **options)
    assert "".join(pieces) == answer["generated_text"]
    assert all(pieces)
    assert len(pieces) > 3 or len(answer["generated_text"]) < 20


def test_pieces_come_while_the_server_generates(pipe: TritonPipeline) -> None:
    began = time.perf_counter()
    times = [time.perf_counter() - began for _ in pipe.stream_text("Once", **LONG)]
    assert times[0] < 0.5 * times[-1]


def test_closing_ends_the_generation(generating: Generating, pipe: TritonPipeline) -> None:
    assert list(pipe.stream_text("Once upon a time", **LONG))
    before = responses(generating, 150)
    assert before > 100, "a whole stream counts"
    for _ in range(3):
        stream = pipe.stream_text("Once upon a time", **LONG)
        assert next(stream)
        stream.close()
    time.sleep(1)
    assert responses(generating, 150) == before, "a stream went on to its half"
    assert list(pipe.stream_text("Once", **SHORT)), "the client goes on"


def test_a_cancelled_call_ends_the_generation(generating: Generating, protocol: str) -> None:
    async def leave(pipe: AsyncTritonPipeline) -> None:
        call = asyncio.ensure_future(pipe(["Once upon a time"] * 8, **LONG))
        await asyncio.sleep(0.1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    async def run() -> float:
        async with AsyncTritonPipeline("chat", url=generating.url(protocol), protocol=protocol, concurrency=8) as pipe:  # type: ignore[arg-type]
            await leave(pipe)
            began = time.perf_counter()
            await pipe("Once", do_sample=False, max_new_tokens=2)
            return time.perf_counter() - began

    assert asyncio.run(run()) < 1.0, "the slots were not free"


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
