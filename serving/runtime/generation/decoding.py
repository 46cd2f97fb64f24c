"""What the engine and the ways of decoding agree on: logits in, the next token of each row and the row that it continues out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from ..types import Floats, Integers

if TYPE_CHECKING:
    from typing import TypeAlias

Positions: TypeAlias = "npt.NDArray[np.intp]"
"""INTP, positions of rows."""

FORBIDDEN = np.float32(-np.inf)
"""Score of a token that must not be chosen."""
STOP = "stop"
"""Finish reason: an end-of-sequence token or a stop string was generated."""
LENGTH = "length"
"""Finish reason: the sequence has as many tokens as were asked for, or as fit."""


@dataclass(frozen=True)
class Continuation:
    """The rows of a request in the engine's next step.

    Attributes:
        tokens: INT64 ``[rows]``, the token that each row reads next. One row or more, :attr:`Decoding.max_rows` at most. The engine
            copies it before the next call of :meth:`Decoding.advance`.
        sources: INTP ``[rows]``, for each row the row of the step before whose cache it continues. A row may be continued once,
            several times (a beam that splits) or never (a row that leaves). None: row ``i`` continues row ``i``.
    """

    tokens: Integers
    sources: Positions | None = None


@dataclass(frozen=True)
class GeneratedSequence:
    """One answer of a request.

    Attributes:
        token_ids: The generated tokens, without the prompt; with the end-of-sequence token, if one was generated.
        finish_reason: :data:`STOP` or :data:`LENGTH`; empty if the sequence has not ended.
    """

    token_ids: Sequence[int]
    finish_reason: str


class Decoding(Protocol):
    """Chooses the tokens of one request. Whoever makes the request creates it with everything it needs: prompt, options, limits.

    Only the engine's thread calls it, in this order:

    1. :meth:`advance` with ``[1, vocab]`` logits, after the last token of the prompt. The prompt is computed once, whatever
       :attr:`max_rows` is; the continuation says how many rows there are from now on (``sources`` all 0).
    2. :meth:`advance` with ``[rows, vocab]`` logits after each step, in the order of the rows of the last continuation, until it
       returns None.
    3. :meth:`sequences`, once, at the end; after a cancellation too. Any thread may call it then.

    The cache of the rows belongs to the engine. Where a row lies in it is the engine's affair: a continuation that only reorders
    rows costs nothing, and one that continues a row twice costs one copy of its cache.

    The decoding limits its own length: prompt and generated tokens must fit into the capacity of the cache.

    Attributes:
        max_rows: Most rows that it takes at a time. The engine reserves as many slots.
        takes_argmax: Whether it needs only the argmax of each row. The engine then computes that for all requests at once.
    """

    max_rows: int
    takes_argmax: bool

    def advance(self, logits: Floats, argmax: Integers | None) -> Continuation | None:
        """Choose the next token of each row.

        Args:
            logits: FP32 ``[rows, vocab]``, of the token that each row read last. It is the engine's memory: read it, do not
                write to it, keep no reference.
            argmax: INT64 ``[rows]``, where :attr:`takes_argmax`; else None.

        Returns:
            The rows of the next step; None if the request is finished.

        Raises:
            NotFiniteError: The logits are not finite.
            AllForbiddenError: The options forbid all tokens. These and any other exception end this request alone.
        """
        ...

    def sequences(self) -> Sequence[GeneratedSequence]:
        """Return the answers, the best first where they have an order. Before the end: what there is so far."""
        ...


class AllForbiddenError(ValueError):
    """The options of a request forbid all tokens, so that none can be chosen."""

    def __init__(self) -> None:
        """Create the error with its message for the client."""
        super().__init__("the options of this request forbid all tokens")


class NotFiniteError(Exception):
    """The model gave logits that are not finite."""
