"""Requests that the filter refuses, and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tritonclient.grpc import service_pb2

from tests.serving.front.guard_in_python import (
    GENERATION,
    Guard,
    RefusedError,
    digest,
    framed,
    infer,
    message,
    one_input,
    raw,
    tensor,
    write_ensemble,
)


@pytest.mark.parametrize("verb", ["infer", "generate", "generate_stream"])
@pytest.mark.parametrize("step", ["preprocess", "model", "postprocess"])
def test_steps_are_refused(guard: Guard, verb: str, step: str) -> None:
    model = f"sent.{GENERATION}_{step}"
    expected = f"{model} is a step of the ensemble sent: send the request to sent"
    with pytest.raises(RefusedError, match=f"^{expected}$") as refused:
        guard.http(infer(), model=model, verb=verb)
    assert refused.value.http == "403"
    with pytest.raises(RefusedError, match=f"^{expected}$") as refused:
        guard.grpc(message(model_name=model))
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
    guard, manifest, config = Guard(tmp_path), tmp_path / "late" / GENERATION / "manifest.json", tmp_path / "late" / "config.pbtxt"

    def expected(later: int) -> Any:
        guard.lua.execute(b"local time = os.time; os.time = function() return time() + %d end" % later)
        checked = guard.http(infer(tensor(name="QUESTION")), model="late")
        return checked and checked["expected"].decode()

    assert expected(0) is None, "a name that was asked for too early is not remembered"
    write_ensemble(tmp_path, "late", "TEXT")
    with pytest.raises(RefusedError, match="input 'QUESTION' is unknown: the model takes TEXT"):
        expected(0)
    for file in (manifest, config):
        file.write_text(file.read_text().replace("TEXT", "QUESTION"))
    assert expected(1) == str(digest(b"x")), "another generation is seen at the first request that is for it"
    manifest.write_text("{")
    assert expected(10) == str(digest(b"x"))
    manifest.unlink()
    assert expected(10) == str(digest(b"x"))
    with pytest.raises(RefusedError, match=r"late\.20260102030405_model is a step"):
        guard.http(infer(), model="late.20260102030405_model")


def test_steps_are_those_of_our_packages(tmp_path: Path) -> None:
    """Whatever layout a package has now, and whichever generation it was: Triton may still serve its steps."""
    guard, step = Guard(tmp_path), "20200102030405_model"
    write_ensemble(tmp_path, "ours", "TEXT", layout="fused")
    assert guard.http(infer(), model="ours")["expected"].decode() == str(digest(b"x"))
    with pytest.raises(RefusedError, match=f"ours.{step} is a step of the ensemble ours"):
        guard.http(infer(), model=f"ours.{step}")
    for others in ("ours_model", f"theirs.{step}", f"ours.{step}s", "ours.2_model", f"ours.{GENERATION}_other"):
        assert guard.http(infer(), model=others) is None, "a model of another tool"


def test_the_generation_is_that_of_the_configuration(tmp_path: Path) -> None:
    """Also of an ensemble that is called by the name of its generation: its manifest is in the version 1."""
    guard, later = Guard(tmp_path), "20270102030405"
    write_ensemble(tmp_path, "ours", "TEXT")
    write_ensemble(tmp_path, "ours", "QUESTION", generation=later)
    write_ensemble(tmp_path, f"ours.{GENERATION}", "TEXT", generation="1")
    (tmp_path / f"ours.{GENERATION}" / "config.pbtxt").write_text("max_batch_size: 3")
    assert guard.http(infer(tensor(name="QUESTION")), model="ours")["expected"].decode() == str(digest(b"x"))
    assert guard.http(infer(), model=f"ours.{GENERATION}")["expected"].decode() == str(digest(b"x"))


def test_the_last_model_name_counts(guard: Guard) -> None:
    last = service_pb2.ModelInferRequest(model_name="sent.20260102030405_model").SerializeToString()
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
    (infer(id=7), "id must be a string"),
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
    assert guard.http({"TEXT": 1, "x": [{}]}, verb="generate", model="other") is None
    assert guard.http({"TEXT": "x"}, verb="generate_stream", model="other") is None
    for body, reason in [
        ({}, "^input 'TEXT' is missing$"),
        ({"other": "x"}, "^input 'TEXT' is missing$"),
        ({"TEXT": 1}, "input 'TEXT' must be a list"),
        ({"TEXT": None}, "input 'TEXT' must be a list"),
        ({"TEXT": "x", "targets": ["a"]}, "^option 'targets': a list must be JSON in a text$"),
        ({"TEXT": "x", "parameters": {"top_k": None}}, "^option 'top_k': null must be JSON in a text$"),
        ({"TEXT": "x", "parameters": [1]}, "^parameters must be an object$"),
        ({"TEXT": [1]}, "each element of input 'TEXT' must be a string"),
        ({"TEXT": "x", "parameters": {"TEXT": "y"}}, "must stand beside parameters"),
        ([], "the body must be an object"),
        ({"TEXT": "x", "id": 7}, "id must be a string"),
        (b'{"TEXT": "x", "temperature": -1e400}', "a number that is too large"),
    ]:
        with pytest.raises(RefusedError, match=reason):
            guard.http(body, verb="generate")
    with pytest.raises(RefusedError, match="as many rows"):
        guard.http({"TEXT": "x", "TEXT_PAIR": ["a", "b"]}, verb="generate", model="pairs")
    with pytest.raises(RefusedError, match="sent does not stream"):
        guard.http({"TEXT": "x"}, verb="generate_stream")


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ([tensor(shape=[1], data=["x"])], r"input 'TEXT': its shape must be \[rows, 1\], not \[1\]"),
        ([tensor(shape=[1, 1, 1])], r"input 'TEXT': its shape must be \[rows, 1\], not \[1, 1, 1\]"),
        ([tensor(shape=[1, 2], data=["x", "y"])], r"input 'TEXT': its shape must be \[rows, 1\], not \[1, 2\]"),
        ([tensor(name="TXT")], "input 'TXT' is unknown: the model takes TEXT"),
        ([tensor(), tensor(name="OTHER")], "input 'OTHER' is unknown: the model takes TEXT"),
        ([], "input 'TEXT' is missing"),
        ([tensor(datatype="INT64", data=[1])], "input 'TEXT': its datatype must be BYTES, not INT64"),
    ],
)
def test_inputs_are_those_of_the_model(guard: Guard, inputs: list[Any], reason: str) -> None:
    with pytest.raises(RefusedError, match=f"^{reason}$") as refused:
        guard.http({"inputs": inputs})
    assert refused.value.http == "400"
    names = [{name: one[name] for name in ("name", "datatype", "shape")} for one in inputs]
    data = [raw(*[text.encode() for text in one["data"]]) if one["datatype"] == "BYTES" else b"\1" + bytes(7) for one in inputs]
    with pytest.raises(RefusedError, match=f"^{reason}$"):
        guard.grpc(message(inputs=names, raw_input_contents=data))
    assert guard.http({"inputs": inputs}, model="other") is None


@pytest.mark.parametrize(("value", "shown"), [(None, "null"), (["a"], "a list"), ({"a": 1}, "an object")])
def test_options_are_no_lists_and_not_null(guard: Guard, value: Any, shown: str) -> None:
    with pytest.raises(RefusedError, match=f"^option 'targets': {shown} must be JSON in a text$"):
        guard.http(infer(parameters={"top_k": 1, "targets": value}))


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
