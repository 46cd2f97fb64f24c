"""Continuous batching: requests join and leave a running batch between two tokens."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from ..types import Floats, Integers
from .decoding import Continuation
from .engine_request import Addressee, GenerationCancelledError, GenerationRequest
from .slot_table import RunningRequest, SlotTable
from .step_graph import PromptChunk, StepGraph

ASK_INTERVAL = 2
"""Rounds between two questions whether clients have left: each costs a message to tritonserver."""
SWEEP_SECONDS = 0.25
"""Seconds between two looks at the requests that wait: who is gone, and whose time is over."""
ASKED_TOGETHER = 16
"""Most recipients of waiting requests that are asked in one look: questions about running requests wait behind them."""


class QueueFullError(Exception):
    """As many requests wait as may wait."""


def ask_here(recipients: Iterable[Addressee]) -> threading.Event:
    """Ask recipients in this thread whether they are gone; return what is set."""
    answered = threading.Event()
    for recipient in recipients:
        recipient.ask()
    answered.set()
    return answered


@dataclass
class _Partial:
    """A request whose prompt is computed in several parts. Its slot is the one behind the rows that run."""

    request: GenerationRequest
    done: int


@dataclass
class EngineCounts:
    """What the engine has done.

    Attributes:
        steps: Steps of running rows.
        rows: Rows of all these steps.
        prompts: Prompts that were computed.
        prompt_tokens: Their tokens.
        first_tokens: Tokens that were chosen after prompts. Each row of a step gives one more.
        first_token_seconds: Seconds from the submission of a request to its first token, summed over all prompts.
    """

    steps: int = 0
    rows: int = 0
    prompts: int = 0
    prompt_tokens: int = 0
    first_tokens: int = 0
    first_token_seconds: float = 0.0


@dataclass
class _Inbox:
    """What other threads leave for the engine's."""

    condition: threading.Condition = field(default_factory=threading.Condition)
    requests: deque[GenerationRequest] = field(default_factory=deque)
    closed: bool = False


class Engine:
    """Generates for many requests at once with one graph.

    All work is done in one thread, which :meth:`start` starts. In each round it computes prompts, of ``chunk`` tokens at most, and
    then the next token of all rows that run. A long prompt is computed in several rounds; prompts that begin in one round are
    computed together. Requests begin in the order in which they came.

    Args:
        graph: The graph with its cache.
        chunk: Most prompt tokens of a round.
        max_waiting: Most requests that wait.
        on_failure: Is called in the engine's thread if the graph itself fails, so that no request can be answered any more. It
            should end the process.
        ask: Has recipients asked whether they are gone, if possible in another thread, and returns what is set when that is done.
    """

    def __init__(
        self,
        graph: StepGraph,
        *,
        chunk: int,
        max_waiting: int,
        on_failure: Callable[[BaseException], None],
        ask: Callable[[Iterable[Addressee]], threading.Event] = ask_here,
    ) -> None:
        self._graph, self._chunk, self._max_waiting, self._on_failure, self._ask = graph, chunk, max_waiting, on_failure, ask
        self.counts = EngineCounts()
        self._inbox = _Inbox()
        self._table: SlotTable[GenerationRequest] = SlotTable(graph)
        self._partial: _Partial | None = None
        self._next_sweep = 0.0
        self._next_asked = 0
        self._rounds = 0
        self._answered = ask_here(())
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)

    def start(self) -> None:
        """Start the engine's thread."""
        self._thread.start()

    def require_room(self) -> None:
        """Check that a request may wait, before it is read. Whether it still may is checked again when it is submitted.

        Raises:
            QueueFullError: Too many wait already, or the engine is closed.
        """
        if self._inbox.closed or len(self._inbox.requests) >= self._max_waiting:
            raise QueueFullError

    def submit(self, *requests: GenerationRequest) -> None:
        """Let requests wait for their turn, all of them or none. Any thread may call this.

        Raises:
            QueueFullError: Too many wait already, or the engine is closed.
            ValueError: The request needs more rows than there are slots.
        """
        most = max(request.decoding.max_rows for request in requests)
        if most > self._graph.slots:
            raise ValueError(
                f"this request needs {most} rows at a time, but this model has {self._graph.slots}: ask for fewer beams or answers"
            )
        with self._inbox.condition:
            self.require_room()
            self._inbox.requests.extend(requests)
            self._inbox.condition.notify()

    def load(self) -> tuple[int, int]:
        """Return how many requests run, and how many wait. Any thread may call this."""
        return len(self._table.running()) + (self._partial is not None), len(self._inbox.requests)

    def close(self, timeout: float = 30.0) -> bool:
        """End the engine's thread after its round, and all requests as cancelled; return whether it has ended.

        Args:
            timeout: Most seconds to wait for the thread.
        """
        with self._inbox.condition:
            self._inbox.closed = True
            self._inbox.condition.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self.round()
            self._cancel_all()
        except BaseException as error:
            self._on_failure(error)

    def _wait_for_work(self) -> bool:
        """Wait until there is something to do; return False if the engine is closed."""
        with self._inbox.condition:
            while not (self._table.rows or self._partial or self._inbox.requests or self._inbox.closed):
                self._inbox.condition.wait()
            return not self._inbox.closed

    def _cancel_all(self) -> None:
        partial = [self._partial.request] if self._partial else []
        for request in [*(one.request for one in self._table.running()), *partial, *self._inbox.requests]:
            request.end(GenerationCancelledError())

    def round(self) -> None:
        """Compute prompts, then one token of all rows that run."""
        now = time.monotonic()
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP_SECONDS
            self._sweep(now)
        self._rounds += 1
        asks = self._rounds % ASK_INTERVAL == 0
        if asks:
            self._ask_running()
        self._prefill(now)
        if rows := self._table.rows:
            logits = self._graph.step(self._table.tokens[:rows], self._table.lengths[:rows])
            if not asks:
                self._answered.wait()  # so a request whose client has left gets three more tokens at most
            self._table.lengths[:rows] += 1
            self.counts.steps += 1
            self.counts.rows += rows
            self._advance(self._table.running(), logits, 0)

    def _ask_running(self) -> None:
        """Have the recipients of what runs asked whether they are gone. The answers are there before the next round ends."""
        running = [one.request for one in self._table.running()]
        if self._partial is not None:
            running.append(self._partial.request)
        self._answered = self._ask(dict.fromkeys(request.recipient for request in running))

    def _sweep(self, now: float) -> None:
        """End waiting requests that are cancelled or late, and have recipients of the others asked, some at a time."""
        ended = {request: why for request in list(self._inbox.requests) if (why := request.obstacle(now)) is not None}
        if ended:
            with self._inbox.condition:
                self._inbox.requests = deque(request for request in self._inbox.requests if request not in ended)
            for request, why in ended.items():
                request.end(why)
        if recipients := list(dict.fromkeys(request.recipient for request in list(self._inbox.requests))):
            first = self._next_asked if self._next_asked < len(recipients) else 0
            self._next_asked = first + ASKED_TOGETHER
            self._ask(recipients[first : self._next_asked])

    def _prefill(self, now: float) -> None:
        """Compute prompts, of as many tokens as a round may have."""
        budget = self._chunk
        if self._partial is not None:
            budget -= self._continue_prompt(self._partial, now)
        while self._partial is None and (batch := self._admitted(budget, now)):
            budget -= max(map(self._cost, batch)) * len(batch)
            self._begin_prompts(batch)

    def _cost(self, request: GenerationRequest) -> int:
        """Return the tokens that the first part of a prompt takes of a round's budget."""
        return min(len(request.prompt), self._chunk) + (0 if request.source is None else len(request.source))

    def _admitted(self, budget: int, now: float) -> list[GenerationRequest]:
        """Take requests that begin together: their prompts, padded to the longest, fit into the budget, and their rows into slots.

        Where a part of a prompt ends does not depend on other requests, so that neither does any answer: each begins with ``chunk``
        tokens, or with all it has. The first one of a round always fits.
        """
        batch: list[GenerationRequest] = []
        longest, room = 0, self._graph.slots - self._table.reserved
        while self._inbox.requests:  # only this thread takes requests out, so it needs no lock to look at the first one
            request = self._inbox.requests[0]
            if request.decoding.max_rows > room:
                break
            if (why := request.obstacle(now)) is not None:
                self._inbox.requests.popleft()
                request.end(why)
                continue
            whole = len(request.prompt) <= self._chunk
            longest = max(longest, self._cost(request))
            late = longest * (len(batch) + 1) > budget and (batch or budget < self._chunk)
            if late or (batch and not whole):
                break
            batch.append(self._inbox.requests.popleft())
            room -= request.decoding.max_rows
            if not whole:
                break
        return batch

    def _begin_prompts(self, batch: list[GenerationRequest]) -> None:
        batch.sort(key=lambda request: len(request.prompt))  # those of one width are neighbours
        chunks = [PromptChunk(request.prompt[: self._chunk], source=request.source) for request in batch]
        first = self._table.rows
        logits = self._graph.prefill(first, chunks)
        self.counts.prompt_tokens += sum(len(chunk.tokens) for chunk in chunks)
        if len(batch[0].prompt) > self._chunk:
            self._partial, self._table.behind = _Partial(batch[0], self._chunk), self._chunk
        else:
            self._enter(batch, logits, first)

    def _continue_prompt(self, partial: _Partial, now: float) -> int:
        """Compute the next part of a prompt; return the number of its tokens."""
        request, first = partial.request, self._table.rows
        if (why := request.obstacle(now)) is not None:
            self._partial, self._table.behind = None, 0
            request.end(why)
            return 0
        chunk = PromptChunk(request.prompt[partial.done : partial.done + self._chunk], partial.done)
        logits = self._graph.prefill(first, [chunk])
        partial.done += len(chunk.tokens)
        self._table.behind = partial.done
        self.counts.prompt_tokens += len(chunk.tokens)
        if partial.done == len(request.prompt):
            self._partial, self._table.behind = None, 0
            self._enter([request], logits, first)
        return len(chunk.tokens)

    def _enter(self, batch: list[GenerationRequest], logits: Floats, first: int) -> None:
        """Let requests run whose prompts were computed in the slots from ``first`` on."""
        entered = [self._table.enter(request, request.decoding.max_rows, len(request.prompt)) for request in batch]
        now = time.monotonic()
        self.counts.prompts += len(batch)
        self.counts.first_tokens += sum(request.decoding.max_rows for request in batch)
        self.counts.first_token_seconds += sum(now - request.submitted for request in batch)
        self._advance(entered, logits, first)

    def _advance(self, running: list[RunningRequest[GenerationRequest]], logits: Floats, first: int) -> None:
        """Let requests choose their tokens.

        Args:
            running: The requests.
            logits: FP32 ``[rows, vocab]``.
            first: Slot of the first row.
        """
        now = time.monotonic()
        argmax = logits.argmax(axis=1) if any(one.request.decoding.takes_argmax for one in running) else None
        self._table.apply([(one, self._continuation(one, logits, argmax, first, now)) for one in running])

    def _continuation(
        self, one: RunningRequest[GenerationRequest], logits: Floats, argmax: Integers | None, first: int, now: float
    ) -> Continuation | None:
        """Let one request choose its tokens; return how it goes on. Whatever is wrong with it is its own affair."""
        request = one.request
        why: BaseException | None = request.obstacle(now)
        if why is None:
            try:
                start, count = one.slots[0] - first, len(one.slots)
                rows = slice(start, start + 1) if count == 1 else np.array(one.slots) - first
                own_argmax = argmax[rows] if argmax is not None and request.decoding.takes_argmax else None
                continuation = request.decoding.advance(logits[rows], own_argmax)
                if continuation is not None:
                    _check(continuation, before=count, most=one.reserved)
                    return continuation
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # a panic of the tokenizer's Rust code is not an Exception
                why = error
        request.end(why)
        return None


def _check(continuation: Continuation, *, before: int, most: int) -> None:
    """Check the rows of a continuation before the cache is changed.

    Raises:
        ValueError: They cannot be.
    """
    count, sources = len(continuation.tokens), continuation.sources
    valid = count == before if sources is None else len(sources) == count and sources.min() >= 0 and sources.max() < before
    if not (valid and 1 <= count <= most):
        raise ValueError(f"a decoding of {most} rows cannot continue {before} rows as {count}: {sources}")
