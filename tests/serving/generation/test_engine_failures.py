"""The engine: what fails ends its request alone, unless nothing can go on."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from serving.runtime.generation.decoding import Continuation
from serving.runtime.types import Floats, Integers
from tests.helpers.engine_requests import Make, ask, asked
from tests.helpers.remembering_graph import greedy_tokens


class Broken:
    """Does what no decoding may."""

    takes_argmax = False

    def __init__(self, steps: int, max_rows: int) -> None:
        self.steps, self.max_rows = steps, max_rows

    def advance(self, logits: Floats, argmax: Integers | None) -> Continuation | None:  # noqa: ARG002
        self.steps -= 1
        if self.steps:
            return Continuation(np.array([1]), np.array([0]))
        match self.max_rows:
            case 1:
                raise RuntimeError("a row fails")
            case 2:
                return Continuation(np.array([1, 2, 3]), np.array([0, 0, 0]))
            case 3:
                return Continuation(np.array([1]), np.array([1]))
            case _:
                raise type("PanicException", (BaseException,), {})


@pytest.mark.parametrize("kind", [1, 2, 3, 4])
@pytest.mark.parametrize("step", [1, 4])
def test_a_row_that_fails_leaves_its_neighbours_alone(make: Make, failures: list[BaseException], kind: int, step: int) -> None:
    engine, _ = make(slots=10)
    broken = asked(np.array([9]), Broken(step, kind))
    neighbours = [ask([one], 20) for one in range(4)]
    for one in (*neighbours[:2], broken, *neighbours[2:]):
        engine.submit(one.request)
    engine.start()
    assert [one.tokens for one in neighbours] == [[greedy_tokens([one], 20)] for one in range(4)]
    assert broken.ended.wait(5)
    assert len(broken.why) == 1 and isinstance(broken.why[0], BaseException)
    assert not failures


def test_logits_that_are_not_finite_fail_their_row_alone(make: Make, failures: list[BaseException]) -> None:
    engine, graph = make()
    step = graph.step

    def poisoned(tokens: Integers, lengths: Integers) -> Floats:
        logits = step(tokens, lengths)
        logits[0, 7] = np.nan
        return logits

    graph.step = poisoned  # type: ignore[method-assign]
    greedy, sampled, good = ask([1], 5), ask([2], 5, do_sample=True), ask([3], 5)
    for one in (greedy, good):
        engine.submit(one.request)
    engine.start()
    assert greedy.ended.wait(5) and type(greedy.why[0]).__name__ == "NotFiniteError"
    assert good.ended.wait(5), "it was next in the first slot, and failed too"
    engine.submit(sampled.request)
    assert sampled.ended.wait(5) and type(sampled.why[0]).__name__ == "NotFiniteError"
    assert not failures


def test_an_engine_says_whether_its_round_has_ended(make: Make) -> None:
    engine, graph = make()
    step, may_end, begun = graph.step, threading.Event(), threading.Event()

    def slow(tokens: Integers, lengths: Integers) -> Floats:
        begun.set()
        assert may_end.wait(10)
        return step(tokens, lengths)

    graph.step = slow  # type: ignore[method-assign]
    one = ask([1], 5)
    engine.submit(one.request)
    engine.start()
    assert begun.wait(5)
    assert not engine.close(0.05) and not one.ended.is_set()
    may_end.set()
    assert engine.close() and one.ended.is_set()


def test_a_graph_that_fails_is_reported(make: Make, failures: list[BaseException]) -> None:
    engine, graph = make()

    def failing(_tokens: Integers, _lengths: Integers) -> Floats:
        raise MemoryError("the graph fails")

    graph.step = failing  # type: ignore[method-assign]
    engine.submit(ask([1], 5).request)
    engine.start()
    engine._thread.join(5)
    assert [str(error) for error in failures] == ["the graph fails"]


def test_an_end_that_cannot_be_told_concerns_its_request_alone(
    make: Make, failures: list[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def failing(_why: BaseException | None) -> None:
        raise RuntimeError("nobody is there")

    engine, _ = make(slots=2)
    one, two, late = ask([1], 3), ask([2], 9), ask([3], 9, deadline=time.monotonic())
    for request in (replace(one.request, on_end=failing), two.request, replace(late.request, on_end=failing)):
        engine.submit(request)
    engine.start()
    assert two.tokens == [greedy_tokens([2], 9)]
    engine.close()
    assert not failures
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["nobody is there"] * 2
