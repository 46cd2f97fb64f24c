"""Requests made at random: unusual but valid ones get their own answer, and damaged ones harm nobody.

The proxy and Triton read each request on their own. Where they read it differently, the answer does not belong to the request as
the proxy has read it: the server would be restarted, and any client could bring that about.
"""

from __future__ import annotations

import json
import random
import struct
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from serving.options import ServeOptions
from tests.helpers.good_traffic import TOLERANCE, Answer
from tests.helpers.raw_wire import bytes_of, exchange, outcome, post, text_message
from tests.helpers.served_processes import identities, restarts

pytestmark = [pytest.mark.server, pytest.mark.endurance]
PAIRS = {"one": ("TEXT",), "pairs": ("TEXT", "TEXT_PAIR")}
OUTPUTS = ("LABEL", "SCORE", "SCORES", "TRUNCATED", "DIGEST")
MOST_ROWS = 5


@pytest.fixture(scope="module")
def ensembles(bundle: Path, pair_bundle: Path) -> dict[str, Path]:
    return {"one": bundle, "pairs": pair_bundle}


def strange_text(choose: random.Random) -> str:
    """Text of any characters: control characters, those beyond 16 bits, quotation marks and words that the proxy looks for."""
    pieces = [
        "a",
        '"',
        "\\",
        "\0",
        "\n",
        "é",
        "한",
        "🎬",
        "\ufeff",
        "\ufffd",
        "\u2028",
        '{"name":"DIGEST",',
        '"DIGEST":1',
        ",",
        "]",
        " ",
    ]
    return "".join(
        choose.choice(pieces)
        if choose.random() < 0.7
        else chr(choose.choice((choose.randrange(0xD800), choose.randrange(0xE000, 0x110000))))
        for _ in range(choose.choice((0, 1, 3, 20, 200)))
    )


class RequestMaker:
    """Makes requests at random whose meaning is plain, however unusual their form."""

    def __init__(self, seed: int, known: dict[str, Answer]) -> None:
        self.choose, self._known = random.Random(seed), known

    def rows(self, model: str) -> tuple[list[list[str]], list[Answer | None]]:
        """Return the texts of each input, and the scores of each row that has known ones."""
        count = self.choose.randint(1, MOST_ROWS)
        columns, scores = [[strange_text(self.choose) for _ in range(count)] for _ in PAIRS[model]], [None] * count
        expected: list[Answer | None] = list(scores)
        if model == "one":
            for row in range(count):
                if self.choose.random() < 0.5:
                    columns[0][row], expected[row] = self.choose.choice(list(self._known.items()))
        return columns, expected

    def text(self, value: str) -> str:
        """Write a string as JSON, with escapes where none are needed."""
        if self.choose.random() < 0.5:
            return json.dumps(value, ensure_ascii=self.choose.random() < 0.5)
        escaped = [f"\\u{ord(one):04X}" if one in "aTE/" else json.dumps(one)[1:-1] for one in value]
        return f'"{"".join(escaped)}"'

    def json(self, value: Any) -> str:
        """Write a value as JSON with spaces and the order of keys at random."""
        gap = self.choose.choice(("", " ", "\n\t", "\r\n "))
        match value:
            case dict():
                keys = list(value)
                self.choose.shuffle(keys)
                inner = f",{gap}".join(f"{self.text(key)}{gap}:{gap}{self.json(value[key])}" for key in keys)
                return f"{{{gap}{inner}{gap}}}"
            case list():
                return f"[{gap}{f'{gap},{gap}'.join(self.json(item) for item in value)}{gap}]"
            case str():
                return self.text(value)
        return json.dumps(value)

    def outputs(self, *, binary: bool) -> list[dict[str, Any]]:
        names = self.choose.sample(OUTPUTS, self.choose.randint(1, len(OUTPUTS)))
        return [{"name": name} | ({"parameters": {"binary_data": self.choose.random() < 0.5}} if binary else {}) for name in names]

    def http(self, model: str, columns: list[list[str]]) -> bytes:
        inputs, data = [], b""
        for name, texts in zip(PAIRS[model], columns, strict=True):
            tensor: dict[str, Any] = {"name": name, "datatype": "BYTES", "shape": [len(texts), 1]}
            if self.choose.random() < 0.4:
                raw = b"".join(bytes_of(text.encode()) for text in texts)
                tensor["parameters"], data = {"binary_data_size": len(raw)}, data + raw
            else:
                tensor["data"] = texts if self.choose.random() < 0.5 else [[text] for text in texts]
            inputs.append(tensor)
        if not data and self.choose.random() < 0.5:
            inputs.reverse()
        request: dict[str, Any] = {"inputs": inputs, "parameters": {"function_to_apply": "none"}}
        if self.choose.random() < 0.5:
            request["outputs"] = self.outputs(binary=True)
        elif self.choose.random() < 0.3:
            request["parameters"]["binary_data_output"] = True
        if self.choose.random() < 0.3:
            request["id"] = strange_text(self.choose).replace("\0", "")
        head = self.json(request).encode()
        headers = {"Inference-Header-Content-Length": str(len(head))} if data else {}
        return post(f"/v2/models/{model}/infer", head + data, headers)

    def message(self, model: str, columns: list[list[str]]) -> service_pb2.ModelInferRequest:
        order = list(zip(PAIRS[model], columns, strict=True))
        self.choose.shuffle(order)
        typed = self.choose.random() < 0.3
        inputs, raw = [], []
        for name, texts in order:
            tensor: dict[str, Any] = {"name": name, "datatype": "BYTES", "shape": [len(texts), 1]}
            if typed:
                tensor["contents"] = {"bytes_contents": [text.encode() for text in texts]}
            else:
                raw.append(b"".join(bytes_of(text.encode()) for text in texts))
            inputs.append(tensor)
        outputs = self.outputs(binary=False) if self.choose.random() < 0.5 else []
        parameters = {"function_to_apply": {"string_param": "none"}}
        return text_message(model, inputs=inputs, raw_input_contents=raw, outputs=outputs, parameters=parameters)


def check_scores(scores: np.ndarray[Any, Any], expected: list[Answer | None]) -> int:
    """Compare the rows whose scores are known, and return how many these are."""
    known = [(row, answer) for row, answer in enumerate(expected) if answer is not None]
    for row, answer in known:
        assert np.abs(scores[row] - answer).max() <= TOLERANCE, (row, scores, answer)
    return len(known)


def valid(options: ServeOptions, answers: dict[str, Answer], count: int) -> None:
    """Send unusual requests: each is answered, the scores are those of its texts, and nothing is restarted."""
    before, compared, make = identities(options), 0, RequestMaker(1, answers)
    with grpc.insecure_channel(options.grpc_url) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for number in range(count):
            model = ("one", "pairs")[number % 2]
            columns, expected = make.rows(model)
            answer = service_pb2.ModelInferResponse.FromString(call(make.message(model, columns).SerializeToString(), timeout=30))
            names = [output.name for output in answer.outputs]
            if "SCORES" in names:
                raw = answer.raw_output_contents[names.index("SCORES")]
                compared += check_scores(np.frombuffer(raw, np.float32).reshape(len(expected), -1), expected)
            columns, expected = make.rows(model)
            request = make.http(model, columns)
            received = exchange(options.http_port, request)
            assert outcome(received).startswith("200"), (request, received)
            compared += check_scores(*_http_scores(received, expected)) if b'"SCORES"' in received else 0
    sys.stdout.write(f"\n{2 * count} unusual requests answered, {compared} rows compared\n")
    assert compared > count // 4
    assert identities(options) == before, restarts(options)


def _http_scores(received: bytes, expected: list[Answer | None]) -> tuple[np.ndarray[Any, Any], list[Answer | None]]:
    head, _, body = received.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    length = int(fields.get(b"inference-header-content-length", len(body)))
    place = length
    for output in json.loads(body[:length])["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size", 0)
        if output["name"] == "SCORES":
            data = np.frombuffer(body[place : place + size], np.float32) if size else np.array(output["data"], np.float32)
            return data.reshape(len(expected), -1), expected
        place += size
    raise AssertionError(received)


def damaged(options: ServeOptions, answers: dict[str, Answer], count: int) -> None:
    """Send requests with changed, lost and added bytes: nothing is restarted, and nobody is told of another's answer."""
    before, make, seen = identities(options), RequestMaker(2, answers), Counter[str]()
    choose = make.choose
    with grpc.insecure_channel(options.grpc_url) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for number in range(count):
            model = ("one", "pairs")[number % 2]
            message = damage(choose, make.message(model, make.rows(model)[0]).SerializeToString())
            try:
                call(message, timeout=30)
                seen["grpc answered"] += 1
            except grpc.RpcError as error:
                seen[f"grpc {error.code().name}"] += 1
                assert "another request" not in error.details() and error.code() != grpc.StatusCode.UNAVAILABLE, (message, error)
            whole = make.http(model, make.rows(model)[0])
            head, _, body = whole.partition(b"\r\n\r\n")
            body = damage(choose, body)
            lines = [line for line in head.split(b"\r\n") if not line.startswith(b"Content-Length")]
            request = b"\r\n".join([*lines, b"Content-Length: %d" % len(body)]) + b"\r\n\r\n" + body
            received = exchange(options.http_port, request)
            seen[f"http {received[9:12].decode()}"] += 1
            assert b"another request" not in received and received[9:12] != b"503", (request, received)
    sys.stdout.write(f"\n{2 * count} damaged requests: {dict(seen)}\n")
    assert identities(options) == before, restarts(options)


def damage(choose: random.Random, whole: bytes) -> bytes:
    """Change a few bytes."""
    content = bytearray(whole)
    for _ in range(choose.choice((1, 1, 1, 2, 5))):
        place = choose.randrange(len(content) + 1)
        match choose.randrange(5):
            case 0 if place < len(content):
                content[place] = choose.randrange(256)
            case 1 if place < len(content):
                content[place] ^= 1 << choose.randrange(8)
            case 2:
                del content[place : place + choose.choice((1, 2, 9))]
            case 3:
                content[place:place] = choose.choice((b"\0", b"\xff", b'"', b"[", b"}", b"1", struct.pack("<I", 2**31)))
            case _:
                other = choose.randrange(len(content) + 1)
                content[place:place] = content[other : other + choose.choice((1, 4, 30))]
    return bytes(content)


def test_unusual_requests(options: ServeOptions, answers: dict[str, Answer]) -> None:
    valid(options, answers, 200)


def test_damaged_requests(options: ServeOptions, answers: dict[str, Answer]) -> None:
    damaged(options, answers, 400)


@pytest.mark.timeout(1800)
def test_many_unusual_requests(options: ServeOptions, answers: dict[str, Answer]) -> None:
    valid(options, answers, 10_000)


@pytest.mark.timeout(1800)
def test_many_damaged_requests(options: ServeOptions, answers: dict[str, Answer]) -> None:
    damaged(options, answers, 20_000)
