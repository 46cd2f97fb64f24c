"""Clients that leave a summarization: what the server still generates for them."""

from __future__ import annotations

import asyncio
import http.client
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from export.bundle import export
from export.export_options import ExportOptions
from export.generation import encoder_decoder_variants
from serving.async_client import AsyncTritonPipeline
from serving.client import TritonPipeline
from serving.errors import RequestError
from serving.generation_request import LATE_SECONDS
from serving.options import PackageOptions
from serving.repository import package
from tests.helpers.family_checkpoints import write_family
from tests.helpers.generation_server import GenerationServer, generation_server
from tests.helpers.reviews import write_tsv
from tests.serving.generation.conftest import SLOW

pytestmark = [pytest.mark.server, pytest.mark.long]
NEW_TOKENS = 300
SECONDS_PER_TOKEN = 0.02
LONG: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "num_beams": 1, "do_sample": False, "eos_token_id": []}
TEXT = "the sea was the story of a sea"


@dataclass(frozen=True)
class SlowSummaries:
    """A server of the model ``slow``, which takes 20 ms for a token.

    Attributes:
        server: The server.
        steps: File with one byte for each token.
    """

    server: GenerationServer
    steps: Path

    def tokens(self) -> int:
        """Number of tokens that were generated."""
        return self.steps.stat().st_size if self.steps.exists() else 0

    def further_tokens(self, seconds: float = 0.5) -> int:
        """Number of tokens that are generated from now on, though nobody should read them."""
        before = self.tokens()
        time.sleep(seconds)
        return self.tokens() - before

    def wait_tokens(self, count: int) -> None:
        """Wait until so many more tokens were generated."""
        goal, deadline = self.tokens() + count, time.monotonic() + 30
        while self.tokens() < goal:
            assert time.monotonic() < deadline
            time.sleep(0.005)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlowSummaries]:
    folder = tmp_path_factory.mktemp("summaries")
    rows = write_tsv(folder / "rows.tsv", [(TEXT, "the sea"), ("and the sea, the sea", "a sea")], "text\tsummary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder_decoder_variants, "ANSWER_TOKENS", 4)
        export(
            ExportOptions(
                artifacts=folder, name="slow", task="summarization", checkpoint=str(write_family("t5", folder / "checkpoint")),
                test=str(rows), precision=("fp32",), device="cpu", max_length=64,
            )
        )  # fmt: skip
    repository, steps = folder / "repository", folder / "steps"
    chosen: dict[str, Any] = {"precision": "fp32", "device": "cpu", "threads": 1, "max_batch_size": 4, "capacity": NEW_TOKENS + 1}
    package(PackageOptions(artifacts=folder, name="slow", repository=repository, **chosen))
    (program,) = (repository / "slow").glob("*/model.py")
    with program.open("a", encoding="utf-8") as code:
        code.write(SLOW.format(steps=str(steps)))
    with generation_server(repository, folder / "server") as server:
        yield SlowSummaries(server, steps)


def test_a_cancelled_grpc_request_gets_three_more_tokens_at_most(slow: SlowSummaries) -> None:
    async def run() -> None:
        async with AsyncTritonPipeline("slow", url=slow.server.grpc, protocol="grpc") as pipe:
            call = asyncio.ensure_future(pipe(TEXT, **LONG))
            await asyncio.to_thread(slow.wait_tokens, 10)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call

    asyncio.run(run())
    assert slow.further_tokens() <= 3


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_time_limit_of_a_call_ends_the_generation(slow: SlowSummaries, protocol: str) -> None:
    url = slow.server.grpc if protocol == "grpc" else slow.server.http
    with TritonPipeline("slow", url=url, protocol=protocol, timeout=0.5) as pipe, pytest.raises(RequestError) as late:
        pipe(TEXT, **LONG)
    assert late.value.status == "DEADLINE_EXCEEDED"
    seconds = LATE_SECONDS if protocol == "http" else 0
    before = slow.tokens()
    wait_until_nothing_is_generated(slow)
    assert slow.tokens() - before <= seconds / SECONDS_PER_TOKEN + 3, "over HTTP, until the timeout that the client sends"


def wait_until_nothing_is_generated(slow: SlowSummaries) -> None:
    deadline = time.monotonic() + 30
    while slow.further_tokens(0.2):
        assert time.monotonic() < deadline


def leave(slow: SlowSummaries, parameters: dict[str, Any], endpoint: str = "infer") -> None:
    """Ask over HTTP, and close the connection after two tokens."""
    tensor = {"name": "TEXT", "datatype": "BYTES", "shape": [1, 1], "data": [TEXT]}
    asked = {"max_new_tokens": NEW_TOKENS, "num_beams": 1, "do_sample": False, "eos_token_id": "[]", **parameters}
    connection = http.client.HTTPConnection(slow.server.http, timeout=30)
    body = {"inputs": [tensor], "parameters": asked} if endpoint == "infer" else {"TEXT": TEXT, **asked}
    connection.request("POST", f"/v2/models/slow/{endpoint}", json.dumps(body))
    slow.wait_tokens(2)
    connection.close()


def test_http_ends_a_generation_at_the_timeout_of_the_request(slow: SlowSummaries) -> None:
    before = slow.tokens()
    leave(slow, {"timeout": 1_000_000})
    wait_until_nothing_is_generated(slow)
    assert slow.tokens() - before <= 1 / SECONDS_PER_TOKEN + 3


@pytest.mark.parametrize("endpoint", ["infer", "generate", "generate_stream"])
def test_without_a_timeout_triton_does_not_notice_that_an_http_client_has_left(slow: SlowSummaries, endpoint: str) -> None:
    leave(slow, {}, endpoint)
    assert slow.further_tokens(1.0) > 5
    wait_until_nothing_is_generated(slow)
