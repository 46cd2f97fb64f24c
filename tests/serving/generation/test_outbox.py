"""One thread talks with Triton about requests: it sends answers and asks who is gone, while the engine goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from serving.runtime.generation.engine import Engine, ask_here
from serving.runtime.generation.engine_request import Addressee, GenerationCancelledError, GenerationRequest
from serving.runtime.generation.generation_options import GenerationOptions
from serving.runtime.generation.outbox import Outbox
from serving.runtime.generation.sampling import Sampling
from tests.helpers.remembering_graph import RememberingGraph
from tests.helpers.triton_steps import FINAL, Sender, with_backend


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module ``recipient``, with a stand-in for that of Triton."""
    with with_backend(monkeypatch, "refusals", "generation.recipient") as module:
        yield module


@pytest.fixture
def outbox(failures: list[BaseException]) -> Iterator[Outbox[int]]:
    made: Outbox[int] = Outbox(failures.append)
    yield made
    made.close()


class Kept:
    """An answer that keeps what it sends, and when the first time it takes a while."""

    def __init__(self) -> None:
        self.sent: list[list[int]] = []
        self.begun, self.may_end = threading.Event(), threading.Event()

    def send(self, parts: Sequence[int]) -> None:
        self.begun.set()
        assert self.may_end.wait(5)
        self.sent.append(list(parts))


def test_parts_that_wait_together_are_sent_together(outbox: Outbox[int]) -> None:
    one, two = Kept(), Kept()
    two.may_end.set()
    outbox.put(one, 1)
    assert one.begun.wait(5)
    for part in (2, 3):
        outbox.put(one, part)
        outbox.put(two, 10 * part)
    one.may_end.set()
    outbox.close()
    assert (one.sent, two.sent) == ([[1], [2, 3]], [[20, 30]])


def test_what_is_put_while_the_thread_is_told_to_end_is_sent_too(outbox: Outbox[int]) -> None:
    one = Kept()
    outbox.put(one, 1)
    assert one.begun.wait(5)
    assert not outbox.close(0.05), "it waits for what is sent"
    outbox.put(one, 2)
    one.may_end.set()
    outbox._thread.join(5)
    assert not outbox._thread.is_alive(), "it has seen that it must end"
    assert one.sent == [[1], [2]]


def test_a_thread_that_cannot_go_on_is_reported(failures: list[BaseException]) -> None:
    class Broken:
        def send(self, parts: Sequence[int]) -> None:
            raise MemoryError(f"{parts} cannot be sent")

    outbox: Outbox[int] = Outbox(failures.append)
    outbox.put(Broken(), 1)
    outbox.close()
    assert [str(error) for error in failures] == ["[1] cannot be sent"]


def test_triton_is_not_asked_about_a_request_that_has_its_last_response(triton: Any) -> None:
    sender = Sender()
    recipient = triton.Recipient(sender)
    recipient.ask()
    recipient.send(lambda: "one", is_last=False)
    recipient.ask()
    recipient.send(lambda: "two", is_last=True)
    recipient.ask()
    recipient.send(lambda: "three", is_last=True)
    assert (sender.sent, sender.flags, sender.asked) == (["one", "two"], [0, FINAL], 2)
    assert recipient.is_gone
    left = triton.Recipient(Sender(is_cancelled=True))
    assert not left.is_gone, "nobody has asked yet"
    left.ask()
    assert left.is_gone


def test_an_answer_that_cannot_be_built_ends_with_an_error(triton: Any) -> None:
    def panic() -> Any:
        raise type("PanicException", (BaseException,), {})("at /opt/secret.rs")

    sender = Sender()
    triton.Recipient(sender).send(panic, is_last=False)
    assert [(one.error.code, one.error.message) for one in sender.sent] == [
        (13, "the answer could not be made of what the model gave")
    ]
    assert sender.flags == [FINAL]


@pytest.mark.parametrize("is_last", [False, True])
def test_a_response_that_cannot_be_sent_ends_its_request_alone(triton: Any, is_last: bool) -> None:
    sender = Sender(fails=True)
    recipient = triton.Recipient(sender)
    recipient.send(lambda: "one", is_last=is_last)
    assert recipient.is_gone, "so the engine stops to generate"
    assert sender.tried == (1 if is_last else 2), "Triton is told that nothing more comes"
    recipient.ask()
    assert not sender.asked


def test_a_question_that_fails_ends_its_request_alone(triton: Any) -> None:
    class Deaf(Sender):
        def is_cancelled(self) -> bool:
            raise RuntimeError("the response factory is gone")

    recipient = triton.Recipient(Deaf())
    recipient.ask()
    assert recipient.is_gone


class Client:
    """Leaves when it is told to. Each question takes a while."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.has_left, self.is_gone, self.seconds = threading.Event(), False, seconds
        self.questions: list[str] = []

    def ask(self) -> None:
        left = self.has_left.is_set()
        time.sleep(self.seconds)
        self.is_gone = left
        self.questions.append(threading.current_thread().name)


def test_few_recipients_that_wait_are_asked_in_one_look_and_all_in_turn() -> None:
    """Questions about what runs stand behind them."""
    looks: list[list[Addressee]] = []

    def remember(recipients: Iterable[Addressee]) -> threading.Event:
        looks.append(list(recipients))
        return ask_here(recipients)

    def failed(error: BaseException | None) -> None:
        raise AssertionError(error)

    engine = Engine(RememberingGraph(slots=1), chunk=8, max_waiting=99, on_failure=failed, ask=remember)
    clients = [Client() for _ in range(40)]
    for client in clients:
        decoding = Sampling(GenerationOptions(max_new_tokens=90), np.array([1]), max_length=91)
        engine.submit(GenerationRequest(np.array([1]), decoding, failed, client))
    for now in range(3):
        engine._sweep(float(now))
    assert [len(look) for look in looks] == [16, 16, 8]
    assert {id(client) for look in looks for client in look} == {id(client) for client in clients}
    engine._sweep(4.0)
    assert looks[3] == looks[0]


def answered(client: Client, count: int, leaves_after: int, rows: int = 1) -> tuple[list[list[int]], list[Any], RememberingGraph]:
    """Generate for one client, which leaves after some tokens; return the tokens of its rows, why they ended, and the graph."""
    failures: list[BaseException] = []
    outbox: Outbox[int] = Outbox(failures.append)
    graph = RememberingGraph(slots=8)
    engine = Engine(graph, chunk=8, max_waiting=8, on_failure=failures.append, ask=outbox.ask)
    tokens: list[list[int]] = [[] for _ in range(rows)]
    why: list[Any] = []

    def hear(row: int, token: int) -> bool:
        tokens[row].append(token)
        if len(tokens[row]) == leaves_after:
            client.has_left.set()
        return False

    prompt = np.array([1, 2])
    requests = []
    for row in range(rows):
        decoding = Sampling(
            GenerationOptions(max_new_tokens=count),
            prompt,
            max_length=2 + count,
            on_token=lambda _, token, row=row: hear(row, token),
        )
        requests.append(GenerationRequest(prompt, decoding, why.append, client))
    engine.submit(*requests)
    engine.start()
    end = time.monotonic() + 10
    while len(why) < rows and time.monotonic() < end:
        time.sleep(0.005)
    engine.close()
    outbox.close()
    assert not failures
    return tokens, why, graph


@pytest.mark.parametrize("leaves_after", [7, 8])
@pytest.mark.parametrize("seconds", [0.0, 0.02])
def test_generation_stops_within_three_tokens_however_long_a_question_takes(seconds: float, leaves_after: int) -> None:
    client = Client(seconds)
    ((tokens,), why, _) = answered(client, 90, leaves_after)
    assert leaves_after <= len(tokens) <= leaves_after + 3
    assert isinstance(why[0], GenerationCancelledError)
    assert set(client.questions) == {"outbox"}, "the engine's thread asks nothing"


def test_rows_of_one_request_are_asked_about_once_an_interval() -> None:
    client = Client()
    tokens, why, graph = answered(client, 40, leaves_after=1000, rows=4)
    assert why == [None] * 4 and [len(row) for row in tokens] == [40] * 4
    steps = sum(name == "step" for name, _ in graph.calls)
    assert steps // 2 - 1 <= len(client.questions) <= steps // 2 + 3, "one each two steps, and the looks at what waits"
