"""The answers to the rows of one request are sent together, once, whatever happens to one of them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from serving.runtime.generation.decoding import GeneratedSequence
from serving.runtime.generation.engine import DeadlineExceededError, GenerationCancelledError
from tests.helpers.triton_steps import backend

HOLDERS = [f"serving.runtime.{name}" for name in ("refusals", "generation.responses", "generation.row_answers")]
"""Modules that hold Triton's module."""
UNAVAILABLE, CANCELLED, FINAL = 5, 7, 1


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module, with a stand-in for that of Triton."""
    triton: Any = backend()
    triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL = FINAL
    triton.TritonError.UNAVAILABLE, triton.TritonError.CANCELLED = UNAVAILABLE, CANCELLED
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", triton)
    for name in HOLDERS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module(HOLDERS[-1])
    for name in HOLDERS:
        sys.modules.pop(name, None)


class Sender:
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, response: Any, flags: int) -> None:
        assert flags == FINAL
        self.sent.append(response)


def answers(rows: Any, *decode: Any) -> tuple[Any, list[Any], Sender]:
    """The answers to a request of two rows of which the second was truncated."""
    sender, digests = Sender(), np.array([11, 22])
    names = frozenset({"GENERATED", "TRUNCATED", "DIGEST"})
    made = [rows.RowAnswer(one) for one in decode]
    for number, one in enumerate(made):
        one.decoding = SimpleNamespace(sequences=lambda number=number: [GeneratedSequence([number], "stop")] * 2)
    return rows.RowAnswers(sender, digests, np.array([False, True]), names), made, sender


def test_all_are_sent_when_the_last_one_has_ended(rows: Any) -> None:
    together, (first, second), sender = answers(rows, str, str)
    together.on_end(1, second, None)
    assert not sender.sent and not together.is_cancelled(lambda: False)
    together.on_end(0, first, None)
    [response] = sender.sent
    assert response.tensors["GENERATED"].tolist() == [[b"[0]", b"[0]"], [b"[1]", b"[1]"]]
    assert response.tensors["TRUNCATED"].tolist() == [[False], [True]]
    assert response.tensors["DIGEST"].tolist() == [[11], [22]]


@pytest.mark.parametrize(
    ("error", "code"), [(DeadlineExceededError(), UNAVAILABLE), (GenerationCancelledError(), CANCELLED), (KeyError("x"), 13)]
)
def test_one_row_that_fails_ends_the_request_and_the_others_are_given_up(rows: Any, error: BaseException, code: int) -> None:
    together, (first, second), sender = answers(rows, str, str)
    together.on_end(0, first, error)
    assert [response.error.code for response in sender.sent] == [code]
    assert together.is_cancelled(lambda: False)
    together.on_end(1, second, GenerationCancelledError())
    assert len(sender.sent) == 1


def test_text_that_cannot_be_decoded_is_an_answer_too(rows: Any) -> None:
    def panic(_tokens: object) -> str:
        raise RuntimeError("boom")

    together, (first, _), sender = answers(rows, panic, str)
    together.on_end(0, first, None)
    [response] = sender.sent
    assert response.error.code == 13
    assert "boom" not in response.error.message
