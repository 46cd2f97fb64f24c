"""Clients and their errors that are pickled, copied or dropped."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest

from serving.access import API_KEY_HEADER, API_KEY_VARIABLE
from serving.client import AsyncTritonPipeline, TritonPipeline
from serving.errors import DataError, InvalidArgumentError, PipelineError, RequestError, TritonizeError
from tests.helpers.parity import assert_same
from tests.helpers.servers import Server

COPIES: list[Callable[[Any], Any]] = [copy.copy, copy.deepcopy, lambda client: pickle.loads(pickle.dumps(client))]  # noqa: S301


def key_of(client: Any) -> str | None:
    connection = getattr(client, "_pipeline", client)._connection
    return (connection.headers or {}).get(API_KEY_HEADER)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [TritonPipeline, AsyncTritonPipeline])
@pytest.mark.parametrize("make", COPIES)
def test_a_copy_has_the_same_arguments(kind: Any, make: Callable[[Any], Any]) -> None:
    client = kind("x", url="there:1", protocol="http", timeout=7, retries=2, batch_size=3, api_key="given")
    copied = make(client)
    assert type(copied) is kind and copied is not client
    connection = getattr(copied, "_pipeline", copied)._connection
    assert (copied.name, connection._url, connection.protocol, connection.timeout) == ("x", "there:1", "http", 7)
    assert copied.__reduce__()[0].keywords == client.__reduce__()[0].keywords
    assert key_of(copied) == "given"


@pytest.mark.parametrize("kind", [TritonPipeline, AsyncTritonPipeline])
def test_a_key_from_the_environment_is_not_pickled(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(API_KEY_VARIABLE, "a-secret-key")
    client = kind("x")
    assert key_of(client) == "a-secret-key"
    pickled = pickle.dumps(client)
    assert b"a-secret-key" not in pickled and b"secret" not in repr(client.__reduce__()).encode()
    monkeypatch.setenv(API_KEY_VARIABLE, "of-the-other-machine")
    assert key_of(pickle.loads(pickled)) == "of-the-other-machine"  # noqa: S301


ERRORS: list[TritonizeError] = [
    DataError("a row is empty", hint="fill it"),
    RequestError("nobody is there", status="UNAVAILABLE", hint="start a server"),
    InvalidArgumentError("too long"),
    PipelineError("no mask token", task="fill-mask", model="x"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_reaches_another_process(error: TritonizeError) -> None:
    """``multiprocessing.Pool`` waits for ever for an error that cannot be unpickled."""
    copied = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert isinstance(copied, type(error)) and str(copied) == str(error) and vars(copied) == vars(error)


def test_a_pipeline_error_stays_catchable_in_another_process() -> None:
    from transformers.pipelines import PipelineException

    error = PipelineError.catchable()("no mask token", task="fill-mask", model="x", hint="write one").of_request("7")
    copied = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert isinstance(copied, PipelineException) and isinstance(copied, PipelineError)
    assert str(copied) == "no mask token" and vars(copied) == vars(error)


@pytest.mark.server
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_copy_has_its_own_connection(server: Server, pipeline: Any, protocol: Any) -> None:
    client = TritonPipeline("ragged", url=server.url(protocol), protocol=protocol)
    expected = pipeline("a text")
    assert_same(client("a text"), expected)
    copied = pickle.loads(pickle.dumps(client))  # noqa: S301
    client.close()
    assert_same(copied("a text"), expected)
    copied.close()


@pytest.mark.server
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_client_that_nobody_closed_ends_its_thread(server: Server, protocol: Any) -> None:
    client = TritonPipeline("ragged", url=server.url(protocol), protocol=protocol)
    client("a text")
    thread = next(thread for thread in threading.enumerate() if thread.name == "TritonPipeline ragged")
    del client
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()
