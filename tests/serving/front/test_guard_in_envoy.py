"""The filter in a real Envoy, between clients and servers that answer what a test asks for."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from serving.front.bootstrap import guard_source
from serving.runtime.failure_messages import BUSY, LATE, NOT_FINITE
from tests.helpers.surroundings import free_port
from tests.serving.front.guard_in_python import compact, digest, raw, write_ensemble

ENVOY = Path(__file__).parents[3] / ".triton/lib/python3.11/site-packages/envoy/_bin/envoy"
TYPES = "type.googleapis.com/envoy.extensions"
TEXT = "a text"
FOREIGN = "the answer belongs to another request"

pytestmark = pytest.mark.skipif(not ENVOY.exists(), reason="the server's environment has no Envoy")


class Upstream(http.server.BaseHTTPRequestHandler):
    """An HTTP server that gives the answer of its class, and keeps the last request."""

    protocol_version = "HTTP/1.1"
    answer: tuple[int, dict[str, str], bytes] = (200, {}, b"")
    seen: ClassVar[list[tuple[str, dict[str, str], bytes]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        type(self).seen.append((self.path, {key.lower(): value for key, value in self.headers.items()}, body))
        status, headers, answer = type(self).answer
        self.send_response(status)
        for key, value in (headers | {"content-length": str(len(answer))}).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST  # noqa: N815

    def log_message(self, *arguments: Any) -> None:
        pass


class Service(service_pb2_grpc.GRPCInferenceServiceServicer):
    """A gRPC server that gives its answer, a message or an error, and keeps the last request."""

    def __init__(self) -> None:
        self.answer: Any = None
        self.seen: list[Any] = []

    def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self.seen.append(request)
        if isinstance(self.answer, tuple):
            context.abort(*self.answer)
        return self.answer

    ModelReady = ModelInfer

    def ModelStreamInfer(self, requests: Iterator[Any], _: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        for request in requests:
            self.seen.append(request)
            yield service_pb2.ModelStreamInferResponse(
                error_message=f"Request for unknown model: '{request.model_name}' is not found"
            )


def listener(port: int, cluster: str, source: str) -> dict[str, Any]:
    filters = [
        ("buffer", {"@type": f"{TYPES}.filters.http.buffer.v3.Buffer", "max_request_bytes": 8_000_000}),
        ("lua", {"@type": f"{TYPES}.filters.http.lua.v3.Lua", "default_source_code": {"inline_string": source}}),
        ("router", {"@type": f"{TYPES}.filters.http.router.v3.Router"}),
    ]
    manager = {
        "@type": f"{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": cluster,
        "route_config": {
            "virtual_hosts": [
                {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster}}]},
            ]
        },
        "http_filters": [{"name": f"envoy.filters.http.{name}", "typed_config": config} for name, config in filters],
    }
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    return {"address": address(port), "filter_chains": [chain]}


def address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def cluster(name: str, port: int, protocol: str) -> dict[str, Any]:
    options = {"@type": f"{TYPES}.upstreams.http.v3.HttpProtocolOptions", "explicit_http_config": {protocol: {}}}
    return {
        "name": name,
        "per_connection_buffer_limit_bytes": 8_000_000,
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(port)}}]}]},
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
    }


class Front:
    """Envoy with the filter before both servers."""

    def __init__(self, http_port: int, grpc_port: int, service: Service, log: Path) -> None:
        self.http_port, self.service, self.log = http_port, service, log
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(f"127.0.0.1:{grpc_port}"))

    def post(self, path: str, body: bytes | dict[str, Any], **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=10)
        with contextlib.closing(connection):
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            connection.request("POST", path, content, {key.replace("_", "-"): value for key, value in headers.items()})
            answer = connection.getresponse()
            return answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read()

    def infer(self, **changes: Any) -> Any:
        return self.stub.ModelInfer(message(**changes), timeout=10)


def message(**changes: Any) -> service_pb2.ModelInferRequest:
    inputs = [{"name": "TEXT", "datatype": "BYTES", "shape": [1, 1]}]
    return service_pb2.ModelInferRequest(
        **({"model_name": "sent", "inputs": inputs, "raw_input_contents": [raw(TEXT.encode())]} | changes)
    )


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    folder = tmp_path_factory.mktemp("envoy")
    write_ensemble(folder, "sent", "TEXT")
    upstream = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    threading.Thread(target=upstream.serve_forever, daemon=True).start()
    service, server = Service(), grpc.server(ThreadPoolExecutor(2))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(service, server)
    grpc_upstream = server.add_insecure_port("127.0.0.1:0")
    server.start()
    source = guard_source(folder, max_request_bytes=8_000_000)
    ports = free_port(), free_port()
    resources = {
        "listeners": [listener(ports[0], "http", source), listener(ports[1], "grpc", source)],
        "clusters": [
            cluster("http", upstream.server_address[1], "http_protocol_options"),
            cluster("grpc", grpc_upstream, "http2_protocol_options"),
        ],
    }
    (folder / "envoy.json").write_text(json.dumps({"static_resources": resources}), encoding="utf-8")
    command = [ENVOY, "-c", folder / "envoy.json", "--concurrency", "1", "--disable-hot-restart", "-l", "warning"]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            for port in ports:
                wait_for(port, process, folder / "log")
            yield Front(*ports, service, folder / "log")
        finally:
            process.terminate()
            upstream.shutdown()
            upstream.server_close()
            server.stop(None)


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(200):
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    raise AssertionError(log.read_text())


PATH = "/v2/models/sent/infer"
INPUT = {"name": "TEXT", "datatype": "BYTES", "shape": [1, 1], "data": [TEXT]}
LABEL = {"name": "LABEL", "datatype": "BYTES", "shape": [1, 1], "data": ["good"]}
OUTPUT = {"name": "DIGEST", "datatype": "INT64", "shape": [1, 1], "data": [digest(TEXT.encode())]}


def set_answer(body: bytes | dict[str, Any], status: int = 200, **headers: str) -> None:
    content = body if isinstance(body, bytes) else compact(body)
    Upstream.answer = (status, {key.replace("_", "-"): value for key, value in headers.items()}, content)


@pytest.mark.parametrize("path", [PATH, "/v2/models/sent/versions/1/infer", PATH + "?a=b"])
def test_an_answer_of_its_request_passes_without_the_digest(front: Front, path: str) -> None:
    set_answer({"model_name": "sent", "outputs": [OUTPUT, LABEL]}, content_type="application/json")
    status, headers, body = front.post(path, {"inputs": [INPUT], "outputs": [{"name": "LABEL"}]}, accept_encoding="gzip")
    assert (status, json.loads(body)) == (200, {"model_name": "sent", "outputs": [LABEL]})
    assert int(headers["content-length"]) == len(body)
    seen_path, seen_headers, seen = Upstream.seen[-1]
    assert seen_path == path
    assert json.loads(seen)["outputs"] == [{"name": "DIGEST", "parameters": {"binary_data": False}}, {"name": "LABEL"}]
    assert int(seen_headers["content-length"]) == len(seen)
    assert "accept-encoding" not in seen_headers


def test_an_answer_of_another_request_does_not_pass(front: Front) -> None:
    for outputs in ([OUTPUT | {"data": [7]}, LABEL], [LABEL], []):
        set_answer({"model_name": "sent", "outputs": outputs}, content_type="application/json")
        status, headers, body = front.post(PATH, {"inputs": [INPUT]})
        assert (status, json.loads(body)) == (500, {"error": FOREIGN})
        assert headers["content-type"] == "application/json"
    assert "an answer was withheld" in front.log.read_text()


def test_an_answer_to_no_rows_does_not_pass(front: Front) -> None:
    set_answer({"outputs": [OUTPUT]})
    status, _, body = front.post(PATH, {"inputs": [INPUT | {"shape": [0, 1], "data": []}]})
    assert status == 500
    assert "could not be compared" in json.loads(body)["error"]


def test_binary_requests_and_answers(front: Front) -> None:
    one = INPUT | {"parameters": {"binary_data_size": 4 + len(TEXT)}}
    del one["data"]
    header = json.dumps({"inputs": [one], "outputs": [{"name": "LABEL", "parameters": {"binary_data": True}}]}).encode()
    data = {"LABEL": raw(b"good"), "DIGEST": struct.pack("<q", digest(TEXT.encode()))}
    described = [
        {"name": name, "datatype": "INT64", "shape": [1, 1], "parameters": {"binary_data_size": len(data[name])}} for name in data
    ]
    plain, whole = (compact({"outputs": outputs}) for outputs in (described[:1], described))
    set_answer(whole + data["LABEL"] + data["DIGEST"], inference_header_content_length=str(len(whole)))
    status, headers, body = front.post(PATH, header + raw(TEXT.encode()), inference_header_content_length=str(len(header)))
    assert (status, body) == (200, plain + data["LABEL"])
    assert (int(headers["inference-header-content-length"]), int(headers["content-length"])) == (len(plain), len(body))
    _, seen_headers, seen = Upstream.seen[-1]
    length = int(seen_headers["inference-header-content-length"])
    assert [output["name"] for output in json.loads(seen[:length])["outputs"]] == ["DIGEST", "LABEL"]
    assert seen[length:] == raw(TEXT.encode())
    set_answer(whole + data["LABEL"] + b"12345678", inference_header_content_length=str(len(whole)))
    status, headers, body = front.post(PATH, header + raw(TEXT.encode()), inference_header_content_length=str(len(header)))
    assert (status, json.loads(body), "inference-header-content-length" in headers) == (500, {"error": FOREIGN}, False)


def test_a_header_given_twice_is_refused(front: Front) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", front.http_port, timeout=10)
    body = compact({"inputs": [INPUT]})
    with contextlib.closing(connection):
        connection.putrequest("POST", PATH)
        for key, value in [("Content-Length", len(body)), *[("Inference-Header-Content-Length", len(body))] * 2]:
            connection.putheader(key, str(value))
        connection.endheaders(body)
        answer = connection.getresponse()
        assert (answer.status, b"Inference-Header-Content-Length" in answer.read()) == (400, True)


def test_generate(front: Front) -> None:
    set_answer({"model_name": "sent", "DIGEST": digest(TEXT.encode()), "LABEL": "good"})
    status, _, body = front.post("/v2/models/sent/generate", {"TEXT": TEXT})
    assert (status, json.loads(body)) == (200, {"model_name": "sent", "LABEL": "good"})
    status, _, body = front.post("/v2/models/sent/generate", {"TEXT": "another"})
    assert (status, json.loads(body)) == (500, {"error": FOREIGN})


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "reason"),
    [
        (
            "/v2/models/sent.20260102030405_model/infer",
            {"inputs": [INPUT]},
            {},
            403,
            "sent.20260102030405_model is a step of the ensemble sent",
        ),
        (PATH, {"inputs": [INPUT | {"name": "OTHER"}]}, {}, 400, "input 'OTHER' is unknown: the model takes TEXT"),
        ("/v2/models/sent/versions/1/x/infer", {}, {}, 400, "inputs must be a list"),
        ("/v2/models//infer", {}, {}, 400, "is not the name of a model"),
        ("/v2/models/sent%5Fmodel/infer", {"inputs": [INPUT]}, {}, 400, "percent-encoded"),
        ("/v2/models/sent/generate_stream", {"TEXT": "x"}, {}, 400, "sent does not stream"),
        (PATH, b"", {}, 400, "not valid JSON"),
        (PATH, b"[" * 100_000, {}, 400, "nested deeper"),
        (PATH, {"inputs": [INPUT]}, {"content_encoding": "br"}, 400, "content encoding 'br' is not supported"),
        (PATH, {"inputs": [INPUT]}, {"inference_header_content_length": "9999"}, 400, "Inference-Header-Content-Length"),
        ("/v2/models/other/infer", {"inputs": [INPUT | {"shape": [1, 2**61]}]}, {}, 400, "more than 2147483648 elements"),
    ],
)
def test_refused_requests_do_not_arrive(
    front: Front, path: str, body: Any, headers: dict[str, str], status: int, reason: str
) -> None:
    before = len(Upstream.seen)
    got, got_headers, text = front.post(path, body, **headers)
    assert (got, got_headers["content-type"]) == (status, "application/json")
    assert reason in json.loads(text)["error"]
    assert len(Upstream.seen) == before


def test_models_of_others_and_reads_pass_untouched(front: Front) -> None:
    set_answer(b"\0anything")
    content = json.dumps({"inputs": [INPUT], "outputs": [{"name": "X"}]}).encode()
    assert front.post("/v2/models/other/infer", content)[::2] == (200, b"\0anything")
    assert Upstream.seen[-1][2] == content
    assert front.post("/v2/models/sent.20260102030405_model/config", b"")[::2] == (200, b"\0anything")


@pytest.mark.parametrize(
    ("status", "text", "told", "message"),
    [
        (404, "Request for unknown model: 'sent' has no available versions", 503, None),
        (400, "model 'sent' is not ready", 503, None),
        (500, "Stub process 'sent_preprocess_0_0' is not healthy. At /opt", 503, "the server is restarting: try again"),
        (400, "Failed, message: E: x\n\nAt:\n  /opt/model.py(12): execute\n", 500, "the model failed: the server's log tells why"),
        (404, "Request for unknown model: 'x' is not found", 404, None),
        (400, "[request id: Stub process] no option 'is not healthy'", 400, None),
        *((status, text, told, None) for status in (400, 503) for text, told in ((BUSY, 503), (LATE, 504))),
        (400, NOT_FINITE, 500, None),
        (400, f"option stop_sequence {BUSY!r} has no tokens", 400, None),
    ],
)
def test_errors(front: Front, status: int, text: str, told: int, message: str | None) -> None:
    set_answer({"error": text}, status, content_type="application/json")
    got, headers, body = front.post(PATH, {"inputs": [INPUT]})
    assert (got, json.loads(body)) == (told, {"error": message or text})
    assert headers.get("retry-after") == ("1" if told == 503 else None)
    assert int(headers["content-length"]) == len(body)


def response(*outputs: tuple[str, bytes]) -> service_pb2.ModelInferResponse:
    return service_pb2.ModelInferResponse(
        model_name="sent",
        outputs=[{"name": name, "shape": [1, 1]} for name, _ in outputs],
        raw_output_contents=[data for _, data in outputs],
    )


def test_grpc_answers(front: Front) -> None:
    label, own = ("LABEL", raw(b"good")), ("DIGEST", struct.pack("<q", digest(TEXT.encode())))
    front.service.answer = response(own, label)
    assert front.infer() == response(label)
    assert front.infer(outputs=[{"name": "LABEL"}]) == response(label)
    assert [one.name for one in front.service.seen[-1].outputs] == ["LABEL", "DIGEST"]
    assert front.infer(outputs=[{"name": "DIGEST"}]) == response(own, label)
    for wrong in (response(("DIGEST", struct.pack("<q", 7)), label), response(label)):
        front.service.answer = wrong
        with pytest.raises(grpc.RpcError) as failed:
            front.infer()
        assert (failed.value.code(), failed.value.details()) == (grpc.StatusCode.INTERNAL, FOREIGN)
    front.service.answer = response(label)
    assert front.infer(model_name="other") == response(label)


def test_grpc_refusals(front: Front) -> None:
    before = len(front.service.seen)
    for changes, code, reason in [
        (
            {"model_name": "sent.20260102030405_model"},
            grpc.StatusCode.PERMISSION_DENIED,
            "sent.20260102030405_model is a step of the ensemble sent",
        ),
        ({"raw_input_contents": [b"\1"]}, grpc.StatusCode.INVALID_ARGUMENT, "input 'TEXT': the length in front"),
        ({"inputs": [{"name": "é%\n", "datatype": "X"}]}, grpc.StatusCode.INVALID_ARGUMENT, "control characters"),
    ]:
        with pytest.raises(grpc.RpcError, match=reason) as failed:
            front.infer(**changes)
        assert failed.value.code() == code
    with pytest.raises(grpc.RpcError, match="compressed gRPC messages are not supported") as failed:
        front.stub.ModelInfer(message(id="x" * 5000), timeout=10, compression=grpc.Compression.Gzip)
    assert failed.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert len(front.service.seen) == before
    (told,) = front.stub.ModelStreamInfer(iter([message(id="7")]), timeout=10)
    assert (told.error_message, told.infer_response.id) == ("sent does not stream: use ModelInfer", "7")
    assert [request.model_name for request in front.service.seen[before:]] == [" "]


@pytest.mark.parametrize("call", ["ModelInfer", "ModelReady"])
@pytest.mark.parametrize("model", ["sent", "other"])
def test_grpc_errors(front: Front, call: str, model: str) -> None:
    request = message(model_name=model) if call == "ModelInfer" else service_pb2.ModelReadyRequest(name=model)
    for code, text, told, expected in [
        (grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'ü' has no available versions", grpc.StatusCode.UNAVAILABLE, None),
        (
            grpc.StatusCode.INTERNAL,
            "Stub process is not healthy",
            grpc.StatusCode.UNAVAILABLE,
            "the server is restarting: try again",
        ),
        (grpc.StatusCode.INTERNAL, "E: x\n\nAt:\n  /opt", grpc.StatusCode.INTERNAL, "the model failed: the server's log tells why"),
        (grpc.StatusCode.UNAVAILABLE, LATE, grpc.StatusCode.DEADLINE_EXCEEDED, None),
        (grpc.StatusCode.INVALID_ARGUMENT, "no 'Stub process'", grpc.StatusCode.INVALID_ARGUMENT, None),
    ]:
        front.service.answer = (code, text)
        with pytest.raises(grpc.RpcError) as failed:
            getattr(front.stub, call)(request, timeout=10)
        assert (failed.value.code(), failed.value.details()) == (told, expected or text)


def test_a_large_request(front: Front) -> None:
    text = "é\n" * 300_000
    set_answer({"outputs": [OUTPUT | {"data": [digest(text.encode())]}, LABEL]})
    assert front.post(PATH, {"inputs": [INPUT | {"data": [text]}]})[0] == 200
    front.service.answer = response(("DIGEST", struct.pack("<q", digest(text.encode()))))
    assert front.infer(raw_input_contents=[raw(text.encode())]) == response()


def test_nothing_failed_inside_the_filter(front: Front) -> None:
    assert "the guard failed" not in front.log.read_text()
    assert "script log: an answer" in front.log.read_text()
