"""The answers to the rows of one request are sent together, once, whatever happens to one of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from serving.runtime.generation.decoding import AllForbiddenError, GeneratedSequence, NotFiniteError
from serving.runtime.generation.engine_request import DeadlineExceededError, GenerationCancelledError
from serving.runtime.generation.outbox import Outbox
from tests.helpers.triton_steps import CANCELLED, FINAL, INTERNAL, INVALID_ARG, UNAVAILABLE, Sender, with_backend


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module, with a stand-in for that of Triton."""
    holders = ("refusals", "generation.responses", "generation.recipient", "generation.row_answers")
    with with_backend(monkeypatch, *holders) as module:
        yield module


def answers(rows: Any, *decode: Any) -> tuple[Any, list[Any], Sender]:
    """The answers to a request of two rows of which the second was truncated."""
    sender, digests = Sender(), np.array([11, 22])
    names = frozenset({"GENERATED", "TRUNCATED", "DIGEST"})
    made = [rows.RowAnswer(one) for one in decode]
    for number, one in enumerate(made):
        one.decoding = SimpleNamespace(sequences=lambda number=number: [GeneratedSequence([number], "stop")] * 2)
    failures: list[BaseException] = []
    recipient = sys.modules["serving.runtime.generation.recipient"].Recipient(sender)  # type: ignore[attr-defined]
    together = rows.RowAnswers(recipient, digests, np.array([False, True]), names, Outbox(failures.append))
    return together, made, sender


def test_all_are_sent_when_the_last_one_has_ended(rows: Any) -> None:
    together, (first, second), sender = answers(rows, str, str)
    together.send([rows.EndedRow(1, second, None)])
    assert not sender.sent and not together.recipient.is_gone
    together.send([rows.EndedRow(0, first, None)])
    [response] = sender.sent
    assert sender.flags == [FINAL]
    assert response.tensors["GENERATED"].tolist() == [[b"[0]", b"[0]"], [b"[1]", b"[1]"]]
    assert response.tensors["TRUNCATED"].tolist() == [[False], [True]]
    assert response.tensors["DIGEST"].tolist() == [[11], [22]]


def test_rows_that_end_are_sent_by_the_outbox(rows: Any) -> None:
    together, (first, second), sender = answers(rows, str, str)
    together.on_end(0, first, None)
    together.on_end(1, second, None)
    together.outbox.close()
    assert [response.error for response in sender.sent] == [None]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (DeadlineExceededError(), UNAVAILABLE, "the time that this request allows is over"),
        (GenerationCancelledError(), CANCELLED, "the client has cancelled this request, or the server ends"),
        (AllForbiddenError(), INVALID_ARG, "the options of this request forbid all tokens"),
        (NotFiniteError(), INTERNAL, "the model gave values that are not finite for this input"),
        (ValueError("operands could not be broadcast"), INTERNAL, "the model could not run on this input"),
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_one_row_that_fails_ends_the_request_and_the_others_are_given_up(
    rows: Any, error: BaseException, code: int, message: str, at_once: bool
) -> None:
    together, (first, second), sender = answers(rows, str, str)
    ended = [rows.EndedRow(0, first, error), rows.EndedRow(1, second, None)]
    for parts in [ended] if at_once else [[one] for one in ended]:
        together.send(parts)
        assert together.recipient.is_gone
    assert [(response.error.code, response.error.message) for response in sender.sent] == [(code, message)]


def test_text_that_cannot_be_decoded_is_an_answer_too(rows: Any) -> None:
    def panic(_tokens: object) -> str:
        raise RuntimeError("boom")

    together, (first, second), sender = answers(rows, panic, str)
    together.send([rows.EndedRow(0, first, None), rows.EndedRow(1, second, None)])
    [response] = sender.sent
    assert response.error.code == INTERNAL
    assert "boom" not in response.error.message
