"""The filter's functions, called from Python, and what they must compute, written with the libraries of Python."""

from __future__ import annotations

import json
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import lupa.luajit21 as lupa
from tritonclient.grpc import service_pb2

from serving.front.bootstrap import guard_source
from serving.pbtxt import to_pbtxt

MAX_REQUEST_BYTES = 4 * 2**20
MIXED = 'aé\n"\\/\x00€😀 \t{}[]:,'
"""A text with every kind of character that JSON writes in another way."""
GENERATION = "20260102030405"
FOREIGN = b"the answer belongs to another request"
CALL = b"function(f, ...) local done, result, second, third = pcall(f, ...); return done, result, second, third end"


class RefusedError(Exception):
    """A request that the filter refuses: its message, HTTP status and gRPC code."""

    def __init__(self, message: str, http: str, grpc: str) -> None:
        super().__init__(message)
        self.http, self.grpc = http, grpc


class Guard:
    """The filter in a LuaJIT of its own. Texts are bytes."""

    def __init__(self, repository: Path) -> None:
        self.lua = lupa.LuaRuntime(encoding=None)
        self.functions = self.lua.execute(guard_source(repository, max_request_bytes=MAX_REQUEST_BYTES).encode())
        self._call = self.lua.eval(CALL)
        self.time = self.lua.eval(
            b"function(n, f, ...) local t = os.clock() for i = 1, n do f(...) end return (os.clock() - t) / n end"
        )

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the filter; a refusal is raised, an error in Lua fails the test."""
        done, *results = self._call(self.functions[name.encode()], *arguments)
        if done:
            return results
        assert not isinstance(results[0], bytes), results[0].decode()
        kind = results[0][b"kind"]
        raise RefusedError(results[0][b"message"].decode(), kind[b"http"].decode(), kind[b"grpc"].decode())

    def http(
        self, body: bytes | dict[str, Any], *, model: str = "sent", verb: str = "infer", header: int | str | None = None
    ) -> Any:
        """Check an HTTP request; the result is a dict or None."""
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        length = None if header is None else str(header).encode()
        return checked(self.call("check_http", model.encode(), verb.encode(), length, body)[0])

    def grpc(self, message: service_pb2.ModelInferRequest | bytes) -> Any:
        """Check a gRPC message, or a whole body; the result is a dict or None."""
        return checked(self.call("check_grpc", message if isinstance(message, bytes) else framed(message))[0])

    def answer(self, form: str, expected: str, body: bytes, *, is_asked: bool = False, header: int | None = None) -> Any:
        """Compare an answer: (whether it may leave, body or message, length of the JSON header)."""
        length = None if header is None else str(header).encode()
        return self.call("check_answer", form.encode(), expected.encode(), is_asked, body, length)

    def python(self, value: Any) -> Any:
        """Return a decoded JSON value as Python has it."""
        if isinstance(value, bytes):
            return value.decode()
        if isinstance(value, (bool, int, float)):
            return value
        if value[b"fields"] is not None:
            return {key.decode(): self.python(inner) for key, inner in value[b"fields"].items()}
        if value[b"items"] is None:
            return None
        return [self.python(value[b"items"][i + 1]) for i in range(int(value[b"n"]))]


def checked(table: Any) -> dict[str, Any] | None:
    return None if table is None else {key.decode(): value for key, value in table.items()}


def framed(message: Any) -> bytes:
    text = message if isinstance(message, bytes) else message.SerializeToString()
    return b"\0" + struct.pack(">I", len(text)) + text


def compact(value: Any) -> bytes:
    """Return JSON as Triton writes it, without spaces."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def digest(*texts: bytes) -> int:
    """Digest of a row whose texts stand in the order of the tensors' names."""
    crc = 0
    for text in texts:
        crc = zlib.crc32(struct.pack("<I", len(text)) + text, crc)
    return crc + 2**32 * (sum(map(len, texts)) % 2**20)


def write_ensemble(repository: Path, name: str, *inputs: str, generation: str = GENERATION, **more: Any) -> None:
    """Write what the guard reads of a package."""
    folder = repository / name / generation
    folder.mkdir(parents=True)
    content = {"kind": "repository", "probe": {"inputs": [{"name": one} for one in inputs]}} | more
    (folder / "manifest.json").write_text(json.dumps(content), encoding="utf-8")
    config = {
        "max_batch_size": 8,
        "version_policy": {"specific": {"versions": [int(generation)]}},
        "input": [{"name": one, "data_type": "TYPE_STRING", "dims": [1]} for one in inputs],
    }
    (repository / name / "config.pbtxt").write_text(to_pbtxt(config), encoding="utf-8")


def raw(*texts: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "TEXT", "datatype": "BYTES", "shape": [1, 1], "data": ["x"]} | changes


def infer(*inputs: Any, **more: Any) -> dict[str, Any]:
    return {"inputs": list(inputs) or [tensor()]} | more


def message(**changes: Any) -> service_pb2.ModelInferRequest:
    fields = {
        "model_name": "sent",
        "inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [1, 1]}],
        "raw_input_contents": [raw(b"x")],
    }
    return service_pb2.ModelInferRequest(**(fields | changes))


def one_input(**changes: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [1, 1]} | changes]}


def random_text(rng: random.Random) -> str:
    text = "".join(rng.choice('ab c"\\/\n\té€😀ßx' + chr(rng.randrange(1, 0xD800))) for _ in range(rng.randrange(20)))
    return text * rng.choice([1, 1, 1, 30])


def mutated(rng: random.Random, text: bytes) -> bytes:
    """Change some bytes: replace, insert, remove, repeat."""
    changed = bytearray(text)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(4):
            case 0:
                changed[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                changed[at:at] = rng.choice([b'"', b"\\", b"{", b"]", b",", b"0", b"\\u", b"\xe2", bytes([rng.randrange(256)])])
            case 2:
                del changed[at : at + rng.randrange(1, 4)]
            case 3:
                changed[at:at] = changed[at : at + rng.randrange(1, 30)]
    return bytes(changed)
