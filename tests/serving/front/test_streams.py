"""A model that streams, behind the front: what its clients get, and what becomes of their leaving."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from serving.front.replies import BUSY, FULL
from serving.runtime.failure_messages import BUSY as QUEUE_FULL
from serving.runtime.failure_messages import LATE, NOT_RUN
from tests.helpers.decoupled import DecoupledServer, decoupled_server, generate_message, write_model
from tests.helpers.front_requests import ask
from tests.helpers.servers import serve_options
from tests.serving.front.test_guard_generate import BAD_FIELDS, GOOD_FIELDS
from tests.serving.front.test_guard_streams import STILL_RUNNING, STOPPING

PATH = "/v2/models/writer/generate_stream"
IN_FLIGHT, QUEUE = 3, 1


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DecoupledServer]:
    folder = tmp_path_factory.mktemp("streams")
    (folder / "model_repository").mkdir()
    write_model(folder / "model_repository", "writer")
    options = replace(serve_options(folder / "model_repository"), in_flight=IN_FLIGHT, queue=QUEUE)
    with decoupled_server(options, folder) as server:
        yield server


@pytest.fixture
def stub(writer: DecoupledServer) -> Iterator[Any]:
    with grpc.insecure_channel(writer.options.grpc_url) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def body(text: str, **options: Any) -> bytes:
    return json.dumps({"text_input": text, "sampling_parameters": json.dumps(options)}).encode()


@contextlib.contextmanager
def events(writer: DecoupledServer, text: str, **options: Any) -> Iterator[http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", writer.options.http_port, timeout=20)
    with contextlib.closing(connection):
        connection.request("POST", PATH, body(text, **options))
        yield connection.getresponse()


def pieces(answers: Iterator[Any]) -> list[bytes]:
    return [answer.infer_response.raw_output_contents[0][4:] for answer in answers]


def next_event(answer: http.client.HTTPResponse) -> Any:
    line = answer.readline()
    assert answer.readline() == b"\n"
    return json.loads(line.removeprefix(b"data: "))


class Sending:
    """A client's half of a gRPC stream, which stays open until it is closed."""

    def __init__(self, *requests: service_pb2.ModelInferRequest) -> None:
        self.requests, self.closed = list(requests), threading.Event()

    def __iter__(self) -> Iterator[service_pb2.ModelInferRequest]:
        yield from self.requests
        self.closed.wait(20)


def test_streams_have_no_time_limit_and_other_calls_do() -> None:
    """A limit for sending a request would end a stream that waits for its first answer, so only servers that stream lack it."""
    from serving.front.bootstrap import envoy_bootstrap
    from serving.front.front_plan import FrontPlan

    def listener(*, streams: bool) -> Any:
        where, folder = ("127.0.0.1", 1), Path("/nowhere")
        plan = FrontPlan(
            repository=folder,
            http=where,
            grpc=where,
            metrics=where,
            triton_http=folder,
            triton_grpc=folder,
            triton_metrics=folder,
            admin=folder,
            in_flight=1,
            queue=1,
            max_request_bytes=1,
            streams=streams,
            stop_file=folder,
        )
        _, found, _ = envoy_bootstrap(plan)["static_resources"]["listeners"]
        return found["filter_chains"][0]["filters"][0]["typed_config"]

    def routes(manager: Any) -> dict[str, Any]:
        (host,) = manager["route_config"]["virtual_hosts"]
        return {route["match"]["safe_regex"]["regex"].rpartition("/")[2]: route for route in host["routes"]}

    plain, streaming = listener(streams=False), listener(streams=True)
    assert (plain["request_timeout"], streaming["request_timeout"]) == ("60s", "0s")
    refusal = routes(plain)["ModelStreamInfer"]["direct_response"]
    assert (refusal["status"], refusal["body"]["inline_string"]) == (404, "no model here streams: use ModelInfer")
    route = routes(streaming)["ModelStreamInfer"]["route"]
    assert route["timeout"] == "0s"
    assert "max_stream_duration" not in route
    for name, other in routes(streaming).items():
        if "route" in other and name != "ModelStreamInfer":
            assert other["route"]["max_stream_duration"]["max_stream_duration"] == "660s", name


@pytest.mark.server
def test_generate_streams_events(writer: DecoupledServer) -> None:
    begun = time.monotonic()
    with events(writer, "events", pieces=3, delay_ms=150) as answer:
        assert (answer.status, answer.getheader("content-type")) == (200, "text/event-stream; charset=utf-8")
        assert next_event(answer)["text_output"] == "0 "
        assert time.monotonic() - begun < 0.29, "the first piece comes before the second is written"
        assert [next_event(answer)["text_output"] for _ in range(2)] == ["1 ", "2 "]
        assert answer.read() == b""
    status, text, _ = ask(f"{writer.options.base_url}/v2/models/writer/generate", body("whole", pieces=1))
    assert (status, json.loads(text)["text_output"]) == (200, "0 ")


@pytest.mark.server
def test_triton_accepts_the_inputs_and_options_that_the_front_lets_pass(writer: DecoupledServer) -> None:
    for number, fields in enumerate(GOOD_FIELDS):
        content = {"text_input": f"fields {number}", "sampling_parameters": '{"pieces": 1}', **fields}
        if "id" in content:
            content["sampling_parameters"] = ['{"pieces": 1}']
        status, text, _ = ask(f"{writer.options.base_url}/v2/models/writer/generate", json.dumps(content).encode())
        assert (status, json.loads(text).get("text_output")) == (200, "0 "), fields
    for fields, reason in BAD_FIELDS:
        content = {"text_input": "x", **fields} if fields else {}
        got = ask(f"{writer.options.base_url}/v2/models/writer/generate", json.dumps(content).encode())[:2]
        assert got == (400, json.dumps({"error": reason}, separators=(",", ":"))), fields


@pytest.mark.server
@pytest.mark.parametrize("verb", ["generate", "generate_stream"])
@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (QUEUE_FULL, "UNAVAILABLE", 503),
        (LATE, "UNAVAILABLE", 504),
        (NOT_RUN, "INTERNAL", 500),
        (f"option stop_sequence {QUEUE_FULL!r} has no tokens", "INVALID_ARG", 400),
    ],
)
def test_the_status_of_an_error_follows_from_its_whole_message(
    writer: DecoupledServer, verb: str, error: str, code: str, status: int
) -> None:
    """Triton 2.51 itself says 400 to all of them."""
    url = f"{writer.options.base_url}/v2/models/writer/{verb}"
    got, text, headers = ask(url, body("refused", error=error, code=code))
    assert (got, headers.get("retry-after")) == (status, "1" if status == 503 else None)
    assert json.loads(text.removeprefix("data: ")) == {"error": error}


@pytest.mark.server
def test_a_grpc_stream_passes_each_piece_at_once(writer: DecoupledServer, stub: Any) -> None:
    begun = time.monotonic()
    answers = stub.ModelStreamInfer(iter([generate_message("pieces", pieces=3, delay_ms=150)]), timeout=20)
    first = next(answers)
    assert time.monotonic() - begun < 0.29
    assert [first.infer_response.raw_output_contents[0][4:], *pieces(answers)] == [b"0 ", b"1 ", b"2 "]
    assert answers.code() == grpc.StatusCode.OK


@pytest.mark.server
def test_requests_follow_each_other_in_one_stream(stub: Any) -> None:
    """As a client of Triton's library sends them, which keeps its stream open."""
    turn = threading.Semaphore(1)

    def sending() -> Iterator[service_pb2.ModelInferRequest]:
        for text in "abc":
            turn.acquire()
            yield generate_message(text, request_id=text, pieces=2)

    found = []
    for answer in stub.ModelStreamInfer(sending(), timeout=20):
        found.append((answer.infer_response.id, answer.infer_response.parameters["triton_final_response"].bool_param))
        if found[-1][1]:
            turn.release()
    assert found == [(text, last) for text in "abc" for last in (False, True)]


@pytest.mark.server
def test_bad_requests_leave_the_others_of_their_stream_alone(writer: DecoupledServer, stub: Any) -> None:
    wrong = generate_message("x", request_id="wrong")
    wrong.raw_input_contents[0] = b"\1"
    sending = Sending(
        generate_message("good", request_id="good", pieces=4, delay_ms=50), wrong, generate_message("y", "other", "o")
    )
    found: dict[str, list[str]] = {}
    for answer in stub.ModelStreamInfer(iter(sending), timeout=20):
        found.setdefault(answer.infer_response.id, []).append(answer.error_message)
        if len(found.get("good", [])) == 4:
            sending.closed.set()
    assert found == {
        "good": [""] * 4,
        "wrong": ["input 'text_input': the length in front of element 0 does not fit the data"],
        "o": ["Request for unknown model: 'other' is not found"],
    }


@pytest.mark.server
def test_an_error_is_the_status_of_a_stream_that_asks_for_it(stub: Any) -> None:
    wrong = generate_message("x")
    wrong.raw_input_contents[0] = b"\1"
    for request, code, details in [
        (wrong, grpc.StatusCode.INVALID_ARGUMENT, "input 'text_input': the length in front of element 0 does not fit the data"),
        (generate_message("x", "other"), grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'other' is not found"),
        (generate_message("x", fail_at=1), grpc.StatusCode.INTERNAL, "the model failed: the server's log tells why"),
    ]:
        with pytest.raises(grpc.RpcError) as failed:
            list(stub.ModelStreamInfer(iter([request]), timeout=20, metadata=[("triton_grpc_error", "true")]))
        assert (failed.value.code(), failed.value.details()) == (code, details)


@pytest.mark.server
def test_an_error_in_a_stream_shows_no_stack(writer: DecoupledServer, stub: Any) -> None:
    told = "the model failed: the server's log tells why"
    *_, answer = stub.ModelStreamInfer(iter([generate_message("x", pieces=3, fail_at=1)]), timeout=20)
    assert answer.error_message == told
    with events(writer, "x", pieces=3, fail_at=1) as stream:
        assert next_event(stream)["text_output"] == "0 "
        assert next_event(stream) == {"error": told}
    with events(writer, "x", pieces=3, fail_at=0) as stream:
        assert (stream.status, json.loads(stream.read())) == (500, {"error": told})


@pytest.mark.server
def test_many_requests_at_once_in_a_stream_do_not_end_triton(writer: DecoupledServer, stub: Any) -> None:
    """Without the front, a few hundred of these end Triton 2.51."""
    good, bad = generate_message("x", pieces=20), generate_message("x", "nothing")
    for _ in range(10):
        sending = Sending(*[good, bad] * 200)
        answers = stub.ModelStreamInfer(iter(sending), timeout=20)
        refused = {answer.error_message for answer, _ in zip(answers, range(140), strict=False)}
        sending.closed.set()
        assert refused >= {STILL_RUNNING, "Request for unknown model: 'nothing' is not found"}
        list(answers)


@pytest.mark.server
def test_leaving_reaches_the_model(writer: DecoupledServer, stub: Any) -> None:
    answers = stub.ModelStreamInfer(iter([generate_message("leave grpc", pieces=100, delay_ms=30)]))
    for _ in range(5):
        next(answers)
    answers.cancel()
    assert writer.ended("leave grpc")["produced"] <= 5 + 3
    with events(writer, "leave http", pieces=100, delay_ms=30) as answer:
        for _ in range(5):
            next_event(answer)
    ended = writer.ended("leave http")
    assert ended["cancelled"]
    assert ended["produced"] <= 5 + 3


@pytest.mark.server
def test_a_client_that_does_not_read_delays_no_other(writer: DecoupledServer, stub: Any) -> None:
    with events(writer, "unread", pieces=20_000, size=2000) as unread:
        assert unread.status == 200
        begun = time.monotonic()
        assert len(pieces(stub.ModelStreamInfer(iter([generate_message("read", pieces=3)]), timeout=20))) == 3
        assert time.monotonic() - begun < 5
    assert writer.ended("unread", seconds=20)["produced"] <= 20_000


@pytest.mark.server
def test_streams_count_while_they_run(writer: DecoupledServer, stub: Any) -> None:
    """One more waits, a further one is refused; a hold refuses all."""
    running = [stub.ModelStreamInfer(iter([generate_message("run", pieces=200, delay_ms=20)])) for _ in range(IN_FLIGHT)]
    for answers in running:
        next(answers)
    waiting = stub.ModelStreamInfer(iter([generate_message("wait", pieces=1)]))
    wait_for(lambda: writer.front._activity().requests == QUEUE)
    with pytest.raises(grpc.RpcError) as refused:
        list(stub.ModelStreamInfer(iter([generate_message("x")]), timeout=20))
    assert (refused.value.code(), refused.value.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, BUSY)
    for answers in running:
        answers.cancel()
    assert pieces(waiting) == [b"0 "]
    writer.front.hold(on=True)
    try:
        with pytest.raises(grpc.RpcError) as refused:
            list(stub.ModelStreamInfer(iter([generate_message("x")]), timeout=20))
        assert (refused.value.code(), refused.value.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, FULL)
        with events(writer, "x") as answer:
            assert (answer.status, json.loads(answer.read())) == (503, {"error": FULL})
    finally:
        writer.front.hold(on=False)


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.server
@pytest.mark.parametrize(("seconds", "last"), [(10, ["8 ", "9 "]), (0.3, [STOPPING])])
def test_a_stop_waits_for_streams_and_then_ends_them(writer: DecoupledServer, stub: Any, seconds: float, last: list[str]) -> None:
    found: list[str] = []
    sending = Sending(generate_message("stop", pieces=10, delay_ms=400 if seconds < 1 else 100))

    def read() -> None:
        with contextlib.suppress(grpc.RpcError):  # the test ends the stream
            for answer in stub.ModelStreamInfer(iter(sending), timeout=20):
                found.append(answer.error_message or answer.infer_response.raw_output_contents[0][4:].decode())
                if found[-1] in ("9 ", STOPPING):
                    sending.closed.set()

    reader = threading.Thread(target=read)
    reader.start()
    wait_for(lambda: found)
    try:
        with events(writer, f"stop {seconds}", pieces=10, delay_ms=400 if seconds < 1 else 100) as answer:
            next_event(answer)
            writer.front.close()
            with pytest.raises(grpc.RpcError) as refused:
                list(stub.ModelStreamInfer(iter([generate_message("x")]), timeout=20))
            assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
            writer.front.wait_idle(seconds)
            if seconds < 1:
                told: dict[str, Any] = {}
                while "error" not in told:  # there are two pieces at most before it
                    told = next_event(answer)
                assert told == {"error": STOPPING}
            else:
                assert [next_event(answer)["text_output"] for _ in range(9)][-2:] == last
        reader.join(10)
    finally:
        writer.front.open()
    assert found[-len(last) :] == last
