"""The answers to the rows of one request, which are generated one by one and sent together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from ..digest import DIGEST, TRUNCATED
from ..types import Flags, Integers
from .decoding import Decoding
from .outbox import Outbox
from .recipient import Recipient
from .responses import error_response
from .text_stream import TextStream

CANCELLED = "the client has cancelled this request, or the server ends"


@dataclass(eq=False)
class RowAnswer:
    """The answer to one row.

    Attributes:
        decode: From the tokens of a sequence to its text.
        streams: One per sequence where stop strings are searched for; else none.
        decoding: Chooses the tokens; set once it is there.
    """

    decode: Callable[[Sequence[int]], str]
    streams: Sequence[TextStream] = ()
    decoding: Decoding | None = None

    def on_token(self, sequence: int, token: int) -> bool:
        """Take the next token of a sequence; return whether it completes a stop string."""
        return self.streams[sequence].push(token) if self.streams else False

    def texts(self) -> list[str]:
        """Return the text of each sequence."""
        assert self.decoding is not None
        if self.streams:
            return [stream.finish() for stream in self.streams]
        return [self.decode(sequence.token_ids) for sequence in self.decoding.sequences()]


@dataclass(frozen=True)
class EndedRow:
    """A row whose answer has ended.

    Attributes:
        place: The position of the row in its request.
        answer: Its answer.
        error: Why it is not finished; None: it is.
    """

    place: int
    answer: RowAnswer
    error: BaseException | None


@dataclass(eq=False)
class RowAnswers:
    """The answers to the rows of one request.

    Attributes:
        recipient: Whoever gets them.
        digests: INT64 ``[rows]``, of the request.
        truncated: BOOL ``[rows]``.
        requested: Names of the output tensors that the client wants.
        outbox: Sends them.
    """

    recipient: Recipient
    digests: Integers
    truncated: Flags
    requested: frozenset[str]
    outbox: Outbox[EndedRow]
    _rows: dict[int, RowAnswer] = field(default_factory=dict)

    def on_end(self, place: int, answer: RowAnswer, error: BaseException | None) -> None:
        """Take the answer to a row; in the engine's thread."""
        self.outbox.put(self, EndedRow(place, answer, error))

    def send(self, parts: Sequence[EndedRow]) -> None:
        """Send all answers if the last one is there; an error at once, for all of them."""
        for part in parts:
            if part.error is not None:
                self.recipient.send(partial(error_response, part.error, cancelled=CANCELLED), is_last=True)
            self._rows[part.place] = part.answer
        if len(self._rows) == len(self.digests):
            self.recipient.send(self._response, is_last=True)

    def _response(self) -> Any:
        texts = [[text.encode() for text in self._rows[place].texts()] for place in range(len(self.digests))]
        made = {
            "GENERATED": np.array(texts, dtype=np.object_),
            TRUNCATED: self.truncated[:, None],
            DIGEST: self.digests[:, None],
        }
        tensors = [pb_utils.Tensor(name, array) for name, array in made.items() if name in self.requested]
        return pb_utils.InferenceResponse(output_tensors=tensors)
