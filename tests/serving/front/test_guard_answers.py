"""The filter removes from an answer only what it added, and keeps back an answer to another request."""

from __future__ import annotations

import json
import random
import struct
from typing import Any

import pytest
from tritonclient.grpc import service_pb2

from serving.runtime.failure_messages import BUSY, LATE, NOT_RUN
from tests.serving.front.guard_in_python import (
    FOREIGN,
    MIXED,
    Guard,
    compact,
    framed,
    infer,
    message,
    mutated,
    random_text,
    raw,
    tensor,
)

TRAPS = [
    '{"name":"DIGEST","datatype":"INT64","shape":[1,1],"data":[7]}',
    ',{"name":"DIGEST",',
    '{"binary_data_size":7}',
    "{",
    "DIGEST",
    '\\"DIGEST":7',
    '{\\"name":"DIGEST",',
    MIXED,
]
"""Texts of clients that look like a part of the answer."""


def answer_json(rng: random.Random, rows: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    outputs = [
        {"name": "LABEL", "datatype": "BYTES", "shape": [rows, 1], "data": [rng.choice(TRAPS) for _ in range(rows)]},
        {"name": "SCORES", "datatype": "FP32", "shape": [rows, 2], "data": [rng.random() for _ in range(2 * rows)]},
    ]
    outputs = rng.sample(outputs, rng.randrange(3))
    content = {"model_name": "sent", "id": rng.choice(["", *TRAPS]), "parameters": {"a": rng.choice(TRAPS)}, "outputs": outputs}
    return outputs, content


@pytest.mark.parametrize("is_binary", [False, True])
def test_http_answers_lose_their_digest_and_nothing_else(guard: Guard, is_binary: bool) -> None:
    rng = random.Random(5)
    for _ in range(300):
        rows = rng.choice([1, 3])
        digests = [rng.randrange(2**52) for _ in range(rows)]
        outputs, content = answer_json(rng, rows)
        datas = [b""] * len(outputs)
        if is_binary:
            for i, one in enumerate(outputs):
                if rng.random() < 0.7:
                    datas[i] = rng.randbytes(rng.randrange(20))
                    del one["data"]
                    one["parameters"] = {"binary_data_size": len(datas[i])}
        plain = compact(content)
        added: dict[str, Any] = {"name": "DIGEST", "datatype": "INT64", "shape": [rows, 1]}
        own = b""
        if is_binary and rng.random() < 0.7:
            own = struct.pack(f"<{rows}q", *digests)
            added["parameters"] = {"binary_data_size": len(own)}
        else:
            added["data"] = digests
        at = rng.randrange(len(outputs) + 1)
        whole = compact(content | {"outputs": [*outputs[:at], added, *outputs[at:]]})
        body, head = whole + b"".join([*datas[:at], own, *datas[at:]]), len(whole) if is_binary else None
        expected = ",".join(map(str, digests))
        passed, rest, length = guard.answer("json", expected, body, header=head)
        assert passed, body
        assert json.loads(rest[: int(length)]) == content
        assert rest[: int(length)] == plain
        assert rest[int(length) :] == b"".join(datas)
        assert guard.answer("json", expected, body, is_asked=True, header=head)[1] == body
        assert guard.answer("json", expected + "1", body, header=head)[:2] == [None, FOREIGN]
        assert guard.answer("json", expected, plain + b"".join(datas), header=len(plain) if is_binary else None)[:2] == [
            None,
            FOREIGN,
        ]


def test_generate_answers_lose_their_digest_and_nothing_else(guard: Guard) -> None:
    for digests in ([5], [2**52 - 1, 0]):
        for at in range(4):
            members = [("model_name", "sent"), ("LABEL", TRAPS), ("ENTITIES", 'a","DIGEST":5,"')]
            added = ("DIGEST", digests[0] if len(digests) == 1 else digests)
            body = compact(dict([*members[:at], added, *members[at:]]))
            expected = ",".join(map(str, digests))
            assert guard.answer("flat", expected, body)[:2] == [True, compact(dict(members))]
            assert guard.answer("flat", "6", body)[:2] == [None, FOREIGN]
            assert guard.answer("flat", expected, compact(dict(members)))[:2] == [None, FOREIGN]


def test_grpc_answers_lose_their_digest_and_nothing_else(guard: Guard) -> None:
    rng = random.Random(6)
    for _ in range(300):
        rows = rng.choice([1, 3])
        digests = [rng.randrange(2**52) for _ in range(rows)]
        outputs = [{"name": f"O{i}", "datatype": "BYTES", "shape": [rows, 1]} for i in range(rng.randrange(4))]
        raws = [rng.randbytes(rng.randrange(300)) for _ in outputs]
        plain = service_pb2.ModelInferResponse(
            model_name="sent",
            id=random_text(rng),
            parameters={"a": {"string_param": "DIGEST"}},
            outputs=outputs,
            raw_output_contents=raws,
        )
        at = rng.randrange(len(outputs) + 1)
        outputs.insert(at, {"name": "DIGEST", "datatype": "INT64", "shape": [rows, 1]})
        raws.insert(at, struct.pack(f"<{rows}q", *digests))
        whole = framed(
            service_pb2.ModelInferResponse(
                model_name="sent", id=plain.id, parameters=plain.parameters, outputs=outputs, raw_output_contents=raws
            )
        )
        expected = ",".join(map(str, digests))
        assert guard.answer("grpc", expected, whole)[:2] == [True, framed(plain)]
        assert guard.answer("grpc", expected, whole, is_asked=True)[:2] == [True, whole]
        assert guard.answer("grpc", "1" + expected, whole)[:2] == [None, FOREIGN]
        assert guard.answer("grpc", expected, framed(plain))[:2] == [None, FOREIGN]


def test_damaged_answers_never_pass_with_a_wrong_digest(guard: Guard) -> None:
    rng = random.Random(7)
    outputs = [{"name": "LABEL", "datatype": "BYTES", "shape": [1, 1]}, {"name": "DIGEST", "datatype": "INT64", "shape": [1, 1]}]
    built = framed(service_pb2.ModelInferResponse(outputs=outputs, raw_output_contents=[raw(b"x"), struct.pack("<q", 77)]))
    own = {"name": "DIGEST", "datatype": "INT64", "shape": [1, 1], "data": [77]}
    text = compact({"model_name": "sent", "outputs": [own, {"name": "A", "data": ["x"]}]})
    for form, body in (("grpc", built), ("json", text)):
        assert guard.answer(form, "77", body)[0]
    for _ in range(3000):
        for form, body in (("grpc", built), ("json", text), ("flat", b'{"DIGEST":77,"A":"x"}')):
            damaged = mutated(rng, body)
            passed, rest, _ = guard.answer(form, "77", damaged)
            assert (passed and isinstance(rest, bytes)) or rest == FOREIGN


@pytest.mark.parametrize(
    ("text", "is_internal", "told", "status"),
    [
        ("Request for unknown model: 'sent' has no available versions", False, "same", "503"),
        ("in ensemble 'sent', sent_model is not ready", False, "same", "503"),
        ("Stub process 'sent_preprocess_0_0' is not healthy.", True, "the server is restarting: try again", "503"),
        (
            "Failed to process: ValueError: x\n\nAt:\n  /opt/model.py(12): execute\n",
            False,
            "the model failed: the server's log tells why",
            "500",
        ),
        ('Traceback (most recent call last):\n  File "/x.py"', True, "the model failed: the server's log tells why", "500"),
        ("unexpected shape for input 'TEXT'", False, None, None),
        ("[request id: a Stub process] no option 'x is not healthy'", False, None, None),
        (BUSY, False, "same", "503"),
        (LATE, False, "same", "504"),
        (NOT_RUN, False, "same", "500"),
        (f"option stop_sequence {BUSY!r} has no tokens", False, None, None),
        (f"{LATE} ", False, None, None),
        ("[request id: m is not ready] the model has no option 'has no available versions'", False, None, None),
    ],
)
def test_errors_are_translated(guard: Guard, text: str, is_internal: bool, told: str | None, status: str | None) -> None:
    message, kind, _ = guard.call("translate_error", text.encode(), is_internal)
    assert (message and message.decode(), kind and kind[b"http"].decode()) == (text if told == "same" else told, status)


def test_texts_for_headers_and_bodies_come_back(guard: Guard) -> None:
    for text in (MIXED, "100 % of %41", "~}"):
        encoded = guard.call("percent_encoded", text.encode())[0]
        assert encoded.isascii() and b"\n" not in encoded
        assert guard.call("percent_decoded", encoded)[0] == text.encode()
        assert json.loads(guard.call("error_body", text.encode())[0]) == {"error": text}


def test_the_cost_is_printed(guard: Guard, capsys: pytest.CaptureFixture[str]) -> None:
    small = json.dumps(infer(tensor(data=["word " * 20]), outputs=[{"name": "LABEL"}])).encode()
    large = json.dumps(infer(tensor(data=["four bytes\n" * 330_000]))).encode()
    built = framed(message(raw_input_contents=[raw(b"word " * 20)]))
    check_http, check_grpc = guard.functions[b"check_http"], guard.functions[b"check_grpc"]
    http = guard.time(20_000, check_http, b"sent", b"infer", None, small) * 1e6
    grpc = guard.time(20_000, check_grpc, built) * 1e6
    big = guard.time(3, check_http, b"sent", b"infer", None, large) * 1e3
    with capsys.disabled():
        print(f"\nHTTP {http:.1f} µs, gRPC {grpc:.1f} µs, {len(large) / 1e6:.1f} MB of JSON {big:.1f} ms")  # noqa: T201
    assert min(http, grpc, big) > 0
