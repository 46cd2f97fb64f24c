"""Requests that failed are in the server's log with their reason, without texts, and cannot fill it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from serving.front.failed_requests import MARK, MOST_IDS, MOST_KINDS, FailedRequests, read_failure, without_texts
from serving.triton_address import fetch
from tests.helpers.front_requests import body, tensor
from tests.helpers.served_processes import log_path
from tests.helpers.servers import Server

REASON = "TEXT, row 1: byte 2 is not valid UTF-8"
HTTP = {
    MARK: "HTTP/1.1",
    "method": "POST",
    "path": "/v2/models/reviews/infer",
    "status": 400,
    "grpc_status": None,
    "flags": "-",
    "details": "via_upstream",
    "reply": "-",
    "model": "reviews",
    "reason": REASON,
    "request_id": "abc-1",
    "message_id": None,
}


@pytest.mark.parametrize(
    ("changes", "described"),
    [
        ({}, f"model reviews, HTTP 400, request id abc-1: {REASON}"),
        ({"request_id": "-", "model": None}, f"model reviews, HTTP 400: {REASON}"),
        (
            {"path": "/inference.GRPCInferenceService/ModelInfer", "status": 200, "grpc_status": 3},
            f"model reviews, gRPC INVALID_ARGUMENT, request id abc-1: {REASON}",
        ),
        (
            {"path": "/inference.GRPCInferenceService/ModelStreamInfer", "status": 200, "grpc_status": 0},
            f"model reviews, in a stream, request id abc-1: {REASON}",
        ),
        (
            {"path": "/inference.GRPCInferenceService/ModelStreamInfer", "status": 200, "grpc_status": 0, "message_id": "7\n"},
            f"model reviews, in a stream, request id 7?, stream abc-1: {REASON}",
        ),
        (
            {"path": "/v2/models/reviews/generate_stream", "status": 200},
            f"model reviews, in a stream, request id abc-1: {REASON}",
        ),
        (
            {"reason": None, "reply": '{"error": "busy"}'},
            "model reviews, HTTP 400, request id abc-1: busy",
        ),
        ({"reason": None, "status": 413, "details": "too_large"}, "model reviews, HTTP 413, request id abc-1: too_large"),
        (
            {"path": "/v2/models/a secret/infer", "model": "a secret"},
            f"HTTP 400, request id abc-1: {REASON}",
        ),
        (
            {"request_id": "x\ny" * 99},
            f"model reviews, HTTP 400, request id {('x?y' * 99)[:128]}: {REASON}",
        ),
        ({"flags": "DC", "status": 0}, None),
        ({"flags": "UF,DR", "status": 0, "details": "http2.remote_reset"}, None),
        ({"path": "/v2/health/ready", "status": 503}, None),
        ({"path": "/inference.GRPCInferenceService/ServerReady", "status": 200, "grpc_status": 14}, None),
    ],
)
def test_a_failure_is_described(changes: dict[str, Any], described: str | None) -> None:
    failed = read_failure(HTTP | changes)
    assert (None if failed is None else str(failed)) == described


@pytest.mark.parametrize(
    ("reason", "written"),
    [
        ("option top_k must be a whole number, not 'my secret text'", "option top_k must be a whole number, not '…'"),
        ("input 'WORDS': it is not an input of 'reviews'", "input 'WORDS': it is not an input of 'reviews'"),
        ("CHOICES is not JSON: line 1: '[\"it\\'s a secret', and more", "CHOICES is not JSON: line 1: '…', and more"),
        ("not 'a text that is cut o", "not '…'"),
        ("not \"a text, twice\" but 'x'", "not '…' but '…'"),
        ("option top_k must be a whole number, not 'hunter2-password'", "option top_k must be a whole number, not '…'"),
        ("option stop must be a list of strings, not ['hunter2']", "option stop must be a list of strings, not ['…']"),
        (
            "option a is given twice: it is 'b' in sampling_parameters, and 'c' as a parameter of the request",
            "option a is given twice: it is '…' in sampling_parameters, and '…' as a parameter of the request",
        ),
        ("option targets: the model does not know token 'hunter2'", "option targets: the model does not know token '…'"),
        (
            "option x must be true, false or \"never\", not 'hunter2'",
            "option x must be true, false or \"never\", not '…'",
        ),
        ("'stop' is given twice: in parameters and beside it", "'stop' is given twice: in parameters and beside it"),
        ("Request for unknown model: 'nope' is not found", "Request for unknown model: 'nope' is not found"),
        ("in ensemble 'reviews', no output 'X' for model 'y_0'", "in ensemble 'reviews', no output 'X' for model 'y_0'"),
        ("grüne\nZeilen", "gr?ne?Zeilen"),
        ("Triton's log, the model's 'secret text'", "Triton's log, the model's '…'"),
        ("x" * 1000, "x" * 300),
    ],
)
def test_what_a_message_quotes_is_left_out(reason: str, written: str) -> None:
    assert without_texts(reason) == written


class Written(list[str]):
    """The lines that were written, and what is known about each."""

    def __init__(self) -> None:
        super().__init__()
        self.extras: list[dict[str, object]] = []

    def __call__(self, message: str, /, *, extra: Mapping[str, object]) -> None:
        self.append(message)
        self.extras.append(dict(extra))


def test_a_flood_is_a_few_lines() -> None:
    lines = Written()
    now = [0.0]
    failed = FailedRequests(lines, clock=lambda: now[0])
    for number in range(1000):
        assert failed.read(json.dumps(HTTP | {"request_id": f"r{number}"}))
    assert len(lines) == 1
    for number in range(100):
        failed.read(json.dumps(HTTP | {"reason": f"reason {number}", "request_id": f"f{number}"}))
    assert len(lines) == MOST_KINDS
    failed.flush()
    assert len(lines) == MOST_KINDS, "the period is not over"
    now[0] = 11.0
    failed.flush()
    ids = [f"r{number}" for number in range(1, MOST_IDS + 1)]
    repeated = f"request id r0: {REASON} (999 more in 11 s, request ids {', '.join(ids)}, …)"
    assert lines[-2] == f"request failed: model reviews, HTTP 400, {repeated}"
    assert {"request_id": "r0", "repeated": 999, "repeated_ids": ids}.items() <= lines.extras[-2].items()
    further = f"{101 - MOST_KINDS} further requests failed in 11 s, for other reasons than those above"
    others = [f"f{number}" for number in range(MOST_KINDS - 1, MOST_KINDS - 1 + MOST_IDS)]
    assert lines[-1] == f"{further} (request ids {', '.join(others)}, …)"
    assert lines.extras[-1] == {"repeated": 101 - MOST_KINDS, "repeated_ids": others}
    failed.read(json.dumps(HTTP))
    assert lines[-1] == f"request failed: model reviews, HTTP 400, request id abc-1: {REASON}", "a new period"
    assert lines.extras[-1] == {"model": "reviews", "status": "HTTP 400", "request_id": "abc-1"}
    written = len(lines)
    failed.flush(now=True)
    assert len(lines) == written, "there was one"
    failed.read(json.dumps(HTTP | {"request_id": "-"}))
    failed.read(json.dumps(HTTP | {"request_id": "-"}))
    failed.flush(now=True)
    assert lines[-1] == f"request failed: model reviews, HTTP 400: {REASON} (1 more in 0 s)"


@pytest.mark.parametrize(
    "line", [json.dumps(HTTP)[:60], json.dumps({MARK: "HTTP/1.1"}), json.dumps(HTTP | {"grpc_status": "x", "path": "/inference"})]
)
def test_a_broken_line_does_not_end_the_reader(line: str) -> None:
    lines = Written()
    assert FailedRequests(lines).read(line)
    assert lines == ["request failed: the proxy's line about it is broken"]
    assert lines.extras == [{}]


def test_other_lines_are_none_of_its_business() -> None:
    lines = Written()
    failed = FailedRequests(lines)
    for line in ("warning something", '{"a": 1}', f"a text with {MARK}", ""):
        assert not failed.read(line)
    assert not lines


def logged(server: Server, start: int, part: str) -> str:
    """The line of the server's log about a failed request with that part, without the id that the front has made."""
    deadline = time.monotonic() + 30
    while True:
        text = log_path(server.options).read_bytes()[start:].decode()
        named = [re.subn(r",? request id [0-9a-f-]{36}:", ":", line) for line in text.splitlines() if "request failed: " in line]
        found = [line for line, ids in named if ids == 1 and part in line]
        if found:
            assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z warning: request failed: ", found[0])
            return found[0].partition("request failed: ")[2]
        assert time.monotonic() < deadline, text
        time.sleep(0.1)


def end_of_log(server: Server) -> int:
    return log_path(server.options).stat().st_size


def post(content: bytes, path: str = "/v2/models/ragged/infer") -> Callable[[Server], None]:
    def send(server: Server) -> None:
        assert fetch(server.options.base_url, path, content, timeout=30)[0] >= 400

    return send


def infer(model: str, rows: list[bytes], **parameters: Any) -> Callable[[Server], None]:
    def send(server: Server) -> None:
        with grpcclient.InferenceServerClient(server.url("grpc")) as client, pytest.raises(InferenceServerException):
            client.infer(model, tensor(*rows), parameters=parameters or None)

    return send


def configuration(model: str) -> Callable[[Server], None]:
    def send(server: Server) -> None:
        with grpcclient.InferenceServerClient(server.url("grpc")) as client, pytest.raises(InferenceServerException):
            client.get_model_config(model)

    return send


PRIVATE = "a text that nobody else may read"
FAILURES = {
    "the proxy: too large": (post(b"x" * 5 * 2**20), "model ragged, HTTP 413: "),
    "the proxy: a closed part": (post(b"{}", "/v2/logging"), "HTTP 403: this part of Triton's API is closed"),
    "the guard: not JSON": (post(f'{{"inputs": [{{"x": "{PRIVATE}"'.encode()), "model ragged, HTTP 400: "),
    "the guard: a step": (
        post(body("x"), "/v2/models/ragged.20260102030405_model/infer"),
        "model ragged.20260102030405_model, HTTP 403: ragged.20260102030405_model is a step of",
    ),
    "the guard over gRPC": (
        infer("ragged.20260102030405_preprocess", [b"x"]),
        "model ragged.20260102030405_preprocess, gRPC PERMISSION_DENIED: ",
    ),
    "Triton: an unknown model": (infer("absent", [b"x"]), "model absent, gRPC NOT_FOUND: "),
    "Triton: the settings of an unknown model": (configuration("absent"), "model absent, gRPC NOT_FOUND: "),
    "Triton: too many rows": (infer("ragged", [b"x"] * 65), "model ragged, gRPC INVALID_ARGUMENT: "),
    "a step: not UTF-8": (
        infer("ragged", [b"fine", b"ab\xff"]),
        f"model ragged, gRPC INVALID_ARGUMENT: in ensemble 'ragged', {REASON}",
    ),
    "a step: an option": (
        infer("ragged", [b"x"], function_to_apply=PRIVATE),
        "model ragged, gRPC INVALID_ARGUMENT: in ensemble 'ragged', option function_to_apply must be one of "
        "softmax, sigmoid, none, not '…'",
    ),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_request_is_in_the_log(server: Server, failure: str) -> None:
    send, described = FAILURES[failure]
    start = end_of_log(server)
    send(server)
    assert logged(server, start, described).startswith(described)
    assert PRIVATE not in log_path(server.options).read_text(encoding="utf-8")
