"""Requests over HTTP that no client of good will sends, to an ensemble ``one``. Each is a name and what goes over the wire."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tests.helpers.raw_wire import bytes_of, chunked, compact, post

INFER = "/v2/models/one/infer"
BIG = 4_200_000


@dataclass(frozen=True)
class HostileHttp:
    """A request over HTTP.

    Attributes:
        name: What it is.
        make: Returns the bytes, or their parts.
        port: ``http``, ``metrics`` or ``grpc``.
        refused: Whether it must not be answered with 200.
        timeout: How long to wait for an answer, in seconds.
        wait: Whether to wait for an answer; otherwise the connection is reset.
    """

    name: str
    make: Callable[[], bytes | Iterable[bytes]]
    port: str = "http"
    refused: bool = True
    timeout: float = 30.0
    wait: bool = True


def tensor(**changes: object) -> dict[str, object]:
    return {"name": "TEXT", "datatype": "BYTES", "shape": [1, 1], "data": ["x"]} | changes


def infer(request: object, path: str = INFER, **headers: str) -> bytes:
    return post(
        path, request if isinstance(request, bytes) else compact(request), {k.replace("_", "-"): v for k, v in headers.items()}
    )


def one_input(**changes: object) -> bytes:
    return infer({"inputs": [tensor(**changes)]})


def binary(size: object, data: bytes, *, header: str | None = None, shape: list[int] | None = None) -> bytes:
    given = {"name": "TEXT", "datatype": "BYTES", "shape": shape or [1, 1], "parameters": {"binary_data_size": size}}
    head = compact({"inputs": [given]})
    return post(INFER, head + data, {"Inference-Header-Content-Length": str(len(head)) if header is None else header})


def step(name: str, inputs: list[dict[str, object]]) -> bytes:
    return infer({"inputs": inputs}, f"/v2/models/one{name}/infer")


def ids(shape: list[int], data: list[int]) -> list[dict[str, object]]:
    return [
        {"name": name, "datatype": "INT64", "shape": shape, "data": data}
        for name in ("input_ids", "attention_mask", "token_type_ids")
    ]


def logits(shape: list[int]) -> list[dict[str, object]]:
    return [{"name": "logits", "datatype": "FP32", "shape": shape, "data": [0.0, 1.0]}]


def form(path: str) -> bytes:
    return post(path, b"x" * BIG, {"Content-Type": "application/x-www-form-urlencoded"})


def gzipped(size: int) -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    return b"".join([packer.compress(b"[" * 2**20) for _ in range(size >> 20)]) + packer.flush()


def slow(parts: bytes, pieces: int) -> Iterable[bytes]:
    yield parts
    for _ in range(pieces):
        yield b"x"


GOOD = compact({"inputs": [tensor()]})
SMUGGLED = post("/v2/models/one.20260102030405_model/infer", compact({"inputs": ids([1, 2**61], [1])}))
H = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n".encode()


def _known() -> list[HostileHttp]:
    """Those that have ended Triton or a step."""
    classification = {"outputs": [{"name": "LABEL", "parameters": {"classification": 1}}]}
    found = [
        HostileHttp("classification extension", lambda: infer({"inputs": [tensor()]} | classification)),
        HostileHttp("nested 50,000 deep in data", lambda: _nested_data(50_000)),
        HostileHttp("nested 1,000,000 deep in inputs", lambda: infer(b'{"inputs":' + b"[" * 1_000_000)),
        HostileHttp("nested and closed", lambda: infer(b'{"inputs":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}")),
        HostileHttp("nested objects", lambda: infer(b'{"a":' * 400_000)),
        HostileHttp("600,000 chunks of one byte", lambda: chunked(INFER, [b"x"] * 600_000)),
        HostileHttp("1,000,000 chunks of one byte", lambda: chunked(INFER, [b"x"] * 1_000_000)),
        HostileHttp("chunks to a path without a body", lambda: chunked("/v2/models/stats", [b"x"] * 600_000), refused=False),
        HostileHttp("chunks to metrics", lambda: chunked("/metrics", [b"x"] * 600_000), port="metrics"),
    ]
    for path in ("/metrics", "/metrics/front"):
        flood = chunked(path, [b"x"] * 600_000).replace(b"POST", b"GET", 1)
        found.append(HostileHttp(f"chunks to GET {path}", lambda flood=flood: flood, port="metrics", refused=False))
        body = post(path, b"x" * BIG, {"Content-Type": "application/x-www-form-urlencoded"}, method="GET")
        found.append(HostileHttp(f"form to GET {path}", lambda body=body: body, port="metrics", refused=False))
    for path in (INFER, "/v2", "/v2/health/live", "/", "/nowhere", "/v2/models/one", "/v2/repository/index"):
        found.append(HostileHttp(f"4.2 MB as a form to {path}", lambda path=path: form(path)))
    for path in ("/metrics", "/", "/metrics/front"):
        found.append(
            HostileHttp(f"4.2 MB as a form to {path} of the metrics", lambda path=path: form(path), port="metrics", refused=False)
        )
    for shape in ([1, 2**61], [2**32 + 1, 3], [2**32, 3], [64, 2**58], [64, 512]):
        found.append(
            HostileHttp(f"straight to the model: {shape}", lambda shape=shape: step(".20260102030405_model", ids(shape, [1, 2, 3])))
        )
        found.append(HostileHttp(f"the ensemble: {shape}", lambda shape=shape: one_input(shape=shape, data=["a", "b", "c"])))
    for shape in ([2**32, 2], [2**32, 1], [1, 2]):
        found.append(
            HostileHttp(f"straight to postprocess: {shape}", lambda shape=shape: step(".20260102030405_postprocess", logits(shape)))
        )
    return found


def _nested_data(depth: int) -> bytes:
    text = json.dumps({"inputs": [tensor(data=0)]}).replace('"data": 0', '"data": ' + "[" * depth + '"x"' + "]" * depth)
    return infer(text.encode())


def _binary() -> list[HostileHttp]:
    text = bytes_of(b"good")
    cases = {
        "length prefix too long": binary(len(text), b"\xff\0\0\0good"),
        "length prefix of 4 GB": binary(len(text), b"\xff\xff\xff\xffgood"),
        "length prefix too short": binary(len(text), b"\1\0\0\0good"),
        "half a prefix": binary(2, b"\0\0"),
        "size larger than the body": binary(2**40, text),
        "negative size": binary(-1, text),
        "fractional size": binary(4.5, text),
        "size as a string": binary("8", text),
        "size of 2^63": binary(2**63, text),
        "bytes that belong to nothing": binary(len(text), text + b"more"),
        "negative header length": binary(len(text), text, header="-1"),
        "huge header length": binary(len(text), text, header="999999999999999999999"),
        "hexadecimal header length": binary(len(text), text, header="0x10"),
        "header length 0": binary(len(text), text, header="0"),
        "empty header length": binary(len(text), text, header=""),
        "more rows than data": binary(len(text), text, shape=[2, 1]),
        "two in one burst": binary(8, b"\xff\0\0\0good") * 2,
    }
    return [HostileHttp(f"binary: {name}", lambda made=made: made) for name, made in cases.items()]


def _json() -> list[HostileHttp]:
    twice = b'{"inputs":[{"name":"TEXT","datatype":"BYTES","shape":[1,1],"data":["x"]%s}]%s}'
    cases: dict[str, bytes] = {
        "inputs twice": infer(twice % (b"", b',"inputs":[]')),
        "data twice": infer(twice % (b',"data":["y"]', b"")),
        "shape twice": infer(twice % (b',"shape":[1,2305843009213693952]', b"")),
        "escaped key twice": infer(twice % (b',"sh\\u0061pe":[1,2305843009213693952]', b"")),
        "escaped classification": infer(twice % (b"", b',"outputs":[{"name":"LABEL","parameters":{"cl\\u0061ssification":1}}]')),
        "escaped shared memory": infer(twice % (b',"parameters":{"sh\\u0061red_memory_region":"x"}', b"")),
        "shared memory": infer({"inputs": [tensor(parameters={"shared_memory_region": "x", "shared_memory_byte_size": 8})]}),
        "shared memory of an output": infer(
            {"inputs": [tensor()], "outputs": [{"name": "SCORES", "parameters": {"shared_memory_region": "x"}}]}
        ),
        "input twice": infer({"inputs": [tensor(), tensor()]}),
        "output twice": infer({"inputs": [tensor()], "outputs": [{"name": "LABEL"}] * 2}),
        "65 rows": one_input(shape=[65, 1], data=["x"] * 65),
        "0 rows": one_input(shape=[0, 1], data=[]),
        "negative shape": one_input(shape=[-1, 1]),
        "fractional shape": one_input(shape=[1.5, 1]),
        "shape of 1e400": infer(GOOD.replace(b"[1, 1]", b"[1e400, 1]")),
        "shape NaN": infer(GOOD.replace(b"[1, 1]", b"[NaN, 1]")),
        "shape as text": one_input(shape="1"),
        "1,000 dims": one_input(shape=[1] * 1000),
        "no shape": infer(GOOD.replace(b'"shape": [1, 1], ', b"")),
        "no inputs": infer({}),
        "inputs null": infer({"inputs": None}),
        "input null": infer({"inputs": [None]}),
        "a list": infer([]),
        "a number": infer(b"1"),
        "nothing": infer(b""),
        "not JSON": infer(b"\0\xff" * 50),
        "NUL after it": infer(GOOD + b"\0"),
        "two objects": infer(GOOD + GOOD),
        "not UTF-8": infer(GOOD.replace(b'"x"', b'"\xff"')),
        "lone surrogate": infer(GOOD.replace(b'"x"', b'"\\ud800"')),
        "200,001 values": one_input(data=["x"] * 200_001),
        "other datatype": one_input(datatype="FP32", data=[1.0]),
        "unknown datatype": one_input(datatype="X"),
        "unknown input": one_input(name="OTHER"),
        "unknown option": infer({"inputs": [tensor()], "parameters": {"function_to_apply": "is not healthy"}}),
        "sequence": infer({"inputs": [tensor()], "parameters": {"sequence_id": -5, "sequence_start": "x"}}),
        "generate_stream": infer({"TEXT": "x"}, "/v2/models/one/generate_stream"),
        "generate with a number": infer({"TEXT": 5}, "/v2/models/one/generate"),
        "generate nested": infer(b'{"TEXT":' + b"[" * 100_000, "/v2/models/one/generate"),
        "name that the log is watched for": one_input(name="X is not healthy, belongs to another request"),
    }
    answered = {
        "NUL in the text": infer(GOOD.replace(b'"x"', b'"a\\u0000b"')),
        "id that the log is watched for": infer({"id": "is not healthy belongs to another request", "inputs": [tensor()]}),
        "text that the log is watched for": one_input(data=["Stub process is not healthy. belongs to another request"]),
        "digest asked for": infer({"inputs": [tensor()], "outputs": [{"name": "DIGEST", "parameters": {"binary_data": True}}]}),
        "digest asked for among others": infer(
            {"inputs": [tensor()], "outputs": [{"name": n} for n in ("SCORE", "DIGEST", "LABEL")]}
        ),
        "text that looks like a digest": one_input(data=['{"name":"DIGEST","datatype":"INT64","shape":[1,1],"data":[1]}']),
        "all answers binary": infer({"inputs": [tensor()], "parameters": {"binary_data_output": True}}),
        "outputs empty": infer({"inputs": [tensor()], "outputs": []}),
        "time limit of a microsecond": infer({"inputs": [tensor()], "parameters": {"timeout": 1}}),
        "priority": infer({"inputs": [tensor()], "parameters": {"priority": 2**63}}),
        "text of 1 MB": one_input(data=["good film " * 100_000]),
        "generate": infer({"TEXT": "x"}, "/v2/models/one/generate"),
        "generate with the name of a digest": infer({"TEXT": "x", "DIGEST": 1}, "/v2/models/one/generate"),
    }
    return [HostileHttp(f"JSON: {name}", lambda made=made: made) for name, made in cases.items()] + [
        HostileHttp(f"odd: {name}", lambda made=made: made, refused=False) for name, made in answered.items()
    ]


def _paths() -> list[HostileHttp]:
    target = compact({"inputs": ids([1, 2**61], [1])})
    paths = (
        "/v2/models/one%5Fmodel/infer",
        "/v2/models/one.20260102030405_model%2Finfer",
        "/v2/models/one/../one.20260102030405_model/infer",
        "/v2/models/./one.20260102030405_model/infer",
        "/v2//models//one.20260102030405_model//infer",
        "/v2/models/one.20260102030405_model/versions/1/infer",
        "/v2/models/one.20260102030405_model/infer/",
        "/v2/models/one.20260102030405_model/infer?a=/v2/models/one/infer",
        "/v2/models/one.20260102030405_model;x/infer",
        "/v2/models/one/infer/../../one.20260102030405_model/infer",
        "/v2/models/one/..%2fone.20260102030405_model/infer",
        "/v2/models/one\\..\\one.20260102030405_model\\infer",
        "/V2/MODELS/one.20260102030405_model/INFER",
        "http://x/v2/models/one.20260102030405_model/infer",
        "//x/v2/models/one.20260102030405_model/infer",
        "/v2/models/one.20260102030405_model/generate",
        "/v2/models/one.20260102030405_model/versions/1/generate_stream",
        "/v2/models/%00/infer",
        "/v2/models/" + "a" * 20_000 + "/infer",
        "/v2/models/one/versions/99999999999999999999999/infer",
        "*",
    )
    found = [HostileHttp(f"path {path[:60]}", lambda path=path: infer(target, path)) for path in paths]
    closed = {
        "/v2/repository/index": {},
        "/v2/repository/models/one/unload": {},
        "/v2/repository/models/one/load": {"parameters": {"config": "{}"}},
        "/v2/logging": {"log_file": "/tmp/x"},  # noqa: S108 - a file that nobody may create
        "/v2/trace/setting": {"trace_level": ["TENSORS"]},
        "/v2/models/one/trace/setting": {"trace_file": "x"},
        "/v2/systemsharedmemory/region/x/register": {"key": "/x", "offset": 0, "byte_size": 8},
        "/v2/systemsharedmemory/unregister": {},
        "/v2/cudasharedmemory/region/x/register": {},
        "/v2/systemsharedmemory/status": {},
    }
    found += [HostileHttp(f"closed {path}", lambda p=path, b=body: infer(b, p)) for path, body in closed.items()]
    for path in (
        "/quitquitquit",
        "/metrics/front/../../quitquitquit",
        "/metrics/front%2f..%2fquitquitquit",
        "/config_dump",
        "/runtime_modify?x=1",
    ):
        found.append(HostileHttp(f"administration {path}", lambda path=path: post(path, b""), port="metrics"))
        found.append(HostileHttp(f"administration at HTTP {path}", lambda path=path: post(path, b"")))
    return found


def _connections() -> list[HostileHttp]:
    size = str(len(GOOD)).encode()
    cases: dict[str, Callable[[], bytes | Iterable[bytes]]] = {
        "two lengths": lambda: H + b"Content-Length: 5\r\nContent-Length: " + size + b"\r\n\r\n" + GOOD,
        "length and chunks": lambda: H + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        "chunks with a space": lambda: H + b"Transfer-Encoding : chunked\r\nContent-Length: 0\r\n\r\n" + SMUGGLED,
        "chunks twice": lambda: H + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + SMUGGLED,
        "folded header": lambda: H + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        "chunk size too large": lambda: H + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n" + GOOD,
        "negative chunk": lambda: H + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n" + GOOD,
        "chunk extension of 1 MB": lambda: H + b"Transfer-Encoding: chunked\r\n\r\n5;" + b"a" * 2**20 + b"\r\n",
        "negative length": lambda: H + b"Content-Length: -1\r\n\r\n" + GOOD,
        "length with a plus": lambda: H + b"Content-Length: +" + size + b"\r\n\r\n" + GOOD,
        "length of 2^64": lambda: H + b"Content-Length: 18446744073709551617\r\n\r\n" + GOOD,
        "200 headers": lambda: H + b"".join(b"X-%d: y\r\n" % i for i in range(200)) + b"Content-Length: 0\r\n\r\n",
        "header of 64 KB": lambda: H + b"X: " + b"y" * 65_536 + b"\r\n\r\n",
        "NUL in a header": lambda: H + b"X: \0\r\nContent-Length: 0\r\n\r\n",
        "no host": lambda: b"GET /v2 HTTP/1.1\r\n\r\n",
        "HTTP/0.9": lambda: b"GET /v2\r\n\r\n",
        "HTTP/3.0": lambda: b"GET /v2 HTTP/3.0\r\nHost: x\r\n\r\n",
        "CONNECT": lambda: b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET with a body": lambda: post(INFER, GOOD, method="GET"),
        "DELETE": lambda: post("/v2/models/one", b"", method="DELETE"),
        "random bytes": lambda: bytes(range(256)) * 100,
        "TLS hello": lambda: bytes.fromhex("160301020001000001fc0303") + b"\0" * 512,
        "gzip bomb of 500 MB": lambda: infer(gzipped(500 * 2**20), content_encoding="gzip"),
        "gzip cut off": lambda: infer(gzip.compress(GOOD)[:40], content_encoding="gzip"),
        "gzip in gzip": lambda: infer(gzip.compress(gzip.compress(GOOD)), content_encoding="gzip, gzip"),
        "not gzip": lambda: infer(GOOD, content_encoding="gzip"),
        "unknown encoding": lambda: infer(GOOD, content_encoding="x-own"),
        "deflate": lambda: infer(zlib.compress(GOOD), content_encoding="deflate"),
        "form in chunks": lambda: chunked(INFER, [b"x" * 65_536] * 80).replace(
            b"application/json", b"application/x-www-form-urlencoded"
        ),
        "multipart": lambda: infer(b"x" * BIG, content_type="multipart/form-data; boundary=x"),
        "gRPC by HTTP/1.1": lambda: infer(GOOD, "/inference.GRPCInferenceService/ModelInfer", content_type="application/grpc"),
    }
    found = [HostileHttp(f"connection: {name}", make, timeout=1) for name, make in cases.items()]
    odd: dict[str, Callable[[], bytes | Iterable[bytes]]] = {
        "gzip": lambda: infer(gzip.compress(GOOD), content_encoding="gzip"),
        "gzip without its checksum": lambda: infer(gzip.compress(GOOD)[:-8], content_encoding="gzip"),
        "empty content type": lambda: infer(GOOD, content_type=""),
        "form of a small request": lambda: infer(GOOD, content_type="application/x-www-form-urlencoded"),
        "100 requests at once": lambda: post(INFER, GOOD) * 100,
        "expect": lambda: H + b"Expect: 100-continue\r\nContent-Length: " + size + b"\r\n\r\n" + GOOD,
        "upgrade to HTTP/2": lambda: H + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: " + size + b"\r\n\r\n" + GOOD,
        "HEAD": lambda: post("/v2", b"", method="HEAD"),
        "OPTIONS": lambda: post("/v2", b"", method="OPTIONS"),
        "headers of Envoy": lambda: infer(
            GOOD, x_envoy_upstream_rq_timeout_ms="1", x_envoy_original_path="/v2/models/one.20260102030405_model/infer"
        ),
    }
    found += [HostileHttp(f"connection: {name}", make, refused=False, timeout=1) for name, make in odd.items()]
    found += [
        HostileHttp("connection: body that never comes", lambda: H + b"Content-Length: 100\r\n\r\n", timeout=0.3),
        HostileHttp("connection: body byte by byte", lambda: slow(H + b"Content-Length: 10000\r\n\r\n", 100), timeout=0.3),
        HostileHttp("connection: reset after the request", lambda: post(INFER, GOOD), wait=False),
        HostileHttp("connection: reset within the body", lambda: H + b"Content-Length: 9000\r\n\r\nxxx", wait=False),
    ]
    return found


HOSTILE_HTTP = [*_known(), *_binary(), *_json(), *_paths(), *_connections()]
