"""The answer to one request, from the engine's thread to Triton: parts of a stream, or everything at the end."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from .decoding import Decoding
from .engine import GenerationCancelledError
from .prompt_reader import Prompt
from .request_reader import RequestFields
from .responses import FINAL, Sender, error_response
from .text_stream import TextStream

CANCELLED = "cancelled"
"""Finish reason: the client has left, or the server ends."""


@dataclass
class AnswerPart:
    """What an answer sends at a time.

    Attributes:
        texts: Text of each sequence.
        tokens: Tokens of each sequence.
        reasons: Why each sequence has ended; None before the end of a stream.
        error: Why there is no answer.
    """

    texts: list[str]
    tokens: list[list[int]]
    reasons: list[str] | None = None
    error: BaseException | None = None

    def join(self, later: AnswerPart) -> None:
        """Append what comes next."""
        self.texts = [one + two for one, two in zip(self.texts, later.texts, strict=True)]
        self.tokens = [one + two for one, two in zip(self.tokens, later.tokens, strict=True)]
        self.reasons, self.error = later.reasons, later.error


class Outbox:
    """Sends parts of answers in a thread of its own, so that the engine does not wait for Triton.

    Parts of one answer that wait together are sent as one.

    Args:
        on_failure: Is called in that thread if it cannot go on.
    """

    def __init__(self, on_failure: Callable[[BaseException], None]) -> None:
        self._parts: queue.SimpleQueue[tuple[GenerationAnswer, AnswerPart] | None] = queue.SimpleQueue()
        self._on_failure = on_failure
        self._thread = threading.Thread(target=self._run, name="answers", daemon=True)
        self._thread.start()

    def put(self, answer: GenerationAnswer, part: AnswerPart) -> None:
        """Send a part after those that were put before."""
        self._parts.put((answer, part))

    def close(self, timeout: float = 5.0) -> None:
        """Send what was put, and end the thread."""
        self._parts.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        try:
            while self._send_waiting():
                pass
        except BaseException as error:
            self._on_failure(error)

    def _send_waiting(self) -> bool:
        """Send all parts that wait; return whether more may come."""
        waiting = [self._parts.get()]
        while not self._parts.empty():
            waiting.append(self._parts.get())
        joined: dict[GenerationAnswer, AnswerPart] = {}
        for entry in waiting:
            if entry is not None:
                answer, part = entry
                if answer in joined:
                    joined[answer].join(part)
                else:
                    joined[answer] = part
        for answer, part in joined.items():
            answer.send(part)
        return waiting[-1] is not None


@dataclass(eq=False)
class GenerationAnswer:
    """Collects what one request is answered.

    Attributes:
        sender: Triton's, for this request.
        fields: What the request asks for.
        prompt: Stands before the answer, if it is wanted there.
        digest: Of the request.
        texts: The text of each sequence.
        outbox: Sends the parts.
        requested: Names of the output tensors that the client wants.
        decoding: Chooses the tokens; set once it is there.
    """

    sender: Sender
    fields: RequestFields
    prompt: Prompt
    digest: int
    texts: Sequence[TextStream]
    outbox: Outbox
    requested: frozenset[str]
    decoding: Decoding | None = None
    _unsent: list[int] = field(default_factory=list)

    def on_token(self, sequence: int, token: int) -> bool:
        """Take the next token of a sequence; return whether it completes a stop string. The engine's thread calls it."""
        stopped = self.texts[sequence].push(token)
        if self.fields.stream:
            self._unsent.append(token)
            if text := self.texts[sequence].take():
                self.outbox.put(self, AnswerPart([text], [self._unsent]))
                self._unsent = []
        return stopped

    def on_end(self, error: BaseException | None) -> None:
        """Send what is left. The engine's thread calls it."""
        if error is None or isinstance(error, GenerationCancelledError):
            try:
                part = self._last_part()
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as own:  # a panic of the tokenizer's Rust code is not an Exception
                part = self._failed(own)
        else:
            part = self._failed(error)
        self.outbox.put(self, part)

    def _failed(self, error: BaseException) -> AnswerPart:
        return AnswerPart([""] * len(self.texts), [[] for _ in self.texts], error=error)

    def _last_part(self) -> AnswerPart:
        assert self.decoding is not None
        sequences = self.decoding.sequences()
        if self.fields.options.num_beams > 1:  # beams are chosen at the end: their tokens come all at once
            for text, sequence in zip(self.texts, sequences, strict=True):
                for token in sequence.token_ids:
                    text.push(token)
        tokens = [self._unsent] if self.fields.stream else [list(sequence.token_ids) for sequence in sequences]
        texts = [text.finish() for text in self.texts]
        reasons = [sequence.finish_reason or CANCELLED for sequence in sequences]
        return AnswerPart(texts, tokens, reasons)

    def send(self, part: AnswerPart) -> None:
        """Send a part to the client."""
        flags = FINAL if part.reasons is not None or part.error is not None else 0
        self.sender.send(self._response(part) if part.error is None else error_response(part.error), flags=flags)

    def _response(self, part: AnswerPart) -> Any:
        prepended = self.prompt.tokens.tolist() if self.fields.prepend_input else []
        prefix = self.prompt.text if self.fields.prepend_input else ""
        made: dict[str, Callable[[], Any]] = {
            "text_output": lambda: _strings([prefix + text for text in part.texts]),
            "token_ids": lambda: np.array([token for one in part.tokens for token in (*prepended, *one)], dtype=np.int64),
            "DIGEST": lambda: np.array([self.digest], dtype=np.int64),
        }
        if self.fields.finish_reason:
            made["finish_reason"] = lambda: _strings(part.reasons or [""] * len(part.texts))
        if self.fields.num_output_tokens:
            made["num_output_tokens"] = lambda: np.array([len(tokens) for tokens in part.tokens], dtype=np.uint32)
        tensors = [pb_utils.Tensor(name, make()) for name, make in made.items() if name in self.requested]
        return pb_utils.InferenceResponse(output_tensors=tensors)


def _strings(texts: Sequence[str]) -> Any:
    return np.array([text.encode() for text in texts], dtype=np.object_)
