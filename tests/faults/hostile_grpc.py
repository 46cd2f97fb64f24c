"""Calls of gRPC, and frames of HTTP/2, that no client of good will sends, to an ensemble ``one``."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

from tests.helpers.raw_wire import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    bytes_of,
    grpc_frame,
    grpc_headers,
    hpack,
    http2_frame,
    text_message,
)


@dataclass(frozen=True)
class HostileCall:
    """A call with a message of any content.

    Attributes:
        name: What it is.
        message: The message.
        method: The method of Triton's service.
        refused: Whether it must not be answered.
        metadata: Metadata of the call.
        timeout: Its deadline in seconds.
    """

    name: str
    message: bytes
    method: str = "ModelInfer"
    refused: bool = True
    metadata: tuple[tuple[str, str], ...] = ()
    timeout: float = 30.0

    def send(self, channel: grpc.Channel) -> str:
        """Send it and return the status and the message, or ``answered``."""
        call = channel.unary_unary(f"/inference.GRPCInferenceService/{self.method}")
        try:
            call(self.message, timeout=self.timeout, metadata=self.metadata)
        except grpc.RpcError as error:
            return f"{error.code().name} {str(error.details())[:90]}"
        return "answered"


@dataclass(frozen=True)
class HostileFrames:
    """Frames of HTTP/2 after the preface of a connection.

    Attributes:
        name: What they are.
        make: Returns the frames.
        refused: Whether the call on stream 1 must not be answered.
    """

    name: str
    make: Callable[[], Iterable[bytes]]
    refused: bool = True
    timeout: float = 5.0
    port: str = "grpc"


def request(**fields: object) -> bytes:
    return bytes(text_message(**fields).SerializeToString())


def shaped(model: str, names: tuple[str, ...], datatype: str, shape: list[int], data: bytes) -> bytes:
    inputs = [{"name": name, "datatype": datatype, "shape": shape} for name in names]
    return bytes(
        service_pb2.ModelInferRequest(model_name=model, inputs=inputs, raw_input_contents=[data] * len(names)).SerializeToString()
    )


def _classification() -> bytes:
    outputs = [{"name": "LABEL", "parameters": {"classification": {"int64_param": 1}}}]
    return request(outputs=outputs)


def _calls() -> list[HostileCall]:
    ids = ("input_ids", "attention_mask", "token_type_ids")
    good = request()
    found = [HostileCall("classification extension", _classification())]
    for shape in ([1, 2**61], [2**32 + 1, 3], [2**32, 3], [64, 2**58], [64, 512]):
        data = np.ones(3, np.int64).tobytes() if shape != [64, 512] else np.ones(shape, np.int64).tobytes()
        found.append(HostileCall(f"straight to the model: {shape}", shaped("one.20260102030405_model", ids, "INT64", shape, data)))
        found.append(HostileCall(f"the ensemble: {shape}", shaped("one", ("TEXT",), "BYTES", shape, bytes_of(b"x") * 3)))
    for shape in ([2**32, 2], [2**32, 1], [1, 2]):
        data = np.zeros(2, np.float32).tobytes()
        found.append(
            HostileCall(
                f"straight to postprocess: {shape}", shaped("one.20260102030405_postprocess", ("logits",), "FP32", shape, data)
            )
        )
    named = lambda name: b"\x0a" + bytes((len(name),)) + name  # noqa: E731
    raw = {
        "a step's name last": good + named(b"one.20260102030405_model"),
        "a step's name first": named(b"one.20260102030405_model")
        + shaped("one.20260102030405_model", ids, "INT64", [1, 2**61], b"\1" * 8),
        "a group": good + b"\x53\x54",
        "a group without an end": good + b"\x53",
        "a group within an input": b"\x2a\x02\x13\x14" + good,
        "wire type 6": good + b"\x56",
        "field 0": good + b"\x02\x00",
        "varint of 11 bytes": good + b"\x08" + b"\xff" * 10 + b"\x01",
        "length past the end": good + b"\x3a\xff\xff\xff\xff\x0f",
        "cut off": good[:-3],
        "nothing": b"",
        "random": bytes(range(256)) * 8,
        "not UTF-8 in the name": b"\x0a\x03one\x12\x01\xff" + good,
        "nested parameters": good + b"\x22" * 1000,
        "10,001 inputs": good + b"\x2a\x00" * 10_001,
        "length prefix too long": request(raw_input_contents=[b"\xff\0\0\0x"]),
        "length prefix of 4 GB": request(raw_input_contents=[b"\xff\xff\xff\xffx"]),
        "no data": request(raw_input_contents=[]),
        "raw data twice": request(raw_input_contents=[bytes_of(b"x")] * 2),
        "raw and typed data": request(
            inputs=[{"name": "TEXT", "datatype": "BYTES", "shape": [1, 1], "contents": {"bytes_contents": [b"x"]}}]
        ),
        "negative shape": shaped("one", ("TEXT",), "BYTES", [-1, 1], bytes_of(b"x")),
        "1,000 dims": shaped("one", ("TEXT",), "BYTES", [1] * 1000, bytes_of(b"x")),
        "0 rows": shaped("one", ("TEXT",), "BYTES", [0, 1], b""),
        "65 rows": shaped("one", ("TEXT",), "BYTES", [65, 1], bytes_of(b"x") * 65),
        "input twice": shaped("one", ("TEXT", "TEXT"), "BYTES", [1, 1], bytes_of(b"x")),
        "not UTF-8": request(text=b"\xff\xfe"),
        "shared memory": request(
            inputs=[
                {
                    "name": "TEXT",
                    "datatype": "BYTES",
                    "shape": [1, 1],
                    "parameters": {"shared_memory_region": {"string_param": "x"}, "shared_memory_byte_size": {"int64_param": 8}},
                }
            ],
            raw_input_contents=[],
        ),
        "shared memory of an output": request(
            outputs=[{"name": "SCORE", "parameters": {"shared_memory_region": {"string_param": "x"}}}]
        ),
        "unknown model": request(model="other"),
        "path as the model": request(model="../one"),
        "name that the log is watched for": request(model="Stub process is not healthy, belongs to another request"),
        "input that the log is watched for": shaped(
            "one", ("is not healthy belongs to another request",), "BYTES", [1, 1], bytes_of(b"x")
        ),
        "option that the log is watched for": request(parameters={"function_to_apply": {"string_param": "is not healthy"}}),
        "NUL in a parameter": request(parameters={"a\0b": {"string_param": "x"}}),
        "sequence": request(parameters={"sequence_id": {"string_param": "x"}, "sequence_start": {"int64_param": 5}}),
        "4.2 MB": request(text=b"x" * 4_200_000),
    }
    found += [HostileCall(f"message: {name}", message) for name, message in raw.items()]
    odd = {
        "unknown fields": good + b"\xfa\xff\xff\xff\x0f\x03abc",
        "id that the log is watched for": request(id="is not healthy belongs to another request"),
        "digest asked for": request(outputs=[{"name": "DIGEST"}]),
        "digest among others": request(outputs=[{"name": name} for name in ("SCORE", "DIGEST", "LABEL")]),
        "time limit of a microsecond": request(parameters={"timeout": {"int64_param": 1}}),
        "time limit below zero": request(parameters={"timeout": {"int64_param": -1}}),
        "priority": request(parameters={"priority": {"uint64_param": 2**64 - 1}}),
        "text of 1 MB": request(text=b"good film " * 100_000),
        "typed data": request(
            inputs=[{"name": "TEXT", "datatype": "BYTES", "shape": [1, 1], "contents": {"bytes_contents": [b"x"]}}],
            raw_input_contents=[],
        ),
        "empty last response": request(parameters={"triton_enable_empty_final_response": {"bool_param": True}}),
    }
    found += [HostileCall(f"odd: {name}", message, refused=False) for name, message in odd.items()]
    closed = {
        "RepositoryIndex": service_pb2.RepositoryIndexRequest(),
        "RepositoryModelLoad": service_pb2.RepositoryModelLoadRequest(model_name="one"),
        "RepositoryModelUnload": service_pb2.RepositoryModelUnloadRequest(model_name="one"),
        "SystemSharedMemoryRegister": service_pb2.SystemSharedMemoryRegisterRequest(name="x", key="/x", byte_size=8),
        "SystemSharedMemoryUnregister": service_pb2.SystemSharedMemoryUnregisterRequest(),
        "SystemSharedMemoryStatus": service_pb2.SystemSharedMemoryStatusRequest(),
        "CudaSharedMemoryRegister": service_pb2.CudaSharedMemoryRegisterRequest(name="x"),
        "TraceSetting": service_pb2.TraceSettingRequest(model_name="one"),
        "LogSettings": service_pb2.LogSettingsRequest(settings={"log_verbose_level": {"uint32_param": 9}}),
        "ModelStreamInfer": text_message(),
        "NoSuchMethod": text_message(),
    }
    found += [HostileCall(f"closed: {method}", bytes(message.SerializeToString()), method) for method, message in closed.items()]
    found += [
        HostileCall("deadline of a millisecond", good, refused=False, timeout=0.001),
        HostileCall("metadata of 30 KB", good, refused=False, metadata=(("x", "y" * 30_000),)),
    ]
    return found


def _one_call(*frames: bytes, headers: bytes | None = None) -> list[bytes]:
    """Return a call on stream 1 with these frames of data."""
    return [http2_frame(HEADERS, END_HEADERS, 1, headers or grpc_headers("ModelInfer")), *frames]


def _data(payload: bytes, *, ends: bool = True) -> bytes:
    return http2_frame(DATA, END_STREAM if ends else 0, 1, payload)


GRPC = hpack([("content-type", "application/grpc"), ("te", "trailers")])


def _rapid_reset() -> Iterable[bytes]:
    for stream in range(1, 2001, 2):
        yield http2_frame(HEADERS, END_HEADERS, stream, grpc_headers("ModelInfer")) + http2_frame(
            RST_STREAM, 0, stream, b"\0\0\0\x08"
        )


def _abandoned() -> Iterable[bytes]:
    framed = grpc_frame(request())
    for stream in range(1, 201, 2):
        yield http2_frame(HEADERS, END_HEADERS, stream, grpc_headers("ModelInfer"))
        yield http2_frame(DATA, END_STREAM, stream, framed) + http2_frame(RST_STREAM, 0, stream, b"\0\0\0\x08")


def _frames() -> list[HostileFrames]:
    good = grpc_frame(request())
    call = grpc_headers("ModelInfer")
    cases: dict[str, Callable[[], Iterable[bytes]]] = {
        "two messages": lambda: _one_call(_data(good + good)),
        "no message": lambda: _one_call(_data(b"")),
        "half a length": lambda: _one_call(_data(b"\0\0\0")),
        "length too long": lambda: _one_call(_data(struct.pack(">BI", 0, 2**32 - 1) + b"x")),
        "compressed, not said": lambda: _one_call(_data(grpc_frame(gzip.compress(request()), 1))),
        "compressed": lambda: _one_call(
            _data(grpc_frame(gzip.compress(request()), 1)), headers=grpc_headers("ModelInfer", ("grpc-encoding", "gzip"))
        ),
        "compressed bomb": lambda: _one_call(
            _data(grpc_frame(gzip.compress(b"\0" * 10_000_000), 1)), headers=grpc_headers("ModelInfer", ("grpc-encoding", "gzip"))
        ),
        "flag 255": lambda: _one_call(_data(grpc_frame(request(), 255))),
        "content encoding": lambda: _one_call(
            _data(gzip.compress(good)), headers=grpc_headers("ModelInfer", ("content-encoding", "gzip"))
        ),
        "resets": _rapid_reset,
        "abandoned calls": _abandoned,
        "10,000 pings": lambda: [http2_frame(PING, 0, 0, b"12345678") * 10_000],
        "10,000 settings": lambda: [http2_frame(SETTINGS, 0, 0, b"\0\3\0\0\0\1") * 10_000],
        "continuations": lambda: [
            http2_frame(HEADERS, 0, 1, call),
            http2_frame(CONTINUATION, 0, 1, hpack([("x", "y" * 100)])) * 5_000,
        ],
        "empty frames of data": lambda: _one_call(_data(b"", ends=False) * 20_000),
        "window too large": lambda: _one_call(http2_frame(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff") * 2),
        "window of 0": lambda: _one_call(http2_frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\0")),
        "depends on itself": lambda: [http2_frame(PRIORITY, 0, 1, b"\0\0\0\1\0"), http2_frame(HEADERS, END_HEADERS, 0, call)],
        "upper case header": lambda: _one_call(_data(good), headers=grpc_headers("ModelInfer", ("Upper", "x"))),
        "two paths": lambda: _one_call(_data(good), headers=hpack([(":path", "/x")]) + call),
        "no path": lambda: _one_call(_data(good), headers=hpack([(":method", "POST"), (":scheme", "http")])),
        "line break in a header": lambda: _one_call(_data(good), headers=grpc_headers("ModelInfer", ("x", "a\r\nb"))),
        "key of the closed parts": lambda: _one_call(
            _data(grpc_frame(b"")), headers=grpc_headers("RepositoryIndex", ("triton-grpc-protocol-closed\n", "\n"))
        ),
        "data before headers": lambda: [http2_frame(DATA, 0, 1, good)],
        "frame too large": lambda: [http2_frame(DATA, 0, 1, b"x" * 2**20)],
        "header table": lambda: [http2_frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff")],
        "path to a step's file": lambda: _one_call(
            _data(good),
            headers=hpack(
                [(":method", "POST"), (":scheme", "http"), (":path", "/inference.GRPCInferenceService/../x"), (":authority", "x")]
            )
            + GRPC,
        ),
        "streams": lambda: _one_call(_data(good), headers=grpc_headers("ModelStreamInfer")),
    }
    odd: dict[str, Callable[[], Iterable[bytes]]] = {
        "a call": lambda: _one_call(_data(good)),
        "in pieces of one byte": lambda: _one_call(
            b"".join(_data(good[i : i + 1], ends=False) for i in range(len(good))), _data(b"")
        ),
        "deadline of a nanosecond": lambda: _one_call(_data(good), headers=grpc_headers("ModelInfer", ("grpc-timeout", "1n"))),
        "deadline of years": lambda: _one_call(_data(good), headers=grpc_headers("ModelInfer", ("grpc-timeout", "99999999H"))),
        "deadline below zero": lambda: _one_call(_data(good), headers=grpc_headers("ModelInfer", ("grpc-timeout", "-1S"))),
    }
    # frames that begin nothing and break nothing get no answer: half a second tells it
    unanswered = {"resets", "abandoned calls", "10,000 pings", "10,000 settings", "empty frames of data", "window too large"}
    return [HostileFrames(f"frames: {name}", make, timeout=0.5 if name in unanswered else 5.0) for name, make in cases.items()] + [
        HostileFrames(f"frames, odd: {name}", make, refused=False) for name, make in odd.items()
    ]


HOSTILE_CALLS = _calls()
HOSTILE_FRAMES = [replace(frames, port=port, name=f"{frames.name} to {port}") for frames in _frames() for port in ("grpc", "http")]
"""To either port: both speak HTTP/2."""
