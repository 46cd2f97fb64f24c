"""Greedy and multinomial decoding: the next token of a row is its most probable one, or one drawn with its probability."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..types import Floats, Integers
from .decoding import FORBIDDEN, LENGTH, STOP, AllForbiddenError, Continuation, GeneratedSequence, NotFiniteError, Positions
from .logits_processors import logits_processors

if TYPE_CHECKING:
    from typing import TypeAlias

    from .generation_options import GenerationOptions

OnToken: TypeAlias = "Callable[[int, int], bool]"
"""Gets the number of a sequence and its next token; returns whether the sequence ends with it."""

BLOCKS_PER_CANDIDATE = 4
SORTED = 1024
"""Most tokens that top-p sorts at a time."""
SAMPLED, MARGIN = 128, 8
"""Of more tokens, those that are sorted to estimate where the limit of top-p is, and how far from there the others are divided."""
SUM_TOLERANCE = 1e-10
"""Relative error that sums of probabilities stay below, in whatever order they are added."""


class Sampling:
    """Decodes the sequences of one request, one row each, independently of each other.

    Args:
        options: The request's options, with ``num_beams`` 1.
        prompt: INT64 ``[length]``, the prompt (of an encoder-decoder: the decoder's).
        max_length: Most tokens of a sequence, prompt included.
        encoder_ids: INT64 ``[source]``, what the encoder reads; None: the prompt.
        on_token: Is called with each token as it is chosen.
    """

    def __init__(
        self,
        options: GenerationOptions,
        prompt: Integers,
        *,
        max_length: int,
        encoder_ids: Integers | None = None,
        on_token: OnToken = lambda _sequence, _token: False,
    ) -> None:
        self._options, self._max_length, self._on_token = options, max_length, on_token
        self._end = frozenset(options.eos_token_id)
        source = prompt if encoder_ids is None else encoder_ids
        self._processors = logits_processors(options, prompt_length=len(prompt), max_length=max_length, encoder_ids=source)
        self.max_rows = options.num_return_sequences
        self.takes_argmax = not (options.do_sample or self._processors)
        self._generators = _generators(options) if options.do_sample else []
        self._read = np.empty((self.max_rows, max_length), dtype=np.int64)
        self._read[:, : len(prompt)] = prompt
        self._prompt_length = self._length = len(prompt)
        self._running = list(range(self.max_rows))
        self._tokens: list[list[int]] = [[] for _ in self._running]
        self._reasons = [""] * self.max_rows

    def advance(self, logits: Floats, argmax: Integers | None) -> Continuation | None:
        """Choose the next token of each sequence that runs; see :class:`~.decoding.Decoding`."""
        first = self._length == self._prompt_length
        tokens = self._argmax_of(logits, argmax) if argmax is not None else self._chosen(logits)
        self._length += 1
        ended = [self._append(sequence, token) for sequence, token in zip(self._running, tokens, strict=True)]
        if not any(ended):
            return Continuation(np.array(tokens, dtype=np.int64), np.zeros(len(tokens), dtype=np.intp) if first else None)
        left = [row for row, end in enumerate(ended) if not end]
        if not left:
            return None
        self._running = [self._running[row] for row in left]
        sources = np.zeros(len(left), dtype=np.intp) if first else np.array(left, dtype=np.intp)
        return Continuation(np.array([tokens[row] for row in left], dtype=np.int64), sources)

    def end_with_next(self) -> None:
        """Let the sequences end with their next token; see :class:`~.time_limit.Shortened`."""
        self._max_length = self._length + 1

    def sequences(self) -> Sequence[GeneratedSequence]:
        """Return the sequences; see :class:`~.decoding.Decoding`."""
        return [GeneratedSequence(tokens, reason) for tokens, reason in zip(self._tokens, self._reasons, strict=True)]

    def _argmax_of(self, logits: Floats, argmax: Integers) -> list[int]:
        tokens: list[int] = argmax.tolist()
        if not all(np.isfinite(row[token]) for row, token in zip(logits, tokens, strict=True)):  # the argmax of a NaN is the NaN
            raise NotFiniteError
        return tokens

    def _chosen(self, logits: Floats) -> list[int]:
        """Apply the processors, and choose a token for each sequence that runs."""
        scores = np.repeat(logits, len(self._running), axis=0) if len(logits) < len(self._running) else logits
        if not np.isfinite(scores.max(axis=1)).all():
            raise NotFiniteError
        if self._processors:
            read = self._read[self._running, : self._length]
            scores = scores if scores is not logits else logits.copy()
            for processor in self._processors:
                processor(read, scores)
        if not self._generators:
            tokens = scores.argmax(axis=1)
            if (scores[np.arange(len(tokens)), tokens] == FORBIDDEN).any():
                raise AllForbiddenError
            return tokens.tolist()  # type: ignore[no-any-return]
        rows = zip(scores, self._running, strict=True)
        return [draw(*candidates(row, self._options), self._generators[sequence]) for row, sequence in rows]

    def _append(self, sequence: int, token: int) -> bool:
        """Append a token to a sequence; return whether it has ended."""
        self._tokens[sequence].append(token)
        if not self.takes_argmax:
            self._read[sequence, self._length - 1] = token
        stopped = self._on_token(sequence, token)
        if stopped or token in self._end:
            self._reasons[sequence] = STOP
        elif self._length >= self._max_length:
            self._reasons[sequence] = LENGTH
        return bool(self._reasons[sequence])


def candidates(scores: Floats, options: GenerationOptions) -> tuple[Positions, npt.NDArray[np.float64]]:
    """Apply temperature, top-k, top-p and min-p, in the order of ``transformers``.

    Args:
        scores: FP32 ``[vocab]``.
        options: The request's options.

    Returns:
        INTP ``[candidates]``, the tokens that may be drawn, ascending, and FP64 ``[candidates]``, their probabilities.

    Raises:
        AllForbiddenError: All tokens are forbidden.
    """
    found = top_k(scores, options.top_k) if options.top_k else np.arange(len(scores))
    logits = scores[found].astype(np.float64)
    highest = logits.max()
    if highest == FORBIDDEN:
        raise AllForbiddenError
    with np.errstate(over="ignore"):  # of a temperature near 0, only the highest scores are left
        logits = (logits - highest) / options.temperature
    probabilities = np.exp(logits)
    probabilities /= probabilities.sum()
    if options.top_p < 1.0:
        kept = top_p(logits, probabilities, 1 - options.top_p)
        found, probabilities = found[kept], probabilities[kept] / probabilities[kept].sum()
    if options.min_p:
        kept = np.flatnonzero(probabilities >= options.min_p * probabilities.max())
        found, probabilities = found[kept], probabilities[kept] / probabilities[kept].sum()
    return found, probabilities


def top_k(scores: Floats, count: int) -> Positions:
    """Return the tokens with the ``count`` highest scores, ascending; more where some are equal to the last of them.

    Args:
        scores: FP32 ``[vocab]``.
        count: 1 or more.
    """
    size = len(scores) // (BLOCKS_PER_CANDIDATE * count)
    pool: Positions | None = None
    if size > 1:  # at least `count` scores reach the `count`-th highest of the blocks' maxima: all others cannot be among them
        whole = scores[: len(scores) // size * size].reshape(-1, size)
        pool = np.flatnonzero(scores >= np.partition(whole.max(axis=1), -count)[-count])
    among = scores if pool is None else scores[pool]
    if len(among) <= count:
        return np.arange(len(scores)) if pool is None else pool
    kept = np.flatnonzero(among >= np.partition(among, -count)[-count])
    return kept if pool is None else pool[kept]


def top_p(logits: npt.NDArray[np.float64], probabilities: npt.NDArray[np.float64], removed: float) -> Positions:
    """Return the positions of the most probable tokens, ascending: all but the least probable ones that sum up to ``removed``.

    Args:
        logits: FP64 ``[tokens]``, which say the order. Of equal ones, the first ones are removed first.
        probabilities: FP64 ``[tokens]``, of these logits.
        removed: Probability that is removed, from 0 to 1. One token is kept in any case.
    """
    found = _top_p_near_limit(logits, probabilities, removed)
    return _top_p_of_all(logits, probabilities, removed) if found is None else found


def _top_p_of_all(logits: npt.NDArray[np.float64], probabilities: npt.NDArray[np.float64], removed: float) -> Positions:
    """Do as :func:`top_p`, by sorting all tokens."""
    order = np.argsort(logits, kind="stable")
    is_removed = probabilities[order].cumsum() <= removed
    is_removed[-1] = False
    return np.sort(order[~is_removed])


def _top_p_near_limit(logits: npt.NDArray[np.float64], probabilities: npt.NDArray[np.float64], removed: float) -> Positions | None:
    """Do as :func:`top_p`, but sort only tokens near the limit. Return None where the rounding of sums could decide."""
    kept = probabilities >= removed / (2 * len(probabilities))  # all others together do not reach the limit
    pool, below, is_top, margin = np.flatnonzero(kept), float(probabilities[~kept].sum()), True, MARGIN
    while len(pool) > SORTED:  # the limit is in the pool: drop what is on one side of it, then on the other
        sample = pool[:: len(pool) // SAMPLED]
        sample = sample[np.argsort(logits[sample])]
        sums = probabilities[sample].cumsum() * (len(pool) / len(sample))
        place = int(np.searchsorted(below + sums, removed)) + margin
        lower = logits[pool] < logits[sample[min(max(place, 1), len(sample) - 1)]]
        total = below + float(probabilities[pool[lower]].sum())
        if not lower.any() or abs(total - removed) <= SUM_TOLERANCE * removed:
            break
        if total > removed:
            pool, is_top = pool[lower], False
        else:
            kept[pool[lower]] = False
            pool, below = pool[~lower], total
        margin = -margin
    order = pool[np.argsort(logits[pool], kind="stable")]
    sums = below + probabilities[order].cumsum()[: -1 if is_top else None]
    if (np.abs(sums - removed) <= SUM_TOLERANCE * removed).any():
        return None
    kept[order[: int(np.searchsorted(sums, removed, side="right"))]] = False
    return np.flatnonzero(kept)


def draw(tokens: Positions, probabilities: npt.NDArray[np.float64], generator: np.random.Generator) -> int:
    """Draw one token.

    Args:
        tokens: INTP ``[candidates]``.
        probabilities: FP64 ``[candidates]``.
        generator: Where the chance comes from.
    """
    cumulated = probabilities.cumsum()
    place = np.searchsorted(cumulated, generator.random() * cumulated[-1], side="right")
    return int(tokens[min(int(place), len(tokens) - 1)])


def _generators(options: GenerationOptions) -> list[np.random.Generator]:
    """Return a generator of random numbers for each sequence."""
    seeds = np.random.SeedSequence(options.seed).spawn(options.num_return_sequences)
    return [np.random.Generator(np.random.PCG64(seed)) for seed in seeds]
