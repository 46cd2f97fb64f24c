"""The filter's functions: what it refuses, the digests it computes, and that it removes from an answer only what it added."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.grpc import service_pb2

from tests.serving.front.guard_in_python import Guard, RefusedError, compact, digest, framed, raw, write_ensemble

MIXED = 'aé\n"\\/\x00€😀 \t{}[]:,'


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    write_ensemble(folder, "sent", "TEXT")
    write_ensemble(folder, "pairs", "TEXT_PAIR", "TEXT")
    write_ensemble(folder, "small", "TEXT", max_batch_size=2)
    write_ensemble(folder, "bundle", "TEXT", kind="bundle")
    return folder


@pytest.fixture(scope="module")
def guard(repository: Path) -> Guard:
    return Guard(repository)


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


# --- JSON -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        " [ ] ",
        '{"a":1}',
        '{"a":{"b":[1,2,{"c":null}]}, "d":[true,false]}',
        '"\\u00e9\\ud83d\\ude00\\n\\/\\"\\\\"',
        "-0.5e-3",
        "0",
        "1E+2",
        "123456789012345678",
        "4503599627370495",
        "-1",
        json.dumps(MIXED),
        json.dumps(MIXED, ensure_ascii=False),
        "[[[[]]],\t\r\n 1]",
        '{"":{"":""}}',
        '"\x7f"',
        "[" * 64 + "]" * 64,
    ],
)
def test_json_is_decoded_as_python_decodes_it(guard: Guard, text: str) -> None:
    assert is_same(guard.python(guard.call("decode", text.encode())[0]), json.loads(text))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b" ",
        b"{",
        b"[1,]",
        b'{"a":1,}',
        b"{,}",
        b"[1 2]",
        b'{"a" 1}',
        b"{1:2}",
        b"01",
        b"-",
        b"1.",
        b".5",
        b"1e",
        b"1e+",
        b"+1",
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b"tru",
        b"nul",
        b'"',
        b'"a',
        b'"\\',
        b'"\\"',
        b'"\\x"',
        b'"\\u12"',
        b'"\\u12g4"',
        b'"\\ud800"',
        b'"\\ud800\\u0041"',
        b'"\\udc00"',
        b'"\n"',
        b'"\0"',
        b"[1]]",
        b"1 1",
        b"\xff",
        b'"\xc0\x80"',
        b'"\xed\xa0\x80"',
        b'"\xf4\x90\x80\x80"',
        b'"\xe2\x82"',
        b"\xef\xbb\xbf{}",
        b"'a'",
        b"/**/1",
        b'{"a":1 "b":2}',
        b"[" * 65 + b"]" * 65,
        b'{"a":1,"a":2}',
        b'{"a":1,"\\u0061":2}',
        b'{"a\\u0000":1}',
        b"[" * 100_000,
        b"[" + b"1," * 200_000 + b"1]",
    ],
)
def test_what_is_not_json_is_refused(guard: Guard, text: bytes) -> None:
    with pytest.raises(RefusedError, match="the body"):
        guard.call("decode", text)


def random_value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(8 if depth < 5 else 6)
    if kind == 6:
        return [random_value(rng, depth + 1) for _ in range(rng.randrange(5))]
    if kind == 7:
        return {random_text(rng): random_value(rng, depth + 1) for _ in range(rng.randrange(5))}
    return rng.choice(
        [None, True, False, rng.randrange(-(2**53), 2**53), rng.uniform(-1e6, 1e6), random_text(rng), 10 ** rng.randrange(-30, 30)]
    )


def random_text(rng: random.Random) -> str:
    text = "".join(rng.choice('ab c"\\/\n\té€😀ßx' + chr(rng.randrange(1, 0xD800))) for _ in range(rng.randrange(20)))
    return text * rng.choice([1, 1, 1, 30])


def is_same(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(is_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(is_same, one, other))
    if isinstance(one, (int, float)) and not isinstance(one, bool) and isinstance(other, (int, float)):
        return bool(one == pytest.approx(other, rel=1e-9, abs=1e-300, nan_ok=True))
    return type(one) is type(other) and bool(one == other)


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


def test_random_json_is_decoded_as_python_decodes_it(guard: Guard) -> None:
    rng = random.Random(1)
    accepted = 0
    for _ in range(1500):
        value = random_value(rng)
        text = json.dumps(value, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, None, 2])).encode()
        assert is_same(guard.python(guard.call("decode", text)[0]), value), text
        damaged = mutated(rng, text)
        try:
            decoded = guard.python(guard.call("decode", damaged)[0])
        except RefusedError:
            continue
        accepted += 1
        assert is_same(decoded, json.loads(damaged)), damaged
    assert accepted > 50


def test_utf8_is_what_python_says(guard: Guard) -> None:
    rng = random.Random(2)
    for _ in range(5000):
        text = mutated(rng, random_text(rng).encode())
        assert guard.call("is_utf8", text)[0] == (text.decode(errors="replace").encode() == text), text


# --- Models ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["infer", "generate", "generate_stream"])
@pytest.mark.parametrize("step", ["preprocess", "model", "postprocess"])
def test_steps_are_refused(guard: Guard, verb: str, step: str) -> None:
    expected = f"sent_{step} is a step of the ensemble sent: send the request to sent"
    with pytest.raises(RefusedError, match=f"^{expected}$") as refused:
        guard.http(infer(), model=f"sent_{step}", verb=verb)
    assert refused.value.http == "403"
    with pytest.raises(RefusedError, match=f"^{expected}$") as refused:
        guard.grpc(message(model_name=f"sent_{step}"))
    assert refused.value.grpc == "7"


@pytest.mark.parametrize("name", ["other", "bundle", "bundle_model", "other_model", "_model", "a.b-c"])
def test_models_of_others_pass(guard: Guard, name: str) -> None:
    assert guard.http(infer(), model=name) is None
    assert guard.grpc(message(model_name=name)) is None


@pytest.mark.parametrize("name", ["", ".", "..", "../sent", "a/b", "a b", "-a", "a%62", "a\n", "é", "sent\0"])
def test_names_that_are_none_are_refused(guard: Guard, name: str) -> None:
    with pytest.raises(RefusedError, match="is not the name of a model"):
        guard.http(infer(), model=name)
    with pytest.raises(RefusedError, match="is not the name of a model") as refused:
        guard.grpc(message(model_name=name))
    assert (refused.value.http, refused.value.grpc) == ("400", "3")


def test_manifests_are_read_again_and_a_damaged_one_opens_nothing(tmp_path: Path) -> None:
    guard, manifest = Guard(tmp_path), tmp_path / "late" / "manifest.json"

    def expected(later: int) -> Any:
        guard.lua.execute(b"local time = os.time; os.time = function() return time() + %d end" % later)
        checked = guard.http(infer(tensor(name="QUESTION")), model="late")
        return checked and checked["expected"].decode()

    assert expected(0) is None, "a name that was asked for too early is not remembered"
    write_ensemble(tmp_path, "late", "TEXT")
    assert expected(0) == ""
    manifest.write_text(manifest.read_text().replace("TEXT", "QUESTION"))
    assert expected(10) == str(digest(b"x"))
    manifest.write_text("{")
    assert expected(10) == str(digest(b"x"))
    manifest.unlink()
    assert expected(10) == str(digest(b"x"))
    with pytest.raises(RefusedError, match="late_model is a step"):
        guard.http(infer(), model="late_model")


def test_the_last_model_name_counts(guard: Guard) -> None:
    last = service_pb2.ModelInferRequest(model_name="sent_model").SerializeToString()
    with pytest.raises(RefusedError, match="is a step"):
        guard.grpc(framed(message(model_name="other").SerializeToString() + last))


# --- HTTP requests --------------------------------------------------------------------------------------------------------------

WRONG = [
    ([], "the body must be an object"),
    ({}, "inputs must be a list"),
    ({"inputs": {}}, "inputs must be a list"),
    (infer(1), "each input must be an object"),
    (infer(tensor(name=1)), "the name of an input must be a string"),
    (infer(tensor(name="")), "is empty"),
    (infer(tensor(name="A\0B")), "control characters"),
    (infer(tensor(datatype="TEXT")), "input 'TEXT': 'TEXT' is not a datatype"),
    (infer(tensor(datatype=None)), "input 'TEXT': the datatype must be a string"),
    (infer(tensor(shape=1)), "input 'TEXT': the shape must be a list"),
    (infer(tensor(shape=[1, -1])), "input 'TEXT': the shape must hold whole numbers"),
    (infer(tensor(shape=[1, 0.5])), "input 'TEXT': the shape must hold whole numbers"),
    (infer(tensor(shape=[1, "1"])), "input 'TEXT': the shape must hold whole numbers"),
    (infer(tensor(shape=[1] * 65)), "more than 64 dims"),
    *(
        (infer(tensor(shape=shape)), "more than 2147483648 elements")
        for shape in ([1, 2**61], [2**32 + 1, 3], [2**16, 2**16], [0, 2**32])
    ),
    (infer(tensor(shape=[2, 1])), "input 'TEXT': the shape has 2 elements, the data has 1"),
    (infer(tensor(shape=[0, 1])), "the shape has 0 elements, the data has 1"),
    (infer(tensor(data=["x", "y"])), "the shape has 1 elements, the data has 2"),
    (infer(tensor(data="x")), "input 'TEXT': data must be a list"),
    (infer(tensor(data=[1])), "data of the datatype BYTES must hold strings"),
    (infer(tensor(data=[None])), "data of the datatype BYTES must hold strings"),
    (infer(tensor(data=[["x"], [{}]])), "data of the datatype BYTES must hold strings"),
    (infer(tensor(datatype="FP32")), "data of the datatype FP32 must hold numbers"),
    (infer(tensor(datatype="INT64", data=[None])), "data of the datatype INT64 must hold numbers"),
    (infer(tensor(), tensor()), "input 'TEXT' is given twice"),
    (infer({"name": "TEXT", "datatype": "BYTES", "shape": [1, 1]}), "either data or binary_data_size"),
    (infer(tensor(parameters={"binary_data_size": 5})), "either data or binary_data_size"),
    (infer(tensor(parameters={"shared_memory_region": "x"})), "input 'TEXT': shared memory is not supported"),
    (infer(tensor(parameters={"shared_memory_byte_size": 1})), "shared memory is not supported"),
    (infer(tensor(parameters=[])), "parameters must be an object"),
    (infer(outputs={}), "outputs must be a list"),
    (infer(outputs=["LABEL"]), "each output must be an object"),
    (infer(outputs=[{}]), "the name of an output must be a string"),
    (infer(outputs=[{"name": "LABEL"}, {"name": "LABEL"}]), "output 'LABEL' is given twice"),
    (
        infer(outputs=[{"name": "LABEL", "parameters": {"classification": 1}}]),
        "output 'LABEL': the classification extension is not supported",
    ),
    (infer(outputs=[{"name": "L"}, {"name": "M", "parameters": {"shared_memory_region": "x"}}]), "output 'M': shared memory"),
    (infer(tensor(data=json.loads("[" * 62 + "]" * 62))), "nested deeper than 64"),
    (infer(tensor(data=["x"] * 200_000)), "more than 200000 values"),
]


@pytest.mark.parametrize(("body", "reason"), WRONG, ids=[f"{i}-{reason[-30:]}" for i, (_, reason) in enumerate(WRONG)])
@pytest.mark.parametrize("model", ["sent", "other"])
def test_wrong_requests_are_refused(guard: Guard, model: str, body: dict[str, Any], reason: str) -> None:
    with pytest.raises(RefusedError, match=reason) as refused:
        guard.http(body, model=model)
    assert (refused.value.http, refused.value.grpc) == ("400", "3")


def test_an_escaped_key_is_seen(guard: Guard) -> None:
    body = json.dumps(infer(outputs=[{"name": "LABEL", "parameters": {"classification": 1}}])).replace('tion"', '\\u0074ion"')
    with pytest.raises(RefusedError, match="classification"):
        guard.http(body.encode())


@pytest.mark.parametrize("header", ["", "-1", "+5", "5 ", "0x5", "5,5", "100000", "99999999999999999999", "5.0"])
def test_a_wrong_header_length_is_refused(guard: Guard, header: str) -> None:
    with pytest.raises(RefusedError, match="Inference-Header-Content-Length"):
        guard.http(infer(), header=header)


BINARY = [
    ("BYTES", [1, 1], b"", 0, "shape has 1 elements, the data has 0"),
    ("BYTES", [1, 1], b"\1\0\0", 3, "length in front of element 0"),
    ("BYTES", [1, 1], b"\1\0\0\0", 4, "length in front of element 0"),
    ("BYTES", [1, 1], b"\xff\xff\xff\xffx", 5, "length in front of element 0"),
    ("BYTES", [2, 1], raw(b"a") + b"\7\0\0\0b", 10, "length in front of element 1"),
    ("BYTES", [1, 1], raw(b"a", b"b"), 10, "bytes follow its last element"),
    ("BYTES", [2, 1], raw(b"a"), 5, "shape has 2 elements, the data has 1"),
    ("BYTES", [1, 1], raw(b"a"), 6, "binary_data_size is more than the data"),
    ("BYTES", [1, 1], raw(b"a") + b"!", 5, "1 bytes of binary data that belong to no input"),
    ("FP32", [2, 1], b"1234567", 7, "FP32 of this shape has 8 bytes of data, not 7"),
    ("INT64", [2], b"12345678", 8, "INT64 of this shape has 16 bytes"),
    ("BYTES", [1, 1], raw(b"a"), -5, "binary_data_size must be a whole number"),
    ("BYTES", [1, 1], raw(b"a"), 5.5, "binary_data_size must be a whole number"),
    ("BYTES", [1, 1], raw(b"a"), "5", "binary_data_size must be a whole number"),
]


@pytest.mark.parametrize(("datatype", "shape", "data", "size", "reason"), BINARY)
def test_wrong_binary_data_is_refused(guard: Guard, datatype: str, shape: list[int], data: bytes, size: Any, reason: str) -> None:
    one = {"name": "TEXT", "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}}
    header = json.dumps(infer(one)).encode()
    for model in ("sent", "other"):
        with pytest.raises(RefusedError, match=reason):
            guard.http(header + data, header=len(header), model=model)
    if isinstance(size, int) and size == len(data):
        with pytest.raises(RefusedError):
            guard.grpc(message(inputs=[{"name": "TEXT", "datatype": datatype, "shape": shape}], raw_input_contents=[data]))


def test_generate(guard: Guard) -> None:
    assert guard.http({"TEXT": "é", "temperature": 1}, verb="generate")["expected"] == str(digest("é".encode())).encode()
    both = guard.http({"TEXT": ["b", "c"], "TEXT_PAIR": ["d", ""]}, verb="generate", model="pairs")
    assert both["expected"].decode() == f"{digest(b'b', b'd')},{digest(b'c', b'')}"
    assert guard.http({"other": "x"}, verb="generate")["expected"] == b""
    assert guard.http({"TEXT": 1, "x": [{}]}, verb="generate", model="other") is None
    assert guard.http({"TEXT": "x"}, verb="generate_stream", model="other") is None
    for body, reason in [
        ({"TEXT": 1}, "input 'TEXT' must be a list"),
        ({"TEXT": [1]}, "each element of input 'TEXT' must be a string"),
        ({"TEXT": "x", "parameters": {"TEXT": "y"}}, "must stand beside parameters"),
        ([], "the body must be an object"),
    ]:
        with pytest.raises(RefusedError, match=reason):
            guard.http(body, verb="generate")
    with pytest.raises(RefusedError, match="as many rows"):
        guard.http({"TEXT": "x", "TEXT_PAIR": ["a", "b"]}, verb="generate", model="pairs")
    with pytest.raises(RefusedError, match="sent does not stream"):
        guard.http({"TEXT": "x"}, verb="generate_stream")


# --- gRPC requests --------------------------------------------------------------------------------------------------------------


def test_frames(guard: Guard) -> None:
    whole = framed(message())
    for body in (b"", b"\0\0\0", whole[:-1], whole + b"!", whole + whole):
        with pytest.raises(RefusedError, match="not one gRPC message"):
            guard.grpc(body)
    with pytest.raises(RefusedError, match="compressed gRPC messages are not supported") as refused:
        guard.grpc(b"\1" + whole[1:])
    assert refused.value.grpc == "12"


def contents(**fields: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [1, 1], "contents": fields}], "raw_input_contents": []}


def one_input(**changes: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [1, 1]} | changes]}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (one_input(shape=[-1, 1]), "input 'TEXT': the shape must hold whole numbers"),
        (one_input(shape=[1, 2**61]), "more than 2147483648 elements"),
        (one_input(shape=[2**32, 2]), "more than 2147483648 elements"),
        (one_input(shape=[1] * 65), "more than 64 dims"),
        (one_input(datatype="X"), "'X' is not a datatype"),
        (one_input(name=""), "is empty"),
        (one_input(name="A\0"), "control characters"),
        (one_input(parameters={"shared_memory_region": {"string_param": "x"}}), "input 'TEXT': shared memory"),
        (one_input(parameters={"a\0": {"string_param": "x"}}), "NUL"),
        (one_input(contents={"bytes_contents": [b"x"]}), "both contents and raw_input_contents"),
        ({"raw_input_contents": [raw(b"x")] * 2}, "for all inputs or for none: there are 2 for 1 inputs"),
        ({"raw_input_contents": []}, "the shape has 1 elements, the data has 0"),
        ({"inputs": [{"name": "T", "datatype": "FP16", "shape": [1]}], "raw_input_contents": []}, "the shape has 1 elements"),
        ({"inputs": [{"name": "T", "datatype": "FP32", "shape": [1]}] * 2, "raw_input_contents": [b"1234"] * 2}, "is given twice"),
        (contents(bytes_contents=[b"x", b"y"]), "the shape has 1 elements, the data has 2"),
        (contents(int_contents=[1]), "another datatype than BYTES"),
        (contents(bytes_contents=[b"x"], fp32_contents=[1]), "another datatype than BYTES"),
        (
            {"outputs": [{"name": "LABEL", "parameters": {"classification": {"int64_param": 1}}}]},
            "output 'LABEL': the classification ext",
        ),
        ({"outputs": [{"name": "LABEL", "parameters": {"shared_memory_region": {}}}]}, "output 'LABEL': shared memory"),
        ({"outputs": [{"name": "LABEL"}] * 2}, "output 'LABEL' is given twice"),
        ({"outputs": [{"name": f"O{i}"} for i in range(10_000)]}, "more than 10000 fields"),
        (contents(bytes_contents=[b""] * 200_000), "more than 200000 fields"),
    ],
)
@pytest.mark.parametrize("model", ["sent", "other"])
def test_wrong_messages_are_refused(guard: Guard, model: str, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(RefusedError, match=reason) as refused:
        guard.grpc(message(**changes, model_name=model))
    assert refused.value.grpc == "3"


@pytest.mark.parametrize(
    "damage",
    [
        b"\x00",
        b"\x0a",
        b"\x0a\x05a",
        b"\x0b",
        b"\x0f\x00",
        b"\x28\x01",
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\x2d1234",
        b"\x2a\x02\x1a\x05",
        b"\x0a\x01\xff",
        b"\x22\x03\x0a\x01\xff",
        b"\x2a\x04\x2a\x02\x32\x01",
        b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01\x00",
        b"\xf8\xff\xff\xff\xff\x01\x00",
    ],
)
def test_malformed_messages_are_refused(guard: Guard, damage: bytes) -> None:
    with pytest.raises(RefusedError, match="not a valid protobuf message"):
        guard.grpc(framed(message().SerializeToString() + damage))


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("BOOL", "bool_contents", [True, False]),
        ("INT8", "int_contents", [-1, 2]),
        ("INT64", "int64_contents", [-(2**62), 2]),
        ("UINT16", "uint_contents", [1, 2]),
        ("UINT64", "uint64_contents", [2**64 - 1, 2]),
        ("FP32", "fp32_contents", [1, 2]),
        ("FP64", "fp64_contents", [1, 2]),
        ("BYTES", "bytes_contents", [b"", b"x"]),
    ],
)
def test_typed_contents_are_counted(guard: Guard, datatype: str, field: str, values: list[Any]) -> None:
    def built(count: int) -> service_pb2.ModelInferRequest:
        one = {"name": "X", "datatype": datatype, "shape": [count], "contents": {field: values}}
        return service_pb2.ModelInferRequest(model_name="other", inputs=[one])

    assert guard.grpc(built(2)) is None
    with pytest.raises(RefusedError, match="the shape has 3 elements, the data has 2"):
        guard.grpc(built(3))


def test_shapes_may_be_unpacked_and_fields_split(guard: Guard) -> None:
    head = service_pb2.ModelInferRequest(model_name="sent").SerializeToString()
    inner = b"\x18\x01\x0a\x04TEXT\x12\x05BYTES\x18\x01" + b"\x2a\x03\x42\x01x"
    body = head + b"\x2a" + bytes([len(inner)]) + inner
    assert service_pb2.ModelInferRequest.FromString(body).inputs[0].shape == [1, 1]
    assert guard.grpc(framed(body))["expected"] == str(digest(b"x")).encode()


# --- Digests --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "inputs",
    [
        [tensor(shape=[1], data=["x"])],
        [tensor(shape=[1, 1, 1])],
        [tensor(name="OTHER")],
        [tensor(), tensor(name="OTHER")],
        [],
        [tensor(datatype="INT64", data=[1])],
        [tensor(shape=[1, 2], data=["x", "y"])],
    ],
)
def test_requests_that_triton_refuses_have_no_digest(guard: Guard, inputs: list[Any]) -> None:
    assert guard.http({"inputs": inputs})["expected"] == b""
    assert guard.answer("json", "", b'{"outputs":[{"name":"DIGEST","data":[]}]}')[:2] == [None, NOT_COMPARABLE]


NOT_COMPARABLE = b"the answer could not be compared with the request: its inputs are not those of the model"
FOREIGN = b"the answer belongs to another request"


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


# --- Answers --------------------------------------------------------------------------------------------------------------------


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
    ("text", "is_internal", "told", "is_temporary"),
    [
        ("Request for unknown model: 'sent' has no available versions", False, "same", True),
        ("in ensemble 'sent', sent_model is not ready", False, "same", True),
        ("Stub process 'sent_preprocess_0_0' is not healthy.", True, "the server is restarting: try again", True),
        (
            "Failed to process: ValueError: x\n\nAt:\n  /opt/model.py(12): execute\n",
            False,
            "the model failed: the server's log tells why",
            False,
        ),
        ('Traceback (most recent call last):\n  File "/x.py"', True, "the model failed: the server's log tells why", False),
        ("unexpected shape for input 'TEXT'", False, None, None),
        ("[request id: a Stub process] no option 'x is not healthy'", False, None, None),
        ("[request id: m is not ready] the model has no option 'has no available versions'", False, None, None),
    ],
)
def test_errors_are_translated(guard: Guard, text: str, is_internal: bool, told: str | None, is_temporary: bool | None) -> None:
    message, temporary, _ = guard.call("translate_error", text.encode(), is_internal)
    assert (message and message.decode(), temporary) == (text if told == "same" else told, is_temporary)


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
