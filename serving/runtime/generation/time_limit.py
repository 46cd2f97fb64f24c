"""Decoding that ends after a time: the option ``max_time``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from ..types import Floats, Integers
from .decoding import Continuation, Decoding, GeneratedSequence


class Shortened(Decoding, Protocol):
    """A decoding whose maximum length can become smaller."""

    def end_with_next(self) -> None:
        """Let the sequences end with their next token, as if that was the last one that fits."""
        ...


class TimeLimited:
    """Ends a decoding with the first token that is chosen after a time, as ``MaxTimeCriteria`` of ``transformers`` does.

    Args:
        decoding: The decoding.
        seconds: How long it may take from now on. Time in which the request waits counts.
    """

    def __init__(self, decoding: Shortened, seconds: float) -> None:
        self._decoding, self._end = decoding, time.monotonic() + seconds
        self.max_rows, self.takes_argmax = decoding.max_rows, decoding.takes_argmax

    def advance(self, logits: Floats, argmax: Integers | None) -> Continuation | None:
        """Choose the next token of each row; see :class:`~.decoding.Decoding`."""
        if time.monotonic() > self._end:
            self._decoding.end_with_next()
        return self._decoding.advance(logits, argmax)

    def sequences(self) -> Sequence[GeneratedSequence]:
        """Return the sequences; see :class:`~.decoding.Decoding`."""
        return self._decoding.sequences()
