"""The engine: who joins, leaves, waits and fails does not change what others get."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from serving.runtime.generation.decoding import Continuation, GeneratedSequence
from serving.runtime.generation.engine import QueueFullError
from serving.runtime.generation.engine_request import DeadlineExceededError, GenerationCancelledError
from serving.runtime.types import Floats, Integers
from tests.helpers.engine_requests import CHUNK, Make, ask, asked
from tests.helpers.remembering_graph import VOCABULARY, greedy_tokens, logits_of


def prompt_of(generator: np.random.Generator, longest: int = 40) -> list[int]:
    return generator.integers(0, VOCABULARY, generator.integers(1, longest)).tolist()


def test_every_answer_is_that_of_the_request_alone(make: Make, failures: list[BaseException]) -> None:
    engine, graph = make()
    generator = np.random.default_rng(1)
    prompts = [(prompt_of(generator), int(generator.integers(1, 60))) for _ in range(80)]
    requests = [ask(prompt, count) for prompt, count in prompts]
    for one in requests[:60]:
        engine.submit(one.request)
    engine.start()
    for one in requests[60:]:
        time.sleep(0.001)
        engine.submit(one.request)
    for one, (prompt, count) in zip(requests, prompts, strict=True):
        assert one.tokens == [greedy_tokens(prompt, count)]
    assert not failures
    assert engine.counts.rows > 2 * engine.counts.steps, "they ran together"
    assert {name for name, _ in graph.calls} == {"prefill", "step", "copy"}


def test_several_sequences_of_a_request_share_one_prompt(make: Make) -> None:
    engine, _ = make(slots=8)
    sampled = [ask([3, 4, one], 12, do_sample=True, seed=one, num_return_sequences=3) for one in range(6)]
    alone, together = [], []
    engine.start()
    for one in range(6):
        again = ask([3, 4, one], 12, do_sample=True, seed=one, num_return_sequences=3)
        engine.submit(again.request)
        alone.append(again.tokens)
    assert engine.counts.prompts == 6
    for request in sampled:
        engine.submit(request.request)
    together = [request.tokens for request in sampled]
    assert together == alone
    assert all(len(set(map(tuple, sequences))) == 3 for sequences in alone)


@dataclass
class Branching:
    """Continues random rows, as beams do, and checks that each row gets the logits of its own history."""

    prompt: list[int]
    steps: int
    generator: np.random.Generator
    max_rows: int
    takes_argmax: bool = False
    histories: list[list[int]] = field(default_factory=list)

    def advance(self, logits: Floats, argmax: Integers | None) -> Continuation | None:
        assert argmax is None
        self.histories = self.histories or [self.prompt]
        np.testing.assert_array_equal(logits, np.array([logits_of(history) for history in self.histories]))
        self.steps -= 1
        if not self.steps:
            return None
        rows = int(self.generator.integers(1, self.max_rows + 1))
        sources = self.generator.integers(0, len(self.histories), rows)
        tokens = self.generator.integers(0, VOCABULARY, rows)
        self.histories = [[*self.histories[source], token] for source, token in zip(sources.tolist(), tokens.tolist(), strict=True)]
        return Continuation(tokens, sources)

    def sequences(self) -> list[GeneratedSequence]:
        return [GeneratedSequence(history, "stop") for history in self.histories]


def test_rows_that_split_reorder_and_leave_keep_their_cache(make: Make, failures: list[BaseException]) -> None:
    engine, _ = make(slots=11)
    generator = np.random.default_rng(2)
    requests = []
    for number in range(60):
        prompt = prompt_of(generator)
        most = int(generator.integers(1, 5))
        decoding = Branching(prompt, int(generator.integers(1, 20)), np.random.default_rng(number), most)
        requests.append(asked(np.array(prompt), decoding))
        engine.submit(requests[-1].request)
    greedy = [(prompt_of(generator), ask) for _ in range(10)]
    plain = [ask(prompt, 15) for prompt, _ in greedy]
    for one in plain:
        engine.submit(one.request)
    engine.start()
    assert all(one.tokens for one in requests)
    assert [one.tokens for one in plain] == [[greedy_tokens(prompt, 15)] for prompt, _ in greedy]
    assert not failures


def test_a_row_that_only_moves_to_another_place_is_not_copied(make: Make) -> None:
    engine, graph = make()

    class Rotating(Branching):
        def advance(self, logits: Floats, argmax: Integers | None) -> Continuation | None:  # noqa: ARG002
            first = not self.histories
            self.histories = self.histories or [self.prompt]
            np.testing.assert_array_equal(logits, np.array([logits_of(history) for history in self.histories]))
            self.steps -= 1
            sources = np.zeros(3, dtype=np.intp) if first else np.array([1, 2, 0])
            tokens = np.array([1, 2, 3])
            self.histories = [[*self.histories[source], token] for source, token in zip(sources, tokens, strict=True)]
            return Continuation(tokens, sources) if self.steps else None

    one = asked(np.array([1, 2]), Rotating([1, 2], 10, np.random.default_rng(0), 3))
    engine.submit(one.request)
    engine.start()
    assert one.tokens
    assert [call for call in graph.calls if call[0] == "copy"] == [("copy", 2)] * 2, "only when one row became three"


def test_a_long_prompt_holds_others_for_one_chunk_and_new_ones_join_at_the_next_step(make: Make) -> None:
    engine, graph = make()
    long = list(range(45))
    first, long_one, last = ask([1], 30), ask(long, 5), ask([2], 5)
    for one in (first, long_one, last):
        engine.submit(one.request)
    while not (first.ended.is_set() and long_one.ended.is_set() and last.ended.is_set()):
        engine.round()
    assert first.tokens == [greedy_tokens([1], 30)] and long_one.tokens == [greedy_tokens(long, 5)]
    prefills = 0
    for name, count in graph.calls:
        prefills = 0 if name == "step" else prefills + count if name == "prefill" else prefills
        assert prefills <= CHUNK
    late = ask([3, 4], 2)
    other = ask([5], 10)
    engine.submit(other.request)
    engine.round()
    graph.calls.clear()
    engine.submit(late.request)
    engine.round()
    assert graph.calls == [("prefill", 2), ("step", 2)]


def test_a_round_reads_one_long_source_or_short_ones_of_a_chunk_together(make: Make) -> None:
    engine, graph = make(slots=16)
    running = ask([1], 60)
    engine.submit(running.request)
    engine.round()
    lengths = [30, 3, 2, 45, 2, 2, 3, 20, 3, 9]
    requests = [ask([10 + number], 3) for number in range(len(lengths))]
    for one, length in zip(requests, lengths, strict=True):
        one.request = replace(one.request, source=np.arange(length))
        engine.submit(one.request)
    read: list[list[int]] = []
    while not all(one.ended.is_set() for one in requests):
        known, tokens = set(graph.sources), len(graph.calls)
        engine.round()
        assert [name for name, _ in graph.calls[tokens:]].count("step") == 1, "the running request gets a token in every round"
        read.append([len(source) for prompt, source in graph.sources.items() if prompt not in known])
    assert [length for group in read for length in sorted(group)] == [30, 2, 3, 45, 2, 2, 3, 20, 3, 9]
    assert all(len(group) <= 1 or sum(group) + len(group) <= CHUNK for group in read), (
        "of those read together, also the prompts count"
    )
    assert [one.tokens for one in requests] == [[greedy_tokens([10 + number], 3)] for number in range(len(lengths))]


def test_a_burst_of_short_prompts_is_computed_together_in_the_order_of_arrival(make: Make) -> None:
    engine, graph = make(slots=16)
    requests = [ask([one, one], 3) for one in range(10)]
    for one in requests:
        engine.submit(one.request)
    engine.round()
    assert graph.calls == [("prefill", CHUNK), ("step", 4)]
    engine.round()
    assert ("step", 8) in graph.calls and [one.ended.is_set() for one in requests] == [True] * 4 + [False] * 6
    for _ in range(4):
        engine.round()
    assert [one.tokens for one in requests] == [[greedy_tokens([one, one], 3)] for one in range(10)]


def test_a_cancelled_request_gets_three_more_tokens_at_most(make: Make) -> None:
    engine, _ = make()
    gone = threading.Event()
    tokens: list[int] = []

    def leaving(_sequence: int, token: int) -> bool:
        tokens.append(token)
        if len(tokens) == 10:
            gone.set()
        return False

    leaver = ask([1], 90, on_token=leaving, is_cancelled=gone.is_set)
    stayer = ask([2], 60)
    for one in (leaver, stayer):
        engine.submit(one.request)
    engine.start()
    assert stayer.tokens == [greedy_tokens([2], 60)]
    assert isinstance(leaver.why[0], GenerationCancelledError)
    assert 10 <= len(tokens) <= 13
    assert tokens == greedy_tokens([1], len(tokens)), "what there is is right"


@pytest.mark.parametrize("length", [2, 45])
def test_what_waits_and_is_cancelled_or_late_is_not_computed(make: Make, length: int) -> None:
    engine, _ = make(slots=1)
    first = ask([1], 40)
    gone = ask(range(length), 5, is_cancelled=lambda: True)
    late = ask(range(length), 5, deadline=time.monotonic())
    for one in (first, gone, late):
        engine.submit(one.request)
    engine.start()
    assert first.tokens
    assert gone.ended.wait(5) and late.ended.wait(5)
    assert isinstance(gone.why[0], GenerationCancelledError) and isinstance(late.why[0], DeadlineExceededError)
    assert engine.counts.prompt_tokens == 1


def test_a_deadline_ends_a_request_that_runs_and_one_whose_prompt_is_computed(make: Make) -> None:
    engine, _ = make()
    running = ask([1], 90, deadline=time.monotonic() + 0.1, on_token=lambda *_: time.sleep(0.01))
    engine.submit(running.request)
    engine.start()
    assert running.ended.wait(5) and isinstance(running.why[0], DeadlineExceededError)
    assert 0 < len(running.request.decoding.sequences()[0].token_ids) < 30

    engine, _ = make()
    long = ask(range(45), 5, deadline=time.monotonic() + 0.05)
    engine.submit(long.request)
    engine.round()
    time.sleep(0.06)
    engine.round()
    assert isinstance(long.why[0], DeadlineExceededError)
    assert engine.counts.prompt_tokens == CHUNK


def test_the_queue_is_bounded(make: Make) -> None:
    engine, _ = make(max_waiting=3)
    for _ in range(3):
        engine.require_room()
        engine.submit(ask([1], 2).request)
    with pytest.raises(QueueFullError):
        engine.require_room()
    with pytest.raises(QueueFullError):
        engine.submit(ask([1], 2).request)
    engine.round()
    engine.submit(ask([1], 2).request)


def test_more_rows_than_slots_are_refused(make: Make) -> None:
    engine, _ = make(slots=2)
    with pytest.raises(ValueError, match="needs 3 rows at a time, but this model has 2"):
        engine.submit(ask([1], 2, do_sample=True, num_return_sequences=3).request)


def test_closing_ends_what_runs_and_what_waits(make: Make) -> None:
    engine, _ = make(slots=2)
    requests = [ask([one], 95, on_token=lambda *_: time.sleep(0.01)) for one in range(3)] + [ask(range(45), 5)]
    for one in requests:
        engine.submit(one.request)
    engine.start()
    time.sleep(0.05)
    engine.close()
    assert all(one.ended.is_set() and isinstance(one.why[0], GenerationCancelledError) and len(one.why) == 1 for one in requests)
    with pytest.raises(QueueFullError):
        engine.submit(ask([1], 2).request)
