"""A connection against servers that answer what the test tells them: refusals, restarts, headers, certificates."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import pickle
import re
import ssl as tls
import time
import traceback
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from aiohttp import web
from tritonclient.grpc import service_pb2, service_pb2_grpc

from serving.access import ClientAccess
from serving.connection import Connection
from serving.errors import RequestError
from serving.options import WireProtocol
from tests.helpers.surroundings import free_port

CONFIG = {"config": {"name": "x"}}
NOT_FOUND = "Request for unknown model: 'x' is not found"
ENDING = "Request for unknown model: 'x' has no available versions"
STUB = "Failed to process the request(s) for model instance 'x_0', message: Stub process 'x_0' is not healthy."


def connection(url: str, protocol: WireProtocol, **options: Any) -> Connection:
    given = {"concurrency": 1, "timeout": 10.0, "retries": None, **options}
    access = {name: given.pop(name) for name in ("ssl", "ca", "certificate", "key", "api_key", "api_key_file") if name in given}
    return Connection(url, protocol=protocol, access=ClientAccess(**access), **given)


class Script:
    """What a server answers: each refusal once, then the configuration of the model."""

    def __init__(self, *refusals: tuple[int, str] | tuple[int, str, dict[str, str]], live: bool = False) -> None:
        self.live = live
        self._refusals = [(*refusal, {})[:3] for refusal in refusals]
        self.moments: list[float] = []
        self.keys: list[str | None] = []

    def next(self, key: str | None) -> tuple[int, str, dict[str, str]] | None:
        self.moments.append(time.monotonic())
        self.keys.append(key)
        return self._refusals.pop(0) if self._refusals else None

    async def http(self, request: web.Request) -> web.Response:
        refusal = self.next(request.headers.get("x-api-key"))
        if refusal is None:
            return web.json_response(CONFIG)
        status, body, headers = refusal
        return web.Response(status=status, text=body, headers=headers)

    async def http_live(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self.live else 400)


class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """The same over gRPC; the status is gRPC's."""

    def __init__(self, script: Script) -> None:
        self._script = script

    async def ServerLive(self, _: object, __: object) -> object:  # noqa: N802 - gRPC's
        return service_pb2.ServerLiveResponse(live=self._script.live)

    async def ModelConfig(self, _: object, context: grpc.aio.ServicerContext[object, object]) -> object:  # noqa: N802 - gRPC's
        refusal = self._script.next(dict(context.invocation_metadata() or ()).get("x-api-key"))
        if refusal is not None:
            status, message, metadata = refusal
            context.set_trailing_metadata(tuple(metadata.items()))
            code = next(code for code in grpc.StatusCode if code.value[0] == status)
            await context.abort(code, message)
        return service_pb2.ModelConfigResponse(config={"name": "x"})


@contextlib.asynccontextmanager
async def http_server(script: Script, port: int = 0, context: tls.SSLContext | None = None) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/v2/models/x/config", script.http)
    app.router.add_get("/v2/health/live", script.http_live)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, ssl_context=context)
    await site.start()
    try:
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def grpc_server(script: Script, port: int = 0, credentials: grpc.ServerCredentials | None = None) -> AsyncIterator[str]:
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Servicer(script), server)
    address = f"127.0.0.1:{port}"
    bound = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    await server.start()
    try:
        yield f"127.0.0.1:{bound}"
    finally:
        await server.stop(None)


SERVERS: dict[WireProtocol, Callable[..., contextlib.AbstractAsyncContextManager[str]]] = {"http": http_server, "grpc": grpc_server}


def ask(protocol: WireProtocol, script: Script, **options: object) -> object:
    """The configuration that a connection gets."""

    async def run() -> object:
        async with SERVERS[protocol](script) as url:
            asking = connection(url, protocol, **options)
            try:
                return await asking.model_config("x")
            finally:
                await asking.close()

    return asyncio.run(run())


def said(error: str) -> str:
    return json.dumps({"error": error})


@pytest.mark.parametrize(("asked", "served"), [("grpc", "http"), ("http", "grpc")])
def test_a_port_of_the_other_protocol_is_told_at_once(asked: WireProtocol, served: WireProtocol) -> None:
    async def run() -> None:
        async with SERVERS[served](Script()) as url:
            asking = connection(url, asked)
            try:
                await asking.model_config("x")
            finally:
                await asking.close()

    begun = time.monotonic()
    names = {"grpc": "gRPC", "http": "HTTP"}
    with pytest.raises(RequestError, match=rf"127\.0\.0\.1:\d+ answers {names[served]}, not {names[asked]}") as error:
        asyncio.run(run())
    assert f"(--protocol {served}, " in error.value.hint
    assert time.monotonic() - begun < 5


def test_a_port_that_closes_connections_is_not_taken_for_grpc() -> None:
    async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async def run() -> None:
        async with await asyncio.start_server(close, "127.0.0.1", 0) as server:
            asking = connection(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", "http", retries=1)
            try:
                await asking.model_config("x")
            finally:
                await asking.close()

    with pytest.raises(RequestError, match="closed the connection before it answered") as error:
        asyncio.run(run())
    assert error.value.status == "UNAVAILABLE"


@pytest.mark.parametrize(
    "refusal",
    [
        (503, said("server is not ready")),
        (503, "no healthy upstream"),
        (502, ""),
        (429, "too many requests"),
        (404, said(ENDING)),
        (400, said("in ensemble 'x', Model 'x_model' is not ready")),
        (500, said(STUB)),
    ],
)
def test_what_http_says_while_a_server_restarts_is_retried(refusal: tuple[int, str]) -> None:
    script = Script(refusal, refusal)
    assert ask("http", script) == CONFIG["config"]
    assert len(script.moments) == 3


@pytest.mark.parametrize(
    "refusal",
    [
        (14, "Socket closed"),
        (14, "upstream connect error or disconnect/reset before headers. reset reason: connection failure"),
        (8, "the queue is full"),
        (5, ENDING),
        (3, "Model 'x' is not ready"),
        (13, STUB),
        (13, "Received RST_STREAM with error code 2"),
        (13, "Internal error from Core"),
    ],
)
def test_what_grpc_says_while_a_server_restarts_is_retried(refusal: tuple[int, str]) -> None:
    script = Script(refusal, refusal)
    assert ask("grpc", script)["name"] == "x"  # type: ignore[index]
    assert len(script.moments) == 3


@pytest.mark.parametrize(
    ("protocol", "refusal"), [("http", (503, said(ENDING))), ("http", (404, said(ENDING))), ("grpc", (5, ENDING))]
)
def test_a_model_that_a_live_server_has_unloaded_is_not_waited_for(protocol: WireProtocol, refusal: tuple[int, str]) -> None:
    script = Script(*[refusal] * 20, live=True)
    with pytest.raises(RequestError) as error:
        ask(protocol, script)
    assert re.fullmatch(r"x is not loaded at 127\.0\.0\.1:\d+", error.value.message)
    assert error.value.hint == "if it was unloaded, load it with: tritonize load x"
    assert error.value.status == "UNAVAILABLE"
    assert len(script.moments) == 4


def test_a_generation_that_was_unloaded_is_loaded_by_its_own_name() -> None:
    refusal = (5, ENDING.replace("'x'", "'x.20261129133517'"))
    with pytest.raises(RequestError, match=r"^x\.20261129133517 is not loaded at ") as error:
        ask("grpc", Script(*[refusal] * 20, live=True))
    assert error.value.hint == "if it was unloaded, load it with: tritonize load x 20261129133517"


def test_a_traceback_shows_the_hint() -> None:
    error = RequestError("it failed", status="UNKNOWN", hint="try again")
    for one in (error, pickle.loads(pickle.dumps(error))):  # noqa: S301 - its own
        assert str(one) == "it failed"
        assert traceback.format_exception(one)[-2:] == ["serving.errors.RequestError: it failed\n", "hint: try again\n"]
    assert traceback.format_exception(RequestError("it failed", status="UNKNOWN"))[-1].endswith("it failed\n")


@pytest.mark.parametrize(
    ("protocol", "refusal", "status", "message"),
    [
        ("http", (400, said("unexpected shape")), "INVALID_ARGUMENT", "unexpected shape"),
        (
            "http",
            (400, said("doc_stride (400) is larger than max_seq_len (384)")),
            "INVALID_ARGUMENT",
            "doc_stride (400) is larger than max_seq_len (384)",
        ),
        ("http", (401, "Unauthorized\n"), "UNAUTHENTICATED", "HTTP status 401: Unauthorized"),
        ("http", (403, ""), "PERMISSION_DENIED", "HTTP status 403: Forbidden"),
        ("http", (404, said(NOT_FOUND)), "NOT_FOUND", NOT_FOUND),
        ("http", (408, ""), "DEADLINE_EXCEEDED", "HTTP status 408: Request Timeout"),
        ("http", (413, "Payload Too Large"), "INVALID_ARGUMENT", "the request is larger than the server accepts"),
        ("http", (418, "<html>tea</html>"), "INVALID_ARGUMENT", "HTTP status 418: <html>tea</html>"),
        ("http", (500, said("division by zero")), "INTERNAL", "division by zero"),
        ("http", (500, "[1]"), "INTERNAL", "HTTP status 500: [1]"),
        ("http", (501, said("what?")), "INTERNAL", "what?"),
        ("http", (504, "upstream request timeout"), "DEADLINE_EXCEEDED", "HTTP status 504: upstream request timeout"),
        ("grpc", (3, "unexpected shape"), "INVALID_ARGUMENT", "unexpected shape"),
        ("grpc", (4, "too late"), "DEADLINE_EXCEEDED", "too late"),
        ("grpc", (5, NOT_FOUND), "NOT_FOUND", NOT_FOUND),
        ("grpc", (7, "no"), "PERMISSION_DENIED", "no"),
        ("grpc", (13, "division by zero"), "INTERNAL", "division by zero"),
        ("grpc", (16, "who?"), "UNAUTHENTICATED", "who?"),
        (
            "grpc",
            (8, "Received message larger than max (9 vs. 8)"),
            "INVALID_ARGUMENT",
            "the request is larger than the server accepts",
        ),
        ("grpc", (2, "Payload Too Large"), "INVALID_ARGUMENT", "the request is larger than the server accepts"),
    ],
)
def test_what_would_be_the_same_again_is_asked_once(
    protocol: WireProtocol, refusal: tuple[int, str], status: str, message: str
) -> None:
    script = Script(refusal)
    with pytest.raises(RequestError) as caught:
        ask(protocol, script)
    assert (caught.value.status, caught.value.message) == (status, message)
    assert len(script.moments) == 1
    assert all((way in caught.value.hint) == (status == "UNAUTHENTICATED") for way in ("TRITONIZE_API_KEY", "--api-key-file"))
    assert ("not a step of one" in caught.value.hint) == (status == "PERMISSION_DENIED")


@pytest.mark.parametrize(("protocol", "refusal"), [("http", (503, "wait")), ("grpc", (14, "wait"))])
@pytest.mark.parametrize("retries", [0, 2])
def test_a_number_of_retries_is_a_number_of_retries(protocol: WireProtocol, refusal: tuple[int, str], retries: int) -> None:
    script = Script(*[refusal] * 5)
    with pytest.raises(RequestError, match="wait") as caught:
        ask(protocol, script, retries=retries)
    assert caught.value.status == "UNAVAILABLE"
    assert len(script.moments) == retries + 1


@pytest.mark.parametrize(("protocol", "status"), [("http", 503), ("grpc", 14)])
def test_the_time_limit_ends_the_retries_and_tells_the_last_reason(protocol: WireProtocol, status: int) -> None:
    script = Script(*[(status, "the model is loading")] * 100)
    started = time.monotonic()
    with pytest.raises(RequestError, match=re.escape("did not answer within 1.5 s; last: ") + ".*the model is loading") as caught:
        ask(protocol, script, timeout=1.5)
    assert caught.value.status == "DEADLINE_EXCEEDED"
    assert 1.4 < time.monotonic() - started < 5
    assert 3 <= len(script.moments) <= 8  # the pauses grow


@pytest.mark.parametrize(("protocol", "status", "header"), [("http", 429, "Retry-After"), ("grpc", 8, "retry-after")])
def test_the_server_says_when_to_come_again(protocol: WireProtocol, status: int, header: str) -> None:
    script = Script((status, "full", {header: "1"}))
    ask(protocol, script)
    first, second = script.moments
    assert 1 <= second - first < 4


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_server_that_was_never_there_is_given_up_soon(protocol: WireProtocol) -> None:
    async def run() -> None:
        asking = connection(f"127.0.0.1:{free_port()}", protocol, timeout=60)
        try:
            await asking.model_config("x")
        finally:
            await asking.close()

    started = time.monotonic()
    with pytest.raises(RequestError, match="no Triton server answers at") as caught:
        asyncio.run(run())
    assert caught.value.status == "UNAVAILABLE"
    assert 0.3 < time.monotonic() - started < 10


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_server_that_was_there_is_waited_for(protocol: WireProtocol) -> None:
    async def run() -> float:
        port = free_port()
        asking = connection(f"127.0.0.1:{port}", protocol, timeout=60)
        async with SERVERS[protocol](Script(), port):
            await asking.model_config("x")
        waiting = asyncio.ensure_future(asking.model_config("x"))
        await asyncio.sleep(4)
        assert not waiting.done()
        async with SERVERS[protocol](Script(), port):
            back = time.monotonic()
            await waiting
            gap = time.monotonic() - back
            await asking.close()
        return gap

    assert asyncio.run(run()) < 5  # gRPC itself would wait longer before it connects again


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_api_key_is_sent_with_every_request(protocol: WireProtocol, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITONIZE_API_KEY", raising=False)
    script = Script()
    ask(protocol, script)
    ask(protocol, script, api_key="given")
    monkeypatch.setenv("TRITONIZE_API_KEY", "from the environment")
    ask(protocol, script)
    ask(protocol, script, api_key="given")
    assert script.keys == [None, "given", "from the environment", "given"]


@pytest.mark.parametrize("key", ["two\nlines", "schlüssel", " padded "])
def test_an_api_key_that_is_no_header_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(ValueError, match="printable ASCII") as caught:
        connection("127.0.0.1:1", "http", api_key=key)
    assert key not in str(caught.value)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("path", [str, Path])
def test_a_ca_of_ones_own(protocol: WireProtocol, path: Callable[[str], str | Path], authority: trustme.CA, tmp_path: Path) -> None:
    trusted, stranger = tmp_path / "trusted.pem", tmp_path / "stranger.pem"
    authority.cert_pem.write_to_path(trusted)
    trustme.CA().cert_pem.write_to_path(stranger)
    certificate = authority.issue_cert("127.0.0.1")
    context = tls.create_default_context(tls.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)
    chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
    credentials = grpc.ssl_server_credentials([(certificate.private_key_pem.bytes(), chain)])

    async def run(ca_file: Path) -> object:
        secured = context if protocol == "http" else credentials
        async with SERVERS[protocol](Script(), 0, secured) as url:
            asking = connection(url, protocol, ssl=path(str(ca_file)))
            try:
                return await asking.model_config("x")
            finally:
                await asking.close()

    assert asyncio.run(run(trusted))
    with pytest.raises(RequestError, match="no TLS connection to") as caught:
        asyncio.run(run(stranger))
    assert caught.value.status == "FAILED_PRECONDITION"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_server_that_wants_tls_is_not_taken_for_none(authority: trustme.CA, host: str) -> None:
    """Of a name with several addresses, gRPC may tell that nothing listens at one of them."""
    certificate = authority.issue_cert(host)
    chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
    credentials = grpc.ssl_server_credentials([(certificate.private_key_pem.bytes(), chain)])
    reason = "failed to connect to all addresses; last error: UNKNOWN: ipv6:%5B::1%5D:9: Connection refused"

    async def fails(_: object) -> None:
        raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), reason)

    async def run() -> None:
        async with grpc_server(Script(), 0, credentials) as url:
            asking = connection(f"{host}:{url.rpartition(':')[2]}", "grpc")
            for refused in (asking.model_config("x"), asking.ask(fails)):
                with pytest.raises(RequestError, match="closes every connection at once") as caught:
                    await refused
                assert caught.value.hint.startswith("the server may want TLS")
            await asking.close()

    asyncio.run(run())


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_a_ca_file_that_is_none_is_refused_at_once(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=r"ssl must be .* not '.*ca\.pem'"):
        connection("127.0.0.1:1", "http", ssl=file)


@pytest.mark.parametrize(("is_long", "timeout", "told"), [(True, 2.0, 3_000_000), (False, 2.0, None), (True, math.inf, None)])
def test_a_server_is_told_how_long_a_client_of_http_waits(is_long: bool, timeout: float, told: int | None) -> None:
    heard: list[dict[str, Any]] = []

    async def answer(request: web.Request) -> web.Response:
        head = await request.read()
        heard.append(json.loads(head[: int(request.headers["Inference-Header-Content-Length"])]))
        return web.json_response({"model_name": "x", "model_version": "1", "outputs": []})

    async def run() -> None:
        app = web.Application()
        app.router.add_post("/v2/models/x/infer", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        asking = connection(f"127.0.0.1:{runner.addresses[0][1]}", "http", timeout=timeout)
        await asking.infer("x", {"TEXT": [b"one"]}, {}, is_long=is_long)
        await asking.close()
        await runner.cleanup()

    asyncio.run(run())
    limit = heard[0].get("parameters", {}).get("timeout")
    assert limit is None if told is None else told - 500_000 < limit <= told
