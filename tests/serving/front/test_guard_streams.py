"""Streams in the filter: which messages pass, what becomes of the others, and what clients are told."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from tritonclient.grpc import service_pb2

from serving.front.bootstrap import GRPC_CODES, GUARD, guard_source
from serving.runtime.failure_messages import BUSY, STATUSES
from tests.helpers.decoupled import generate_message, write_model
from tests.helpers.raw_wire import bytes_of
from tests.serving.front.guard_in_python import (
    MAX_REQUEST_BYTES,
    Guard,
    RefusedError,
    framed,
    infer,
    message,
    mutated,
)

STILL_RUNNING = "a request of this stream is still running: wait for its last answer, or open another stream"
STOPPING = "the server is starting, restarting or stopping"


class Stream:
    """One stream in the filter, between a client and Triton."""

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self.state = guard.call("new_stream")[0]

    def send(self, *chunks: bytes) -> list[service_pb2.ModelInferRequest]:
        """Send bytes of the client. Returns what Triton gets."""
        passed = b"".join(self.guard.call("take_requests", self.state, chunk)[0] for chunk in chunks)
        return list(parsed(passed, service_pb2.ModelInferRequest))

    def answer(self, *answers: service_pb2.ModelStreamInferResponse) -> list[service_pb2.ModelStreamInferResponse]:
        """Answer as Triton. Returns what the client gets."""
        passed = self.guard.call("take_answers", self.state, b"".join(map(framed, answers)))[0]
        return list(parsed(passed, service_pb2.ModelStreamInferResponse))

    def events(self, chunk: bytes) -> bytes:
        passed: bytes = self.guard.call("take_events", self.state, chunk)[0]
        return passed


def parsed(frames: bytes, kind: Any) -> Iterable[Any]:
    while frames:
        length = int.from_bytes(frames[1:5])
        assert len(frames) >= 5 + length
        yield kind.FromString(frames[5 : 5 + length])
        frames = frames[5 + length :]


def response(request_id: str = "7", text: bytes | None = b"word", *, last: bool = False, error: str = "") -> Any:
    answer = service_pb2.ModelStreamInferResponse(error_message=error)
    answer.infer_response.id = request_id
    answer.infer_response.parameters["triton_final_response"].bool_param = last
    if text is not None and not error:
        answer.infer_response.outputs.add(name="text_output", datatype="BYTES", shape=[1])
        answer.infer_response.raw_output_contents.append(bytes_of(text))
    return answer


@pytest.fixture
def stream(streaming: Guard) -> Stream:
    return Stream(streaming)


GOOD = framed(generate_message("a prompt", request_id="7", pieces=2))


@pytest.mark.parametrize("size", [1, 3, 5, 7, 64, 10_000])
def test_a_message_passes_when_it_is_whole_however_it_is_cut(stream: Stream, size: int) -> None:
    *parts, end = [GOOD[at : at + size] for at in range(0, len(GOOD), size)]
    assert stream.send(*parts) == []
    (passed,) = stream.send(end)
    assert passed.parameters.pop("triton_enable_empty_final_response").bool_param
    assert passed == generate_message("a prompt", request_id="7", pieces=2)


def bad_message(**changes: Any) -> service_pb2.ModelInferRequest:
    request = generate_message("x", request_id="bad")
    for field, value in changes.items():
        request.ClearField(field)
        request.MergeFrom(service_pb2.ModelInferRequest(**{field: value}))
    return request


TEXT_INPUT = {"name": "text_input", "datatype": "BYTES", "shape": [1]}
BAD = {
    "the length in front of element 0": bad_message(raw_input_contents=[b"\1", bytes_of(b"{}")]),
    "raw_input_contents must be given for all": bad_message(raw_input_contents=[b""]),
    "input 'other' is unknown: the model takes exclude_input_in_output, .*, text_input$": bad_message(
        inputs=[TEXT_INPUT, TEXT_INPUT | {"name": "other"}]
    ),
    "is given twice": bad_message(inputs=[TEXT_INPUT, TEXT_INPUT]),
    "its datatype must be BYTES, not UINT8": bad_message(inputs=[TEXT_INPUT | {"datatype": "UINT8"}], raw_input_contents=[b"\1"]),
    r"its shape must be \[1\]": bad_message(inputs=[TEXT_INPUT | {"shape": [1, 1]}], raw_input_contents=[bytes_of(b"x")]),
    "more than 2147483648 elements": bad_message(inputs=[TEXT_INPUT | {"shape": [1, 2**61]}], raw_input_contents=[b""]),
    "input 'text_input' is missing": bad_message(
        inputs=[TEXT_INPUT | {"name": "sampling_parameters"}], raw_input_contents=[bytes_of(b"{}")]
    ),
    "the model has no output 'LABEL'": bad_message(outputs=[{"name": "LABEL"}]),
    "the classification extension": bad_message(
        outputs=[{"name": "text_output", "parameters": {"classification": {"int64_param": 1}}}]
    ),
    "shared memory": bad_message(outputs=[{"name": "text_output", "parameters": {"shared_memory_region": {"string_param": "x"}}}]),
    "writer has no version 7": bad_message(model_version="7"),
    "'sequence_id' is not supported in a stream": bad_message(parameters={"sequence_id": {"int64_param": 1}}),
    "'timeout' must be an int64": bad_message(parameters={"timeout": {"string_param": "1"}}),
    "'triton_other' is not supported": bad_message(parameters={"triton_other": {"bool_param": True}}),
    "must be a bool, an int64, a double or a string": bad_message(parameters={"top_k": {"uint64_param": 1}}),
    "final_response' must be a bool": bad_message(parameters={"triton_enable_empty_final_response": {"int64_param": 1}}),
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_message_is_refused_alone(stream: Stream, reason: str) -> None:
    """Triton 2.51 can end if it refuses a request of a stream itself, so the model gets one that it refuses."""
    stream.send(GOOD)
    stream.answer(response(last=True))
    (instead,) = stream.send(framed(BAD[reason]))
    assert instead.model_name == "writer"
    assert instead.raw_input_contents[1] == bytes_of(b"{")
    (told,) = stream.answer(response("", last=True, error="that is no JSON"))
    assert told.infer_response.id == "bad"
    assert told.infer_response.parameters["triton_final_response"].bool_param
    assert re.search(reason, told.error_message)
    assert [request.id for request in stream.send(GOOD)] == ["7"], "the stream goes on"
    assert stream.answer(response()) == [response()]


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (framed(message()), "sent does not stream: use ModelInfer"),
        (framed(message(model_name="foreign")), "foreign does not stream: use ModelInfer"),
        (framed(message(model_name="nope")), "Request for unknown model: 'nope' is not found"),
        (framed(message(model_name="../writer")), "'../writer' is not the name of a model"),
        (framed(b"\xff\xff"), "the body is not a valid protobuf message"),
        (b"\1" + GOOD[1:], "compressed gRPC messages are not supported"),
        (b"\0\xff\xff\xff\xff", "the request is larger than the 4 MiB that the server accepts"),
    ],
)
def test_a_request_without_a_streaming_model_goes_to_a_name_that_no_model_has(stream: Stream, sent: bytes, reason: str) -> None:
    (instead,) = stream.send(sent)
    assert instead.model_name == " "
    (told,) = stream.answer(service_pb2.ModelStreamInferResponse(error_message="Request for unknown model: ' ' is not found"))
    assert told.error_message == reason
    if not sent.startswith(b"\0\xff"):  # whose rest is still to come
        assert [request.model_name for request in stream.send(GOOD)] == ["writer"], "the stream goes on"


def test_the_rest_of_a_message_that_is_too_long_is_left_out(stream: Stream) -> None:
    stream.send(GOOD)
    stream.answer(response(last=True))
    long = framed(generate_message("x" * MAX_REQUEST_BYTES))
    passed = [stream.send(long[at : at + 65_536]) for at in range(0, len(long) - 65_536, 65_536)]
    assert [len(requests) for requests in passed] == [1] + [0] * (len(passed) - 1)
    assert [told.error_message for told in stream.answer(response(last=True))] == [
        "the request is larger than the 4 MiB that the server accepts"
    ]
    at = len(passed) * 65_536
    assert [request.id for request in stream.send(long[at:] + GOOD)] == ["7"]


def test_messages_that_are_not_whole_do_not_fill_the_memory(streaming: Guard) -> None:
    """Envoy does not count what this filter holds."""
    half = MAX_REQUEST_BYTES // 2
    streams, refused = [Stream(streaming) for _ in range(100)], 0
    for count, stream in enumerate([*streams, *streams]):  # each has sent half of its message before the memory is short
        part = b"%09d" % count * (half // 9)  # Lua keeps equal texts once
        refused += len(stream.send(part if count >= len(streams) else framed(b"x" * MAX_REQUEST_BYTES)[:5] + part))
    assert 30 < refused < 60
    assert streaming.lua.eval(b'collectgarbage() and collectgarbage("count")') < 300 * 1024
    answers = [told for stream in streams for told in stream.answer(response("", last=True, error="no"))]
    assert "the server is busy: its memory is full" in {told.error_message for told in answers}


def test_one_request_runs_at_a_time(stream: Stream) -> None:
    """A refusal beside it goes with the next answer, and is not seen by Triton."""
    assert len(stream.send(GOOD)) == 1
    assert stream.send(framed(generate_message("y", request_id="8"))) == []
    assert stream.send(framed(BAD["is given twice"])) == []
    first, second, third = stream.answer(response())
    assert [(told.infer_response.id, told.error_message) for told in (first, second)] == [
        ("8", STILL_RUNNING),
        ("bad", "input 'text_input' is given twice"),
    ]
    assert third == response()
    assert stream.answer(response(last=True)) == [response(last=True)]
    assert len(stream.send(GOOD)) == 1


def test_a_flood_of_requests_is_thrown_away(stream: Stream) -> None:
    assert len(stream.send(GOOD * 10_000)) == 1
    *refused, notice, answer = stream.answer(response())
    assert [told.error_message for told in refused] == [STILL_RUNNING] * 128
    assert "the rest of it is thrown away" in notice.error_message
    assert answer == response()
    assert stream.send(GOOD) == []
    assert stream.answer(response(last=True)) == [response(last=True)]


def test_the_end_without_a_tensor_is_for_clients_that_asked(stream: Stream) -> None:
    stream.send(GOOD)
    assert stream.answer(response(), response(text=None, last=True)) == [response()]
    asked = generate_message("x", request_id="7")
    asked.parameters["triton_enable_empty_final_response"].bool_param = True
    assert len(stream.send(framed(asked))) == 1
    assert stream.answer(response(text=None, last=True)) == [response(text=None, last=True)]


def test_errors_are_translated(stream: Stream) -> None:
    stream.send(GOOD)
    trace = "Traceback (most recent call last):\n  File /opt"
    (told,) = stream.answer(response(last=True, error=trace))
    assert (told.error_message, told.infer_response.id) == ("the model failed: the server's log tells why", "7")
    own = response(last=True, error="top_p must be at most 1")
    stream.send(GOOD)
    assert stream.answer(own) == [own]


def test_an_error_is_the_status_of_a_stream_that_asks_for_it(streaming: Guard) -> None:
    """The codes are those that the served code gives, which Triton leaves out of its answers in streams."""
    served = {message: GRPC_CODES[status] for message, status in STATUSES.items()}
    others = {"top_p must be at most 1": "3", "Traceback (most recent call last):": "13"}
    for error, code in (served | others).items():
        stream = Stream(streaming)
        stream.state[b"wants_status"] = True
        stream.send(GOOD)
        assert stream.answer(response()) == [response()]
        stream.state[b"is_half_closed"] = True
        assert stream.answer(response(last=True, error=error)) == []
        assert stream.state[b"status"][b"code"].decode() == code
    still_open = Stream(streaming)
    still_open.state[b"wants_status"] = True
    still_open.send(framed(BAD["is given twice"]))
    assert len(still_open.answer(response("", last=True, error="no"))) == 1, "its client may wait for it"
    assert still_open.state[b"status"][b"code"] == b"3"


def test_the_guard_knows_the_failures_of_models_by_their_whole_messages(streaming: Guard) -> None:
    """It is told them when it begins: no file of it repeats them."""
    known = {message.decode(): code.decode() for message, code in streaming.lua.globals()[b"FAILURES"].items()}
    assert known == {message: GRPC_CODES[status] for message, status in STATUSES.items()}
    files = "".join(file.read_text(encoding="utf-8") for file in GUARD.iterdir())
    assert [message for message in STATUSES if message in files] == []


def test_events_pass_whole(stream: Stream) -> None:
    event = b'data: {"text_output":"a \\n\\n b","DIGEST":7}\n\n'
    assert stream.events(event * 3) == event * 3
    for cut in range(1, len(event)):
        assert stream.events(event + event[:cut]) + stream.events(event[cut:]) == event * 2
    failed = b'data: {"error":"E: x\\n\\nAt:\\n  /opt/model.py"}\n\n'
    told = b'data: {"error":"the model failed: the server\'s log tells why"}\n\n'
    assert stream.events(failed) == told
    for error in ("top_p must be at most 1", BUSY, f"the model has no option '{BUSY}'"):
        own = b"data: " + json.dumps({"error": error}, separators=(",", ":")).encode() + b"\n\n"
        assert stream.events(own) == own


def test_streams_end_when_the_server_stops(tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    write_model(tmp_path / "repository", "writer")

    def guard(state: str) -> Guard:
        one = Guard(tmp_path / "repository")
        (tmp_path / "stopping").write_text(state)
        one.functions = one.lua.execute(
            guard_source(tmp_path / "repository", max_request_bytes=MAX_REQUEST_BYTES, stop_file=tmp_path / "stopping").encode()
        )
        return one

    closed = Stream(guard("closed"))
    closed.send(GOOD)
    assert [told.error_message for told in closed.answer(response("", last=True, error="no"))] == [STOPPING]
    assert closed.events(b"data: {}\n\n") == b"data: {}\n\n", "what runs goes on"
    cancelled = Stream(guard("cancelled"))
    (told,) = cancelled.answer(response())
    assert (told.error_message, told.infer_response.id) == (STOPPING, "7")
    assert cancelled.answer(response(), response(last=True)) == []
    assert (
        cancelled.events(b"data: {}\n\ndata: {}\n\n")
        == b"data: " + json.dumps({"error": STOPPING}, separators=(",", ":")).encode() + b"\n\n"
    )


def test_whatever_passes_is_a_request_that_triton_accepts(streaming: Guard) -> None:
    """Changed bytes in a stream never reach Triton, nor stop what follows a frame whose length is right."""
    rng = random.Random(0)
    content = generate_message("a prompt", request_id="7", pieces=2).SerializeToString()
    refused = 0
    for _ in range(2000):
        stream = Stream(streaming)
        stream.send(GOOD)
        stream.answer(response(last=True))
        sent = stream.send(framed(mutated(rng, content)))
        assert len(sent) == 1
        refused += sent[0].raw_input_contents[1] == bytes_of(b"{")
        assert sent[0].model_name == "writer"
        assert {tensor.name for tensor in sent[0].inputs} <= {"text_input", "sampling_parameters"}
        assert all(list(tensor.shape) == [1] and tensor.datatype == "BYTES" for tensor in sent[0].inputs)
        assert [int.from_bytes(data[:4], "little") + 4 for data in sent[0].raw_input_contents] == list(
            map(len, sent[0].raw_input_contents)
        )
    assert refused > 500


def test_a_streaming_model_gets_no_plain_requests(streaming: Guard) -> None:
    reason = "writer answers in pieces: send the request to generate, to generate_stream, or to ModelStreamInfer"
    with pytest.raises(RefusedError, match=reason) as refused:
        streaming.http(infer(), model="writer")
    assert refused.value.http == "400"
    with pytest.raises(RefusedError, match=reason) as refused:
        streaming.grpc(generate_message("x"))
    assert refused.value.grpc == "12"
