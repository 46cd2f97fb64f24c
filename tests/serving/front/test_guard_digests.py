"""The digests that the filter computes, and requests that were damaged on their way."""

from __future__ import annotations

import json
import random
import struct
from typing import Any

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.grpc import service_pb2

from tests.serving.front.guard_in_python import (
    Guard,
    RefusedError,
    digest,
    framed,
    message,
    mutated,
    one_input,
    random_text,
    raw,
)


def test_an_answer_without_the_digest_of_its_request_is_withheld(guard: Guard) -> None:
    assert guard.answer("json", "", b'{"outputs":[{"name":"DIGEST","data":[]}]}')[:2] == [None, NOT_COMPARABLE]


NOT_COMPARABLE = b"the answer could not be compared with the request: its inputs are not those of the model"


def test_more_rows_than_the_ensemble_takes_have_no_digest(guard: Guard) -> None:
    for rows in (2, 3):
        checked = guard.grpc(message(model_name="small", **one_input(shape=[rows, 1]), raw_input_contents=[raw(*[b"x"] * rows)]))
        assert (checked["expected"] != b"") == (rows == 2)


def client_requests(rng: random.Random) -> tuple[list[str], list[list[str]], bool, list[str]]:
    """Random inputs: names, texts by input, whether a digest is asked for, names of outputs."""
    names = ["TEXT", "TEXT_PAIR"]
    rows = rng.choice([1, 1, 2, 7])
    texts = [[random_text(rng) for _ in range(rows)] for _ in names]
    outputs = rng.choice([[], ["LABEL"], ["LABEL", "SCORE"], ["DIGEST"], ["SCORE", "DIGEST"]])
    return names, texts, "DIGEST" in outputs, outputs


def test_requests_of_the_clients_have_the_digest_that_python_computes(guard: Guard) -> None:
    rng = random.Random(3)
    for _ in range(400):
        names, texts, is_asked, outputs = client_requests(rng)
        expected = ",".join(str(digest(*(text.encode() for text in row))) for row in zip(*texts, strict=True)).encode()
        order = rng.sample([0, 1], 2)
        for body, header in (http_request(rng, names, texts, outputs, order), http_json(rng, names, texts, outputs, order)):
            checked = guard.http(body, model="pairs", header=header)
            assert (checked["expected"], checked["is_asked"]) == (expected, is_asked)
            sent = checked.get("body", body)
            head = json.loads(sent[: int(checked["header_length"])] if "header_length" in checked else sent[:header])
            assert {one["name"] for one in head.get("outputs", [])} == (set(outputs) | {"DIGEST"} if outputs else set())
            assert ("body" in checked) == (bool(outputs) and not is_asked)
            again = guard.http(sent, model="pairs", header=int(checked["header_length"]) if "header_length" in checked else header)
            assert again["expected"] == expected
        built = grpc_request(rng, names, texts, outputs, order)
        checked = guard.grpc(built)
        assert (checked["expected"], checked["is_asked"]) == (expected, is_asked)
        if "body" in checked:
            sent = service_pb2.ModelInferRequest.FromString(checked["body"][5:])
            assert [one.name for one in sent.outputs] == [*outputs, "DIGEST"]
            assert checked["body"][:5] == framed(sent)[:5]


def http_request(
    rng: random.Random, names: list[str], texts: list[list[str]], outputs: list[str], order: list[int]
) -> tuple[bytes, int | None]:
    """Build what tritonclient sends."""
    inputs = []
    for i in order:
        one = triton_http.InferInput(names[i], [len(texts[i]), 1], "BYTES")
        one.set_data_from_numpy(np.array([[text.encode()] for text in texts[i]], dtype=np.object_), binary_data=rng.random() < 0.7)
        inputs.append(one)
    wanted = [triton_http.InferRequestedOutput(name, binary_data=rng.random() < 0.5) for name in outputs]
    body, header = triton_http.InferenceServerClient.generate_request_body(inputs, outputs=wanted or None, request_id="1")
    return body, header


def http_json(
    rng: random.Random, names: list[str], texts: list[list[str]], outputs: list[str], order: list[int]
) -> tuple[bytes, int | None]:
    inputs = [
        {
            "name": names[i],
            "shape": [len(texts[i]), 1],
            "datatype": "BYTES",
            "data": rng.choice([texts[i], [[text] for text in texts[i]]]),
        }
        for i in order
    ]
    content = {"id": "1", "outputs": [{"name": name} for name in outputs], "inputs": inputs}
    return json.dumps(content, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 1])).encode(), None


def grpc_request(
    rng: random.Random, names: list[str], texts: list[list[str]], outputs: list[str], order: list[int]
) -> service_pb2.ModelInferRequest:
    built = service_pb2.ModelInferRequest(model_name="pairs", id="1", outputs=[{"name": name} for name in outputs])
    is_raw = rng.random() < 0.5
    for i in order:
        one = triton_grpc.InferInput(names[i], [len(texts[i]), 1], "BYTES")
        one.set_data_from_numpy(np.array([[text.encode()] for text in texts[i]], dtype=np.object_))
        built.inputs.append(one._get_tensor())
        if is_raw:
            built.raw_input_contents.append(one._get_content())
        else:
            built.inputs[-1].contents.bytes_contents.extend(text.encode() for text in texts[i])
    return built


def elements(data: bytes) -> list[bytes]:
    """Split BYTES data."""
    found = []
    while data:
        (length,) = struct.unpack("<I", data[:4])
        found.append(data[4 : 4 + length])
        data = data[4 + length :]
    return found


def leaves(nested: Any) -> list[bytes]:
    return [leaf for one in nested for leaf in leaves(one)] if isinstance(nested, list) else [nested.encode()]


def texts_of_json(root: dict[str, Any], data: bytes) -> dict[str, list[bytes]]:
    """Texts by input, of a JSON header and the binary data behind it."""
    found = {}
    for one in root["inputs"]:
        if "data" in one:
            found[one["name"]] = leaves(one["data"])
        else:
            size = one["parameters"]["binary_data_size"]
            found[one["name"]], data = elements(data[:size]), data[size:]
    return found


def texts_of_message(read: service_pb2.ModelInferRequest) -> dict[str, list[bytes]]:
    if read.raw_input_contents:
        return {one.name: elements(data) for one, data in zip(read.inputs, read.raw_input_contents, strict=True)}
    return {one.name: list(one.contents.bytes_contents) for one in read.inputs}


def assert_digests(checked: dict[str, Any], texts: dict[str, list[bytes]]) -> None:
    rows = zip(texts["TEXT"], texts["TEXT_PAIR"], strict=True)
    assert checked["expected"].decode() == ",".join(str(digest(*row)) for row in rows)


def test_damaged_http_requests_are_refused_or_read_as_python_reads_them(guard: Guard) -> None:
    rng, accepted = random.Random(4), 0
    for _ in range(3000):
        names, texts, _, outputs = client_requests(rng)
        body, header = rng.choice([http_request, http_json])(rng, names, texts, outputs, [0, 1])
        body = mutated(rng, body)
        try:
            checked = guard.http(body, model="pairs", header=header)
        except RefusedError:
            continue
        length = header or len(body)
        root = json.loads(body[:length])
        if checked["expected"]:
            accepted += 1
            assert_digests(checked, texts_of_json(root, body[length:]))
        if "body" in checked:
            sent_length = int(checked["header_length"]) if header else len(checked["body"])
            sent = json.loads(checked["body"][:sent_length])
            assert sent["outputs"].pop(0)["name"] == "DIGEST"
            assert sent == root
            assert checked["body"][sent_length:] == body[length:]
    assert accepted > 200


def test_damaged_messages_are_refused_or_read_as_python_reads_them(guard: Guard) -> None:
    rng, accepted = random.Random(8), 0
    for _ in range(5000):
        names, texts, _, outputs = client_requests(rng)
        built = mutated(rng, framed(grpc_request(rng, names, texts, outputs, [0, 1]))[5:])
        try:
            checked = guard.grpc(framed(built))
        except RefusedError:
            continue
        read = service_pb2.ModelInferRequest.FromString(built)
        assert (checked is not None) == (read.model_name == "pairs")
        if checked and checked["expected"]:
            accepted += 1
            assert_digests(checked, texts_of_message(read))
            assert [list(one.shape) for one in read.inputs] == [[len(checked["expected"].split(b",")), 1]] * 2
        if checked and "body" in checked:
            sent = service_pb2.ModelInferRequest.FromString(checked["body"][5:])
            assert sent.outputs.pop().name == "DIGEST"
            assert sent == read
    assert accepted > 300
