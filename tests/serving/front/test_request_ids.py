"""Each request has an id: the same one in the log of failed requests, in the answer and in the errors of the client."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from tritonclient.grpc import service_pb2, service_pb2_grpc

from serving.client import TritonPipeline
from serving.connection import Connection
from serving.errors import InvalidArgumentError, RequestError
from serving.front import failed_requests
from serving.generation_call import answer_parts
from serving.generation_request import TextRequest
from serving.log_format import JsonLineFormatter
from serving.options import PackageOptions
from serving.reporting import logger
from serving.repository import package
from serving.request_context import answered_id, request_context
from serving.triton_address import SOCKET_SCHEME
from tests.helpers.decoupled import DecoupledServer, decoupled_server, generate_message, write_model
from tests.helpers.front_requests import ask
from tests.helpers.raw_wire import exchange
from tests.helpers.servers import serve_options

pytestmark = pytest.mark.server
MADE = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
UUID = "0f5b8c3e-1d7a-4a7b-8c1d-0123456789ab"
INFER, GENERATE = "/v2/models/ragged/infer", "/v2/models/writer/generate"
ONE_TEXT = np.array([[b"x"]], dtype=np.object_)
_numbers = count()


class Lines(logging.Handler):
    """Keeps the lines of the log, as the server would write them with ``--log-format json``."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonLineFormatter())
        self.written: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.written.append(self.format(record))


class Served:
    """A server with the log of its front."""

    def __init__(self, server: DecoupledServer, lines: Lines) -> None:
        self.server, self.options, self.lines = server, server.options, lines

    @property
    def base_url(self) -> str:
        return self.options.base_url

    def logged(self, part: str) -> dict[str, Any]:
        """Return the line about the failed request whose reason has that part."""
        deadline = time.monotonic() + 20
        while not (found := [line for line in self.lines.written if part in line]):
            assert time.monotonic() < deadline, (part, self.lines.written[-5:])
            time.sleep(0.05)
        (line,) = found
        assert line.isascii() and line.isprintable()
        return dict(json.loads(line))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Iterator[Served]:
    """A server of an ensemble and of a model that streams. Its log has a line for each failure, also for a repeated one."""
    folder = tmp_path_factory.mktemp("ids")
    repository = folder / "model_repository"
    package(PackageOptions(bundle=bundle, repository=repository, name="ragged", precision="fp32", device="cpu", instances=1))
    write_model(repository, "writer")
    options = replace(serve_options(repository), in_flight=8, queue=8)
    lines = Lines()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(failed_requests, "PERIOD_SECONDS", 0.0)
        logger.addHandler(lines)
        try:
            with decoupled_server(options, folder) as server:
                yield Served(server, lines)
        finally:
            logger.removeHandler(lines)


# -- failing requests, each with a name in its reason, which return the id in the answer --------------------------------------


def wrong_json(served: Served, name: str, headers: dict[str, str], given: str) -> str:
    body = {"id": given, "inputs": [{"name": name, "shape": [1, 1], "datatype": "BYTES", "data": ["x"]}]}
    status, _, answered = ask(f"{served.base_url}{INFER}", json.dumps(body).encode(), **headers)
    assert status == 400
    return answered["x-request-id"]


def wrong_binary(served: Served, name: str, headers: dict[str, str], given: str) -> str:
    entry = httpclient.InferInput(name, [1, 1], "BYTES")
    entry.set_data_from_numpy(ONE_TEXT)
    body, length = httpclient.InferenceServerClient.generate_request_body([entry], request_id=given)
    status, _, answered = ask(f"{served.base_url}{INFER}", body, inference_header_content_length=str(length), **headers)
    assert status == 400
    return answered["x-request-id"]


def wrong_generate(served: Served, name: str, headers: dict[str, str], given: str) -> str:
    body = json.dumps({"id": given, "text_input": "x", name: [1]}).encode()
    status, _, answered = ask(f"{served.base_url}{GENERATE}", body, **headers)
    assert status == 400
    return answered["x-request-id"]


def failing_stream(served: Served, name: str, headers: dict[str, str], given: str) -> str:
    options = json.dumps({"error": f"no option {name}", "code": "INVALID_ARG"})
    body = json.dumps({"id": given, "text_input": "x", "sampling_parameters": options}).encode()
    _, text, answered = ask(f"{served.base_url}{GENERATE}_stream", body, **headers)
    assert name in text
    return answered["x-request-id"]


def wrong_grpc(served: Served, name: str, headers: dict[str, str], given: str) -> str:
    entry = grpcclient.InferInput(name, [1, 1], "BYTES")
    entry.set_data_from_numpy(ONE_TEXT)
    return refused_grpc(served, [entry], headers, given)


def late_grpc(served: Served, name: str, headers: dict[str, str], given: str) -> str:
    """The guard lets it pass; a step refuses it."""
    entry = grpcclient.InferInput("TEXT", [1, 1], "BYTES")
    entry.set_data_from_numpy(ONE_TEXT)
    return refused_grpc(served, [entry], headers, given, **{name: True})


def refused_grpc(served: Served, inputs: list[Any], headers: dict[str, str], given: str, **parameters: Any) -> str:
    request = grpcclient._utils._get_inference_request(
        "ragged", inputs, "", given, None, 0, False, False, 0, None, parameters=parameters or None
    )
    with grpc.insecure_channel(served.options.grpc_url) as channel, pytest.raises(grpc.RpcError) as caught:
        metadata = [(key.replace("_", "-"), value) for key, value in headers.items()]
        service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, metadata=metadata, timeout=20)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    return metadata_of(caught.value)["x-request-id"]


def metadata_of(call: Any) -> dict[str, str]:
    return dict([*(call.initial_metadata() or ()), *(call.trailing_metadata() or ())])


FAILING: dict[str, Callable[[Served, str, dict[str, str], str], str]] = {
    "HTTP, JSON": wrong_json,
    "HTTP, binary": wrong_binary,
    "generate": wrong_generate,
    "generate_stream": failing_stream,
    "gRPC": wrong_grpc,
    "gRPC, refused by a step": late_grpc,
}


def ask_triton(served: Served, path: str, body: bytes) -> bytes:
    """Return what Triton answers without the front."""
    request = b"POST %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Request-Id: order-7\r\nContent-Length: %d\r\n\r\n%b"
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(served.server.front.triton.http.removeprefix(SOCKET_SCHEME))
        connection.sendall(request % (path.encode(), len(body), body))
        connection.settimeout(20)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def unique() -> str:
    return f"name_{next(_numbers)}_"


# -- the rule -----------------------------------------------------------------------------------------------------------------


def check(served: Served, way: str, cases: Iterable[tuple[dict[str, str], str, str | None]]) -> None:
    """Send a failing request for each (headers, id of the body), and compare the id that it has; None: one that the front makes."""
    sent = [(unique(), expected, headers, given) for headers, given, expected in cases]
    answers = [FAILING[way](served, name, headers, given) for name, _, headers, given in sent]
    for (name, expected, _, _), answered in zip(sent, answers, strict=True):
        assert served.logged(name)["request_id"] == answered
        assert MADE.fullmatch(answered) if expected is None else answered == expected


@pytest.mark.parametrize("way", FAILING)
def test_the_log_and_the_answer_name_a_request(served: Served, way: str) -> None:
    header = {"x_request_id": "order-7"}
    check(
        served,
        way,
        [({}, "", None), ({}, "7", "7"), (header, "", "order-7"), (header, "7", "order-7"), ({"x_request_id": UUID}, "7", UUID)],
    )


def test_an_answer_names_its_request(served: Served) -> None:
    body = json.dumps({"inputs": [{"name": "TEXT", "shape": [1, 1], "datatype": "BYTES", "data": ["x"]}]}).encode()
    for headers, expected in (({}, MADE), ({"x_request_id": "order-7"}, re.compile("order-7"))):
        status, _, answered = ask(f"{served.base_url}{INFER}", body, **headers)
        assert status == 200 and expected.fullmatch(answered["x-request-id"])
    with grpc.insecure_channel(served.options.grpc_url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        _, call = stub.ModelMetadata.with_call(service_pb2.ModelMetadataRequest(name="ragged"), timeout=20)
        assert MADE.fullmatch(metadata_of(call)["x-request-id"])


def test_generate_takes_an_id(served: Served) -> None:
    """Triton passes it to the steps of the ensemble as a parameter."""
    path, body = "/v2/models/ragged/generate", json.dumps({"TEXT": "x", "id": "7"}).encode()
    status, _, answered = ask(f"{served.base_url}{path}", body)
    assert (status, answered["x-request-id"]) == (200, "7")
    assert ask_triton(served, path, body).startswith(b"HTTP/1.1 200 ")
    for wrong in ({"id": 7}, {"parameters": {"id": 7}}):
        status, text, _ = ask(f"{served.base_url}{path}", json.dumps({"TEXT": "x"} | wrong).encode())
        assert status == 400 and json.loads(text)["error"].endswith("id must be a string")


@pytest.mark.parametrize("header", [None, "order-7"])
@pytest.mark.parametrize("given", ["", "7"])
@pytest.mark.parametrize("place", ["the guard", "the model"])
def test_a_message_of_a_stream_has_an_id(served: Served, place: str, given: str, header: str | None) -> None:
    """The stream has an id too, which its header names; the log has both."""
    name = unique()
    if place == "the guard":
        wrong = generate_message("x", request_id=given)
        wrong.parameters[f"triton_{name}"].int64_param = 1
    else:
        wrong = generate_message("x", request_id=given, error=f"no option {name}", code="INVALID_ARG")
    answered = threading.Event()

    def messages() -> Iterator[service_pb2.ModelInferRequest]:
        yield generate_message("x", request_id="good", pieces=1)
        answered.wait(20)
        yield wrong

    with grpc.insecure_channel(served.options.grpc_url) as channel:
        metadata = [] if header is None else [("x-request-id", header)]
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        call = stub.ModelStreamInfer(messages(), metadata=metadata)
        answers = [next(call)]
        answered.set()
        answers += call
        stream = metadata_of(call)["x-request-id"]
    assert name in answers[-1].error_message
    line = served.logged(name)
    assert line["model"] == wrong.model_name
    assert header == stream if header is not None else MADE.fullmatch(stream)
    own = given if header is None else ""
    assert (line["request_id"], line.get("stream_id")) == ((own, stream) if own else (stream, None))


@pytest.mark.parametrize("path", [INFER, "/v2/nothing"])
def test_what_the_guard_does_not_see_has_an_id(served: Served, path: str) -> None:
    status, _, answered = ask(f"{served.base_url}{path}", b"x" * 5 * 2**20, x_request_id="too large")
    assert (status, answered["x-request-id"]) == (413, "too large")
    served.server.front.close()
    try:
        status, _, answered = ask(f"{served.base_url}{path}", b"{}")
        assert status == 503 and MADE.fullmatch(answered["x-request-id"])
    finally:
        served.server.front.open()


def test_triton_alone_returns_the_id_of_the_body_alone(served: Served) -> None:
    """What there is without the front."""
    body = json.dumps({"id": "7", "inputs": [{"name": "TEXT", "shape": [1, 1], "datatype": "BYTES", "data": ["x"]}]}).encode()
    answer = ask_triton(served, INFER, body)
    head, _, content = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ") and b"x-request-id" not in head.lower() and b"order-7" not in answer
    assert json.loads(content)["id"] == "7"


# -- hostile ids --------------------------------------------------------------------------------------------------------------


HOSTILE = [
    ('7\n{"level": "error"}\r\nx', '7?{"level": "error"}??x'),
    ("\"7\" '8' \\ \\u0022", "\"7\" '8' \\ \\u0022"),
    ("x" * 10_000, "x" * 128),
    ("\x00a\x1b[31m\x7f\t", "?a?[31m??"),
    ("\u2028ü", "?????"),
    ("  a  ", "a"),
    ("   ", None),
    ("%REQ(X-API-KEY)%", "%REQ(X-API-KEY)%"),
]


@pytest.mark.parametrize("way", FAILING)
def test_a_hostile_id_in_a_body_is_made_harmless(served: Served, way: str) -> None:
    check(served, way, [({}, given, expected) for given, expected in HOSTILE])


@pytest.mark.parametrize("given", [7, 1e300, None, True, ["7"], {"a": "7"}])
def test_an_id_that_is_no_text_is_refused(served: Served, given: object) -> None:
    body = {"id": given, "inputs": [{"name": "TEXT", "shape": [1, 1], "datatype": "BYTES", "data": ["x"]}]}
    status, text, answered = ask(f"{served.base_url}{INFER}", json.dumps(body).encode())
    assert (status, json.loads(text)) == (400, {"error": "id must be a string"})
    assert MADE.fullmatch(answered["x-request-id"])


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b'"q" \\ \xff\xe9 \xc3\xbc\tx', '"q" \\ ?? ???x'),
        (b"y" * 10_000, "y" * 128),
        (b"", None),
        (b" \t ", None),
        (b"one\r\nX-Request-Id: two", "one,two"),
        (b"one\r\nX-Given-Request-Id: two", "one"),
    ],
)
def test_a_hostile_header_is_made_harmless(served: Served, header: bytes, expected: str | None) -> None:
    name = unique()
    body = json.dumps({"text_input": "x", name: [1]}).encode()
    fields = b"Host: x\r\nX-Request-Id: %b\r\nContent-Length: %d\r\n" % (header, len(body))
    answer = exchange(served.options.http_port, b"POST %b HTTP/1.1\r\n%b\r\n%b" % (GENERATE.encode(), fields, body))
    assert answer.startswith(b"HTTP/1.1 400 ")
    (answered,) = re.findall(rb"(?i)\r\nx-request-id: ([^\r]*)", answer)
    assert served.logged(name)["request_id"] == answered.decode()
    assert MADE.fullmatch(answered.decode()) if expected is None else answered.decode() == expected


def test_only_the_front_says_that_a_client_has_sent_an_id(served: Served) -> None:
    name = unique()
    headers = {"x_given_request_id": "evil"}
    assert wrong_json(served, name, headers, "7") == "7" == served.logged(name)["request_id"]


# -- the client ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("given", [None, "order-7"])
def test_an_error_of_the_client_names_the_request(served: Served, protocol: Any, given: str | None) -> None:
    given = given and f"{given}-{unique()}"
    url = served.base_url.removeprefix("http://") if protocol == "http" else served.options.grpc_url
    context = request_context(request_id=given) if given else nullcontext()
    with TritonPipeline("ragged", url=url, protocol=protocol) as pipe, context, pytest.raises(InvalidArgumentError) as caught:
        pipe.tensors([["x"]], function_to_apply="nothing")
    line = served.logged(str(caught.value.request_id))
    assert caught.value.request_id == line["request_id"]
    assert given == line["request_id"] if given else MADE.fullmatch(line["request_id"])
    assert caught.value.message_with_hint.endswith(f"(request id {line['request_id']})")
    assert f"request id: {line['request_id']}" in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_an_error_in_a_stream_names_the_request(served: Served, protocol: Any) -> None:
    name = unique()
    url = served.base_url.removeprefix("http://") if protocol == "http" else served.options.grpc_url
    parameters = {"error": f"no option {name}", "code": "INVALID_ARG"}
    request = TextRequest(model="writer", text=b"x", options=parameters, parameters={}, stream=True)

    async def read() -> None:
        connection = Connection(url, protocol=protocol, concurrency=1, timeout=20, retries=0)
        try:
            async for _ in answer_parts(connection, request):
                pass
        finally:
            await connection.close()

    with pytest.raises(RequestError, match=name) as caught:
        asyncio.run(read())
    assert caught.value.request_id == served.logged(name)["request_id"]
    assert MADE.fullmatch(caught.value.request_id or "")


@pytest.mark.parametrize("given", [None, "order-7"])
def test_a_request_without_an_answer_has_the_id_that_the_caller_gave(served: Served, given: str | None) -> None:
    context = request_context(request_id=given) if given else nullcontext()
    pipe = TritonPipeline("ragged", url=served.options.grpc_url, timeout=1e-4)
    with pipe, context, pytest.raises(RequestError, match="within") as caught:
        pipe("x")
    assert (caught.value.status, caught.value.request_id) == ("DEADLINE_EXCEEDED", given)


@pytest.mark.parametrize(
    ("value", "shown"), [(None, None), ("", None), (b"order-7", "order-7"), ("a\nb", None), ("ü", None), ("x" * 129, None)]
)
def test_an_id_of_another_server_is_shown_if_it_is_printable(value: str | bytes | None, shown: str | None) -> None:
    assert answered_id(value) == shown
