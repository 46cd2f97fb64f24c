"""Requests to ``generate`` and ``generate_stream`` of a model that streams: what the filter refuses, and what it lets pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serving.pbtxt import from_pbtxt, to_pbtxt
from tests.helpers.decoupled import FLAGS, write_model
from tests.serving.front.guard_in_python import Guard, RefusedError


@pytest.mark.parametrize("verb", ["generate", "generate_stream"])
def test_http_requests_to_a_streaming_model(streaming: Guard, verb: str) -> None:
    assert streaming.http({"text_input": "x", "temperature": 0.5}, model="writer", verb=verb) is None
    for body in (b"{", b'{"a":' + b"[" * 100_000, b'{"text_input":"x","text_input":"y"}', b"[]"):
        with pytest.raises(RefusedError) as refused:
            streaming.http(body, model="writer", verb=verb)
        assert refused.value.http == "400"


ELSEWHERE = "must be JSON in a text, or stand in sampling_parameters"
BAD_FIELDS = [
    ({}, "input 'text_input' is missing"),
    ({"text_input": None}, "input 'text_input': it must be a text"),
    ({"text_input": 1}, "input 'text_input': it must be a text"),
    ({"text_input": [["x"]]}, "input 'text_input': it must be a text"),
    ({"text_input": ["x", "y"]}, "input 'text_input': its list must have length 1, not 2"),
    ({"sampling_parameters": {"top_k": 1}}, "input 'sampling_parameters': it must be JSON in a text"),
    *(
        ({name: value}, f"input '{name}': it must be true or false")
        for name in FLAGS
        for value in ("x", "true", 1, None, ["x"], {})
    ),
    ({"parameters": {"return_finish_reason": 1}}, "input 'return_finish_reason': it must be true or false"),
    ({"parameters": {"text_input": "y"}}, "'text_input' is given twice: in parameters and beside it"),
    ({"top_k": 1, "parameters": {"top_k": 2}}, "'top_k' is given twice: in parameters and beside it"),
    ({"parameters": 5}, "parameters must be an object"),
    ({"stop": ["girl"]}, f"option 'stop': a list {ELSEWHERE}"),
    ({"parameters": {"max_new_tokens": None}}, f"option 'max_new_tokens': null {ELSEWHERE}"),
    ({"logit_bias": {"5": 1}}, f"option 'logit_bias': an object {ELSEWHERE}"),
    ({"messages": [{}]}, "option 'messages' must be true or false: the messages stand in text_input, as JSON in a text"),
]


@pytest.mark.parametrize(("fields", "reason"), BAD_FIELDS, ids=[str(fields) for fields, _ in BAD_FIELDS])
@pytest.mark.parametrize("verb", ["generate", "generate_stream"])
def test_inputs_and_options_at_generate_are_checked(streaming: Guard, verb: str, fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(RefusedError, match=f"^{reason}$") as refused:
        streaming.http({"text_input": "x", **fields} if fields else {}, model="writer", verb=verb)
    assert refused.value.http == "400"


@pytest.mark.parametrize(
    ("datatype", "good", "bad", "what"),
    [
        ("STRING", ["", "x"], [1, True, None], "a text"),
        ("BOOL", [True, False], [0, "true", None], "true or false"),
        ("INT64", [-1, 5], [0.5, "5", True, None], "a whole number"),
        ("UINT8", [5], [0.5, "5", True, None], "a whole number"),
        ("FP32", [-1, 0.5], ["5", True, None], "a number"),
    ],
)
def test_inputs_of_every_datatype_are_checked(tmp_path: Path, datatype: str, good: list[Any], bad: list[Any], what: str) -> None:
    write_model(tmp_path, "writer")
    config = from_pbtxt((tmp_path / "writer" / "config.pbtxt").read_text())
    config["input"].append({"name": "more", "data_type": f"TYPE_{datatype}", "dims": [-1], "optional": True})
    (tmp_path / "writer" / "config.pbtxt").write_text(to_pbtxt(config))
    guard = Guard(tmp_path)
    for value in (*good, good, []):
        assert guard.http({"text_input": "x", "more": value}, model="writer", verb="generate") is None
    for value in (*bad, bad, {}):
        with pytest.raises(RefusedError, match=f"^input 'more': it must be {what}$"):
            guard.http({"text_input": "x", "more": value}, model="writer", verb="generate")


GOOD_FIELDS = [
    *(
        {name: value}
        for name in FLAGS
        for value in (True, False, [True])
        if (name, value) not in (("stream", True), ("stream", [True]))
    ),
    {"text_input": ["x"], "sampling_parameters": ["{}"], "id": "5"},
    {"parameters": {"stream": False, "temperature": 0, "stop": '["a"]', "ignore_eos": True}},
]


@pytest.mark.parametrize("fields", GOOD_FIELDS, ids=str)
def test_what_triton_reads_passes(streaming: Guard, fields: dict[str, Any]) -> None:
    assert streaming.http({"text_input": "x", **fields}, model="writer", verb="generate") is None


@pytest.mark.parametrize("fields", [{"stream": True}, {"stream": [True]}, {"parameters": {"stream": True}}], ids=str)
def test_generate_has_one_answer(streaming: Guard, fields: dict[str, Any]) -> None:
    assert streaming.http({"text_input": "x", **fields}, model="writer", verb="generate_stream") is None
    with pytest.raises(RefusedError, match="generate has one answer"):
        streaming.http({"text_input": "x", **fields}, model="writer", verb="generate")
