"""Collects the answers to the rows of one request, which the engine generates one by one, and sends them together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from ..digest import DIGEST, TRUNCATED
from ..types import Flags, Integers
from .decoding import Decoding
from .responses import FINAL, Sender, error_response
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


@dataclass(eq=False)
class RowAnswers:
    """The answers to the rows of one request.

    Only the engine's thread calls it.

    Attributes:
        sender: Triton's, for this request.
        digests: INT64 ``[rows]``, of the request.
        truncated: BOOL ``[rows]``.
        requested: Names of the output tensors that the client wants.
    """

    sender: Sender
    digests: Integers
    truncated: Flags
    requested: frozenset[str]
    _texts: dict[int, list[str]] = field(default_factory=dict)
    _sent: bool = False

    def is_cancelled(self, asked: Callable[[], bool]) -> bool:
        """Return whether nobody waits for the answers any more; ``asked`` asks Triton."""
        return self._sent or asked()

    def on_end(self, row: int, answer: RowAnswer, error: BaseException | None) -> None:
        """Take the answer to a row, and send all if it is the last one; an error is sent at once, for all of them."""
        response = None
        try:
            if error is None:
                self._texts[row] = answer.texts()
                response = self._response() if len(self._texts) == len(self.digests) else None
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as own:  # a panic of the tokenizer's Rust code is not an Exception
            error = own
        if error is not None:
            response = error_response(error, cancelled=CANCELLED)
        if response is not None:
            self._send(response)

    def _send(self, response: Any) -> None:
        if not self._sent:
            self._sent = True
            self.sender.send(response, flags=FINAL)

    def _response(self) -> Any:
        texts = [[text.encode() for text in self._texts[row]] for row in range(len(self.digests))]
        made = {
            "GENERATED": np.array(texts, dtype=np.object_),
            TRUNCATED: self.truncated[:, None],
            DIGEST: self.digests[:, None],
        }
        tensors = [pb_utils.Tensor(name, array) for name, array in made.items() if name in self.requested]
        return pb_utils.InferenceResponse(output_tensors=tensors)
