"""The answer to one request for text: parts of a stream, or everything at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from .decoding import Decoding
from .engine_request import GenerationCancelledError
from .outbox import Outbox
from .prompt_reader import Prompt
from .recipient import Recipient
from .request_reader import RequestFields
from .responses import error_response
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
    """

    texts: list[str]
    tokens: list[list[int]]
    reasons: list[str] | None = None

    def join(self, later: AnswerPart) -> None:
        """Append what comes next."""
        self.texts = [one + two for one, two in zip(self.texts, later.texts, strict=True)]
        self.tokens = [one + two for one, two in zip(self.tokens, later.tokens, strict=True)]
        self.reasons = later.reasons


@dataclass(frozen=True)
class Ending:
    """The end of an answer, behind its other parts.

    Attributes:
        error: Why it is not finished; None: it is.
    """

    error: BaseException | None

    @property
    def has_text(self) -> bool:
        """Return whether the client gets what there is."""
        return self.error is None or isinstance(self.error, GenerationCancelledError)


@dataclass(eq=False)
class GenerationAnswer:
    """Collects what one request is answered.

    The engine's thread calls :meth:`on_token` and :meth:`on_end`; after that, the outbox's thread has all of it.

    Attributes:
        recipient: Whoever gets the answer.
        fields: What the request asks for.
        prompt: Stands before the answer, if it is wanted there.
        digest: Of the request.
        texts: The text of each sequence.
        outbox: Sends the parts.
        requested: Names of the output tensors that the client wants.
        decoding: Chooses the tokens; set once it is there.
    """

    recipient: Recipient
    fields: RequestFields
    prompt: Prompt
    digest: int
    texts: Sequence[TextStream]
    outbox: Outbox[AnswerPart | Ending]
    requested: frozenset[str]
    decoding: Decoding | None = None
    _unsent: list[int] = field(default_factory=list)

    def on_token(self, sequence: int, token: int) -> bool:
        """Take the next token of a sequence; return whether it completes a stop string."""
        stopped = self.texts[sequence].push(token)
        if self.fields.stream:
            self._unsent.append(token)
            if text := self.texts[sequence].take():
                self.outbox.put(self, AnswerPart([text], [self._unsent]))
                self._unsent = []
        return stopped

    def on_end(self, error: BaseException | None) -> None:
        """Have the rest sent."""
        self.outbox.put(self, Ending(error))

    def send(self, parts: Sequence[AnswerPart | Ending]) -> None:
        """Send parts to the client."""
        last = parts[-1]
        if isinstance(last, Ending) and last.error is not None and not last.has_text:
            self.recipient.send(partial(error_response, last.error), is_last=True)
        else:
            self.recipient.send(partial(self._response, parts), is_last=isinstance(last, Ending))

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

    def _response(self, parts: Sequence[AnswerPart | Ending]) -> Any:
        part, *later = [self._last_part() if isinstance(one, Ending) else one for one in parts]
        for one in later:
            part.join(one)
        prepended = self.prompt.tokens.tolist() if self.fields.prepend_input else []
        prefix = self.prompt.text if self.fields.prepend_input else ""
        made: dict[str, Callable[[], Any]] = {
            "text_output": lambda: _strings([prefix + text for text in part.texts]),
            "token_ids": lambda: np.array([token for one in part.tokens for token in (*prepended, *one)], dtype=np.int64),
            "DIGEST": lambda: np.array([self.digest], dtype=np.int64),
        }
        if self.fields.finish_reason:
            made["finish_reason"] = lambda: _strings(part.reasons or [""] * len(part.texts))
        if self.fields.num_input_tokens:
            made["num_input_tokens"] = lambda: np.array([len(self.prompt.tokens)], dtype=np.uint32)
        if self.fields.num_output_tokens:
            made["num_output_tokens"] = lambda: np.array([len(tokens) for tokens in part.tokens], dtype=np.uint32)
        tensors = [pb_utils.Tensor(name, make()) for name, make in made.items() if name in self.requested]
        return pb_utils.InferenceResponse(output_tensors=tensors)


def _strings(texts: Sequence[str]) -> Any:
    return np.array([text.encode() for text in texts], dtype=np.object_)
