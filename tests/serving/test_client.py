"""``TritonPipeline`` against ``transformers.pipeline`` on the same checkpoint, through a real server."""

from __future__ import annotations

import asyncio
import contextlib
import math
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.async_client import OVERTAKING
from serving.client import AsyncTritonPipeline, TritonPipeline
from serving.connection import Connection
from serving.errors import DataError, RequestError
from tests.helpers.packages import step
from tests.helpers.parity import assert_alike, assert_same
from tests.helpers.servers import STRANGE_TEXTS, Server
from tests.helpers.surroundings import free_port

pytestmark = pytest.mark.server
TOLERANCE = 1e-3


def test_a_failed_call_needs_one_trip_to_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    trips = []
    with TritonPipeline("absent", url=f"127.0.0.1:{free_port()}", retries=0) as pipe:
        submit = pipe._submit
        monkeypatch.setattr(pipe, "_submit", lambda coroutine: trips.append(coroutine) or submit(coroutine))
        with pytest.raises(RequestError, match="no Triton server answers"):
            pipe("text")
        assert len(trips) == 1


def test_clients_that_are_closed_after_a_timeout_print_nothing(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """gRPC tells a client of the end of its cancelled call after the client has ended, through the loop of another client."""
    for _ in range(20):
        with TritonPipeline("ragged", url=server.url("grpc"), timeout=1e-4) as pipe, pytest.raises(RequestError, match="within"):
            pipe("text")
    with TritonPipeline("ragged", url=server.url("grpc")) as pipe:
        assert pipe("text")
    assert not [record.getMessage() for record in caplog.records if record.name == "asyncio"]


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("name", ["ragged", "alone"])
def test_equals_the_pipeline_on_every_text(server: Server, expected: Any, texts: list[str], name: str, protocol: str) -> None:
    with TritonPipeline(name, url=server.url(protocol), protocol=protocol) as pipe:
        assert_same(pipe(texts), expected)
    assert len({answer["label"] for answer in expected}) == 2  # a model that always says the same would prove little


@pytest.mark.parametrize(
    "inputs", ["one text", ["one text"], ["two", "texts here"], {"text": "a dict"}, [{"text": "a"}, {"text": "b c"}], []]
)
@pytest.mark.parametrize("options", [{}, {"top_k": 1}, {"top_k": 2}, {"top_k": None}, {"top_k": 5}])
def test_gives_the_same_structure(server: Server, pipeline: Any, inputs: Any, options: dict[str, Any]) -> None:
    with TritonPipeline("ragged", url=server.url("grpc")) as pipe:
        assert_same(pipe(inputs, **options), pipeline(inputs, **options))


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("name", ["ragged", "alone", "int8", "pairs"])
def test_the_tensors_say_which_rows_were_truncated(server: Server, name: str, protocol: str) -> None:
    rows = [("good",), ("a warm film " * 200,), ("good " * 40,), ("",)]
    rows = [(*row, "bad") for row in rows] if name == "pairs" else rows
    for size in (1, 4):
        with TritonPipeline(name, url=server.url(protocol), protocol=protocol, batch_size=size) as pipe:
            for options, expected in (({}, [False, True, False, False]), ({"max_length": 20}, [False, True, True, False])):
                found = np.concatenate([arrays["TRUNCATED"] for arrays in pipe.tensors(rows, **options)])
                assert found.dtype == np.bool_ and found[:, 0].tolist() == expected, (size, options)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_an_answer_to_other_texts_is_an_error(direct_server: Server, protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server answers the request before once more, as Triton does after a pause."""
    infer = Connection.infer
    other = {"TEXT": [b"of another client"]}

    async def stale(self: Connection, model: str, inputs: Any, parameters: Any, **more: Any) -> Any:
        return await infer(self, model, {"TEXT": [*other["TEXT"] * len(inputs["TEXT"])]}, parameters, **more)

    with TritonPipeline("ragged", url=direct_server.url(protocol), protocol=protocol, batch_size=2) as pipe:
        expected = pipe("of another client")
        monkeypatch.setattr(Connection, "infer", stale)
        assert pipe("of another client") == expected
        for texts in ("my text", ["of another client", "my text"], ["of another client."]):
            with pytest.raises(RequestError, match="the answer belongs to another request") as caught:
                pipe(texts)
            assert caught.value.status == "INTERNAL"
            with pytest.raises(RequestError, match="the answer belongs to another request"):
                pipe.tensors([(text,) for text in ([texts] if isinstance(texts, str) else texts)])


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_proxy_may_remove_the_digest(direct_server: Server, protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    infer = Connection.infer

    async def without(self: Connection, model: str, inputs: Any, parameters: Any, **more: Any) -> Any:
        result = await infer(self, model, inputs, parameters, **more)
        if protocol == "grpc":
            outputs, raw = result._result.outputs, result._result.raw_output_contents
            place = [output.name for output in outputs].index("DIGEST")
            del outputs[place], raw[place]
        else:
            result._result["outputs"] = [output for output in result._result["outputs"] if output["name"] != "DIGEST"]
        return result

    with TritonPipeline("ragged", url=direct_server.url(protocol), protocol=protocol) as pipe:
        expected = pipe(["a warm film", "b"])
        monkeypatch.setattr(Connection, "infer", without)
        assert_same(pipe(["a warm film", "b"]), expected)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("function", ["softmax", "sigmoid", "none", None])
def test_options_of_the_pipeline_reach_the_server(
    server: Server, pipeline: Any, texts: list[str], function: str | None, protocol: str
) -> None:
    with TritonPipeline("ragged", url=server.url(protocol), protocol=protocol) as pipe:
        for shown in ({}, {"top_k": None}):
            asked = {"function_to_apply": function, **shown}
            assert_same(pipe(texts[:20], **asked), pipeline(texts[:20], **asked))
        assert_same(list(pipe.stream(texts[:3], function_to_apply=function)), pipeline(texts[:3], function_to_apply=function))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"function_to_apply": "relu"}, "option function_to_apply must be one of softmax, sigmoid, none, not 'relu'"),
        (
            {"truncation": "yes"},
            "option truncation must be true, false or one of longest_first, only_first, do_not_truncate, not 'yes'",
        ),
        ({"temperature": 1}, "text-classification has no option temperature; it has truncation, function_to_apply, top_k"),
        ({"top_k": "all"}, "option top_k must be a whole number, not 'all'"),
    ],
)
def test_options_that_are_none_are_refused(server: Server, options: dict[str, Any], message: str) -> None:
    with TritonPipeline("ragged", url=server.url("grpc")) as pipe:
        with pytest.raises((TypeError, KeyError, ValueError)) as caught:
            pipe("a text", **options)
        assert str(caught.value).startswith(message)
        assert pipe("a text")


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("name", ["ragged", "alone", "pairs"])
def test_what_the_tokenizer_is_told_and_texts_of_another_number(
    server: Server, pipeline: Any, texts: list[str], name: str, protocol: str
) -> None:
    """All of it are request parameters; :mod:`tests.serving.pipeline_options` has every form."""
    pairs = [{"text": one, "text_pair": other} for one, other in zip(texts[:9], texts[9:18], strict=True)]
    mixed = [*texts[:9], *(pairs if name == "pairs" else [])]
    with TritonPipeline(name, url=server.url(protocol), protocol=protocol, batch_size=4) as pipe:  # type: ignore[arg-type]
        for options in ({}, {"max_length": 5}, {"add_special_tokens": False}, {"top_k": -1}, {"return_all_scores": True}):
            assert_alike(pipe, pipeline, mixed, **options)
        if name == "pairs":
            assert_alike(pipe, pipeline, texts[0], text_pair=texts[1])


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_what_is_not_to_be_cut_is_refused(server: Server, protocol: str) -> None:
    with TritonPipeline("ragged", url=server.url(protocol), protocol=protocol, batch_size=3) as pipe:
        assert pipe("short", truncation=False) == pipe("short")
        with pytest.raises(
            RequestError, match="row 1 is longer than the 96 tokens the model takes, and truncation is off"
        ) as caught:
            pipe(["short", "long " * 500, "short"], truncation=False)
        assert caught.value.status == "INVALID_ARGUMENT"
        assert isinstance(caught.value, ValueError)
        assert len(pipe(["short", "long " * 500, "short"], truncation=True)) == 3


def test_strange_texts(server: Server, pipeline: Any) -> None:
    with TritonPipeline("ragged", url=server.url("grpc")) as pipe:
        assert_same(pipe(STRANGE_TEXTS), pipeline(STRANGE_TEXTS))


def test_pairs(server: Server, pipeline: Any, texts: list[str]) -> None:
    rows = [{"text": one, "text_pair": other} for one, other in zip(texts[:100], reversed(texts[:100]), strict=True)]
    with TritonPipeline("pairs", url=server.url("grpc"), batch_size=5) as pipe:
        assert_same(pipe(rows), pipeline(rows))


def test_batches_larger_than_the_server_takes_are_split(server: Server, pipeline: Any, texts: list[str]) -> None:
    rows = [{"text": text, "text_pair": "again"} for text in texts[:30]]
    with TritonPipeline("pairs", url=server.url("http"), protocol="http", batch_size=1000) as pipe:  # its max_batch_size is 8
        assert_same(pipe(rows), pipeline(rows))


def test_async(server: Server, pipeline: Any, texts: list[str]) -> None:
    async def ask() -> list[Any]:
        async with AsyncTritonPipeline("ragged", url=server.url("grpc")) as pipe:
            return list(await asyncio.gather(*(pipe(text) for text in texts[:20])))

    assert_same(asyncio.run(ask()), [pipeline(text) for text in texts[:20]])


def test_stream_reads_no_further_than_it_must(server: Server) -> None:
    read = 0

    def rows() -> Any:
        nonlocal read
        for read in range(1, 10_001):
            yield f"text number {read}"

    with TritonPipeline("ragged", url=server.url("grpc"), concurrency=4) as pipe:
        answers = pipe.stream(rows())
        assert next(answers)["label"] in {"negative", "positive"}
        answers.close()
    assert read <= 4 * OVERTAKING + 1


def test_an_answer_does_not_wait_for_the_next_row(server: Server) -> None:
    answered = threading.Event()

    def rows() -> Iterator[str]:
        yield "the first"
        assert answered.wait(60), "the first answer waits for the second row"
        yield "the second"

    with TritonPipeline("ragged", url=server.url("grpc")) as pipe:
        answers = pipe.stream(rows())
        assert next(answers)["label"]
        answered.set()
        assert len(list(answers)) == 1


def test_a_pause_in_the_rows_is_not_the_servers(server: Server) -> None:
    def rows() -> Iterator[str]:
        yield from ("the first", "the second takes longer " * 2000)
        time.sleep(2.5)
        yield "the third"

    with TritonPipeline("ragged", url=server.url("grpc"), timeout=2, concurrency=2) as pipe:
        pipe("warm up")
        assert len(list(pipe.stream(rows()))) == 3


def test_rows_before_an_unreadable_one_are_answered(server: Server) -> None:
    def rows() -> Iterator[str]:
        yield from ("one", "two")
        raise DataError("no third row")

    with TritonPipeline("ragged", url=server.url("grpc")) as pipe:
        answers = pipe.stream(rows())
        assert len([next(answers), next(answers)]) == 2
        with pytest.raises(DataError, match="no third row"):
            next(answers)


def test_a_list_is_streamed_without_a_thread(server: Server) -> None:
    with TritonPipeline("ragged", url=server.url("grpc")) as pipe:
        answers = pipe.stream(["one", "two"])
        next(answers)
        assert "TritonPipeline rows" not in {thread.name for thread in threading.enumerate()}
        assert len(list(answers)) == 1


@contextlib.contextmanager
def ctrl_c(seconds: float) -> Iterator[None]:
    """Ctrl-C for this thread, after a while."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(seconds, signal.pthread_kill, (threading.get_ident(), signal.SIGINT))
    timer.start()
    try:
        yield
    finally:
        timer.join()
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_a_stream(server: Server) -> None:
    never = threading.Event()

    def rows() -> Iterator[str]:
        yield "the first"
        never.wait(60)

    with TritonPipeline("ragged", url=server.url("grpc")) as pipe:
        answers = pipe.stream(rows())
        next(answers)
        with ctrl_c(0.3), pytest.raises(KeyboardInterrupt) as caught:
            next(answers)
        assert caught.value.__context__ is None  # closing the stream went well
        assert next(answers, None) is None
        assert pipe("the same client goes on")
    never.set()


def test_ctrl_c_right_after_a_call_was_submitted(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with TritonPipeline("ragged", url=server.url("grpc")) as pipe:
        answers = pipe.stream(["one"] * 1000)
        next(answers)
        submit = pipe._submit

        def interrupted(coroutine: Any) -> None:
            monkeypatch.setattr(pipe, "_submit", submit)
            submit(coroutine)
            raise KeyboardInterrupt

        monkeypatch.setattr(pipe, "_submit", interrupted)
        with pytest.raises(KeyboardInterrupt) as caught:
            next(answers)
        assert caught.value.__context__ is None  # the call was cancelled, so closing the stream went well
        assert pipe("the same client goes on")


def test_ctrl_c_while_a_request_is_in_flight() -> None:
    with silent_server() as url, TritonPipeline("x", url=url, timeout=60) as pipe:
        answers = pipe.stream(iter(["never answered"]))
        with ctrl_c(0.5), pytest.raises(KeyboardInterrupt) as caught:
            next(answers)
        assert caught.value.__context__ is None


def test_closed_is_closed(server: Server) -> None:
    pipe = TritonPipeline("ragged", url=server.url("grpc"))
    answers = pipe.stream(iter(["one", "two"]))
    next(answers)
    pipe.close()
    pipe.close()
    for use in (lambda: pipe("text"), lambda: pipe.task, lambda: next(answers), lambda: next(pipe.stream(["text"]))):
        with pytest.raises(RuntimeError, match="client of ragged is closed: create a new one"):
            use()


def test_closing_ends_what_other_threads_wait_for() -> None:
    raised: list[BaseException] = []

    def ask() -> None:
        try:
            pipe("text")
        except RuntimeError as error:
            raised.append(error)

    with silent_server() as url:
        pipe = TritonPipeline("x", url=url)
        thread = threading.Thread(target=ask)
        thread.start()
        time.sleep(0.3)
        pipe.close()
        thread.join(10)
    assert "is closed" in str(raised[0])


def test_closing_while_other_threads_begin_to_ask(server: Server) -> None:
    """Whoever comes first: each thread gets its answer, or is told that the client is closed; none waits for ever."""
    ended: list[str] = []

    def ask(pipe: TritonPipeline) -> None:
        try:
            while True:
                pipe("text")
        except RuntimeError as error:
            ended.append(str(error))

    for pause in (0, 0.001, 0.05):
        pipe = TritonPipeline("ragged", url=server.url("grpc"))
        threads = [threading.Thread(target=ask, args=(pipe,), daemon=True) for _ in range(8)]
        closing = [threading.Thread(target=pipe.close, daemon=True) for _ in range(2)]
        for thread in threads:
            thread.start()
        time.sleep(pause)
        for thread in closing:
            thread.start()
        for thread in (*threads, *closing):
            thread.join(20)
            assert not thread.is_alive()
    assert len(ended) == 24
    assert all("is closed" in message for message in ended)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_async_closed_is_closed(server: Server, protocol: str) -> None:
    async def ask() -> None:
        pipe = AsyncTritonPipeline("ragged", url=server.url(protocol), protocol=protocol)  # type: ignore[arg-type]
        await pipe("text")
        await pipe.close()
        with pytest.raises(RuntimeError, match="client of ragged is closed"):
            await pipe("text")

    asyncio.run(ask())


def test_text_that_is_none_is_refused(server: Server) -> None:
    with TritonPipeline("ragged", url=server.url("grpc")) as pipe, pytest.raises(DataError, match="half of a surrogate pair"):
        pipe(["fine", "\ud83d"])


def test_usable_from_many_threads(server: Server, pipeline: Any, texts: list[str]) -> None:
    answers: dict[int, Any] = {}
    with TritonPipeline("ragged", url=server.url("grpc")) as pipe:
        threads = [
            threading.Thread(target=lambda index=index: answers.__setitem__(index, pipe(texts[index]))) for index in range(16)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert_same([answers[index] for index in range(16)], [pipeline(texts[index]) for index in range(16)])


@pytest.mark.parametrize("inputs", [3, None, ["fine", 4], {"words": "x"}, {"text": 1}])
def test_inputs_of_another_form_are_refused_before_anything_is_sent(server: Server, inputs: Any) -> None:
    with TritonPipeline("ragged", url=server.url("grpc")) as pipe, pytest.raises(ValueError, match="each row must be"):
        pipe(inputs)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_unknown_ensemble(server: Server, protocol: str) -> None:
    with (
        TritonPipeline("nobody", url=server.url(protocol), protocol=protocol) as pipe,
        pytest.raises(RequestError) as caught,
    ):
        pipe("text")
    assert caught.value.status == "NOT_FOUND"
    served = "it serves: alone, fused, int8, pairs, ragged"
    assert caught.value.message == f"nobody is not served at {server.url(protocol)}; {served}", "no steps"
    assert caught.value.hint.endswith("load it with: tritonize load nobody")


@pytest.mark.parametrize(("protocol", "other"), [("grpc", "http"), ("http", "grpc")])
@pytest.mark.parametrize("kind", ["server", "direct_server"])
def test_the_port_of_the_other_protocol_is_told_at_once(
    request: pytest.FixtureRequest, kind: str, protocol: str, other: str
) -> None:
    url = request.getfixturevalue(kind).url(other)
    begun = time.monotonic()
    with TritonPipeline("ragged", url=url, protocol=protocol) as pipe, pytest.raises(RequestError) as caught:
        pipe("text")
    names = {"grpc": "gRPC", "http": "HTTP"}
    assert caught.value.message == f"{url} answers {names[other]}, not {names[protocol]}"
    assert time.monotonic() - begun < 10


def test_a_step_is_not_an_ensemble(server: Server) -> None:
    name = step(server.options.repository, "ragged", "model").name
    with TritonPipeline(name, url=server.url("grpc")) as pipe, pytest.raises(RequestError, match="not an ensemble"):
        pipe("text")


@pytest.mark.parametrize("timeout", [0, -1.0, math.nan, "1", None, True])
def test_a_timeout_is_a_number_above_zero(timeout: Any) -> None:
    with pytest.raises(ValueError, match="timeout must be a number of seconds above 0"):
        TritonPipeline("x", timeout=timeout)


@pytest.mark.parametrize("timeout", [5.0, math.inf])
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_no_server(protocol: str, timeout: float) -> None:
    with TritonPipeline("x", url=f"127.0.0.1:{free_port()}", protocol=protocol, retries=1, timeout=timeout) as pipe:
        started = time.monotonic()
        with pytest.raises(RequestError) as caught:
            pipe("text")
    assert caught.value.status == "UNAVAILABLE"
    assert "tritonize serve" in caught.value.hint
    assert time.monotonic() - started >= 0.05  # it did try again


@contextlib.contextmanager
def silent_server() -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield f"127.0.0.1:{silent.getsockname()[1]}"


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_deadline(protocol: str) -> None:
    with (
        silent_server() as url,
        TritonPipeline("x", url=url, protocol=protocol, timeout=0.5) as pipe,
        pytest.raises(RequestError) as caught,
    ):
        pipe("text")
    assert caught.value.status == "DEADLINE_EXCEEDED"


def test_http_keeps_to_our_deadline_and_opens_as_many_connections_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    from serving import http_client

    given: dict[str, Any] = {}

    class Client(http_client.HttpTritonClient):
        def __init__(self, url: str, **options: Any) -> None:
            given.update(options)
            super().__init__(url, **options)

    monkeypatch.setattr(http_client, "HttpTritonClient", Client)
    url = f"127.0.0.1:{free_port()}"
    with (
        TritonPipeline("x", url=url, protocol="http", timeout=90, concurrency=200, retries=0) as pipe,
        pytest.raises(RequestError),
    ):
        pipe("text")
    assert (given["conn_timeout"], given["conn_limit"]) == (90, 200)


class Answering:
    """A server that reads something from each connection, writes ``answer`` and hangs up."""

    def __init__(self, answer: bytes, context: ssl.SSLContext | None = None) -> None:
        self.asked = 0
        self._answer, self._context = answer, context

    def __enter__(self) -> Answering:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # shut down
            while True:
                connection, _ = self._socket.accept()
                with connection, contextlib.suppress(ssl.SSLError, ConnectionError):  # the client hung up
                    self._answer_one(connection)

    def _answer_one(self, connection: socket.socket) -> None:
        if self._context is not None:
            self.asked += 1
            with self._context.wrap_socket(connection, server_side=True) as secure:
                secure.recv(65536)
            return
        self.asked += connection.recv(65536).startswith(b"POST ")  # the client also asks which protocol this is
        connection.sendall(self._answer)


def ask_once(url: str, *, retries: int | None) -> None:
    """Send one request by HTTP."""

    async def ask() -> None:
        connection = Connection(url, protocol="http", concurrency=1, timeout=60, retries=retries)
        try:
            await connection.infer("x", {"TEXT": [b"text"]}, {})
        finally:
            await connection.close()

    asyncio.run(ask())


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"])
@pytest.mark.parametrize(("retries", "sent"), [(0, 1), (2, 3), (None, 6)])
def test_a_broken_connection_is_retried_a_few_times(answer: bytes, retries: int | None, sent: int) -> None:
    with Answering(answer) as server:
        with pytest.raises(RequestError, match="closed the connection before it answered: ") as caught:
            ask_once(server.url, retries=retries)
        assert server.asked == sent
    assert caught.value.status == "UNAVAILABLE"


@pytest.mark.parametrize("retries", [None, 3])
def test_what_is_not_http_is_not_asked_again(retries: int | None) -> None:
    with Answering(b"no HTTP at all\r\n\r\n") as server:
        with pytest.raises(RequestError, match="does not answer like Triton: ") as caught:
            ask_once(server.url, retries=retries)
        assert server.asked == 1
    assert caught.value.status == "UNKNOWN"


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "127.0.0.1:99999", "127.0.0.1:port", "a b:1", "[::1"])
def test_what_is_no_address_is_said_at_once(protocol: str, url: str) -> None:
    with TritonPipeline("x", url=url, protocol=protocol) as pipe, pytest.raises(RequestError, match="is not host:port") as caught:
        pipe("text")
    assert caught.value.status == "INVALID_ARGUMENT"


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_server_without_tls_is_told_from_none(protocol: str) -> None:
    with (
        Answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as server,
        TritonPipeline("x", url=server.url, protocol=protocol, ssl=True) as pipe,
        pytest.raises(RequestError, match="no TLS connection to") as caught,
    ):
        pipe("text")
    assert caught.value.status == "FAILED_PRECONDITION"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_certificate_nobody_vouches_for_is_refused(tmp_path: Path, protocol: str) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    options = "-newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", "req", "-x509", *options.split(), *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["h2"])
    with Answering(b"", context) as server, TritonPipeline("x", url=server.url, protocol=protocol, ssl=True) as pipe:
        with pytest.raises(RequestError, match=r"(?i)certificate.verify.failed") as caught:
            pipe("text")
        assert server.asked == 1 or protocol == "grpc"  # gRPC connects again on its own account
    assert caught.value.status == "FAILED_PRECONDITION"
