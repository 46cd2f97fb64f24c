"""Clients of a Triton that compares the key itself, without a front: its APIs are restricted to those who send it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.load import LoadOptions, find_perf_analyzer, run_load
from benchmarks.served import ServerConnection
from serving.access import API_KEY_VARIABLE, ClientAccess
from serving.access_options import AccessOptions
from serving.async_client import AsyncTritonPipeline
from serving.client import TritonPipeline
from serving.connection import Connection
from serving.errors import RequestError
from serving.generation_call import answer_parts
from serving.generation_request import TextRequest
from serving.install import triton_environment
from serving.options import ServeOptions, WireProtocol
from serving.restricted_api import KEY_HINT, OTHER_HEADER_HINT, refused_key
from serving.runtime.types import Tensor
from tests.helpers.plain_triton import copy_with_writer, plain_triton, restricted

PROTOCOLS: list[WireProtocol] = ["grpc", "http"]
KEY = "the-key-of-this-test-0123456789"
APIS = ("inference", "model-config", "metadata", "statistics")


@pytest.fixture(scope="module")
def guarded(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeOptions]:
    """A Triton of the package ``one``, and of ``writer``, which streams."""
    models = tmp_path_factory.mktemp("restricted") / "models"
    copy_with_writer(pristine, models)
    with plain_triton(models, *restricted(*APIS, key=KEY)) as options:
        yield options


def url(options: ServeOptions, protocol: WireProtocol) -> str:
    return options.grpc_url if protocol == "grpc" else f"127.0.0.1:{options.http_port}"


def assert_refused(error: RequestError) -> None:
    assert (error.status, error.hint) == ("UNAUTHENTICATED", KEY_HINT)
    assert error.message.endswith(" wants a valid key in the header x-api-key")


@pytest.mark.server
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_right_key_is_taken(guarded: ServeOptions, protocol: WireProtocol) -> None:
    async def asynchronous() -> Any:
        async with AsyncTritonPipeline("one", url=url(guarded, protocol), protocol=protocol, api_key=KEY) as pipe:
            return await pipe("a warm film")

    with TritonPipeline("one", url=url(guarded, protocol), protocol=protocol, api_key=KEY) as pipe:
        assert pipe("a warm film") == asyncio.run(asynchronous())


@pytest.mark.server
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("key", [None, "not-the-key-of-this-test"])
def test_a_wrong_key_is_refused_at_once(guarded: ServeOptions, protocol: WireProtocol, key: str | None) -> None:
    begun = time.monotonic()
    with (
        TritonPipeline("one", url=url(guarded, protocol), protocol=protocol, api_key=key, timeout=60) as pipe,
        pytest.raises(RequestError) as caught,
    ):
        pipe("a warm film")
    assert_refused(caught.value)
    assert time.monotonic() - begun < 30, "it is not asked again until the time is over"


@pytest.mark.server
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_streams_have_the_key(guarded: ServeOptions, protocol: WireProtocol) -> None:
    async def streamed(key: str) -> int:
        access = ClientAccess(api_key=key)
        connection = Connection(url(guarded, protocol), protocol=protocol, concurrency=1, timeout=20, retries=None, access=access)
        request = TextRequest(model="writer", text=b"a warm film", options={}, parameters={}, stream=True)
        try:
            return len([part async for part in answer_parts(connection, request)])
        finally:
            await connection.close()

    assert asyncio.run(streamed(KEY))
    with pytest.raises(RequestError) as caught:
        asyncio.run(streamed("not-the-key-of-this-test"))
    assert_refused(caught.value)


@pytest.mark.server
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_benchmark_has_the_key(guarded: ServeOptions, protocol: WireProtocol, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError) as caught:
        ServerConnection(guarded, "one")
    assert_refused(caught.value)
    monkeypatch.setenv(API_KEY_VARIABLE, KEY)
    with contextlib.closing(ServerConnection(guarded, "one")) as server:
        assert "one" in server.statistics()
    options = LoadOptions(
        model="one", url=url(guarded, protocol), protocol=protocol, concurrency=2, duration=0.5, access=AccessOptions()
    )
    found = run_load(find_perf_analyzer(triton_environment()), options, [Tensor("TEXT", "TYPE_STRING")], [["fine"], ["dull"]])
    assert found.requests > 2


# --- without a server -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "hint"),
    [
        ("This protocol is restricted, expecting header 'triton-grpc-protocol-x-api-key'", KEY_HINT),
        ("This API is restricted, expecting header 'x-api-key'", KEY_HINT),
        ("This API is restricted, expecting header 'admin-key'", OTHER_HEADER_HINT),
        ("This protocol is restricted, expecting header 'triton-grpc-protocol-admin-key'", OTHER_HEADER_HINT),
    ],
)
def test_a_header_that_no_client_sends_has_a_hint_of_its_own(message: str, hint: str) -> None:
    error = refused_key(message, "there:8001")
    assert error is not None and error.hint == hint
    assert refused_key("the model is not ready", "there:8001") is None
