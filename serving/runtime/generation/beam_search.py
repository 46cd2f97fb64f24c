"""Beam search: several beginnings of the answer are continued side by side, and the most probable ones are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..types import Floats, Integers
from .decoding import FORBIDDEN, LENGTH, STOP, AllForbiddenError, Continuation, GeneratedSequence, NotFiniteError, Positions
from .logits_processors import logits_processors
from .top_candidates import partial_sort, ranked_candidates

if TYPE_CHECKING:
    from typing import TypeAlias

    from .generation_options import GenerationOptions

Truths: TypeAlias = "npt.NDArray[np.bool_]"
"""BOOL ``[beams]``."""

EXCLUDED = np.float32(-1e9)
"""Added to the score of what must not be chosen; also the score of beams that do not exist yet."""


@dataclass
class Hypotheses:
    """The best sequences that have ended, the best first; at the beginning, as many empty ones.

    Attributes:
        tokens: INT64 ``[beams, length]``, each from the prompt on.
        lengths: INT64 ``[beams]``, tokens of each.
        scores: FP32 ``[beams]``, sums of log probabilities, divided by the length penalty.
        ended: BOOL ``[beams]``, whether there is a sequence that has ended.
    """

    tokens: Integers
    lengths: Integers
    scores: Floats
    ended: Truths

    def merge(self, others: Hypotheses) -> Hypotheses:
        """Return the best of these and others, as many as these."""
        scores = np.concatenate([self.scores, others.scores])
        best = np.argsort(-scores, kind="stable")[: len(self.scores)]
        return Hypotheses(
            tokens=np.concatenate([self.tokens, others.tokens])[best],
            lengths=np.concatenate([self.lengths, others.lengths])[best],
            scores=scores[best],
            ended=np.concatenate([self.ended, others.ended])[best],
        )


@dataclass(frozen=True)
class _Candidates:
    """The continuations of the beams with the highest scores, the highest first.

    Attributes:
        sources: INTP ``[candidates]``, the beam that each continues.
        tokens: INTP ``[candidates]``, the token that each appends.
        scores: FP32 ``[candidates]``, sums of log probabilities.
        ended: BOOL ``[candidates]``, whether the sequence ends with the token.
        running_scores: FP32 ``[candidates]``, the scores, from which those that have ended are excluded.
        chosen: INTP ``[beams]``, the positions of those that go on.
    """

    sources: Positions
    tokens: Positions
    scores: Floats
    ended: Truths
    running_scores: Floats
    chosen: Positions

    @property
    def deciding(self) -> int:
        """Return how many of the first candidates decide what happens: the order of the others changes nothing."""
        beams = len(self.chosen)
        return len(self.tokens) if self.ended[self.chosen].any() else max(beams, 1 + int(self.chosen.max()))


class BeamSearch:
    """Decodes one request with beams, token for token as ``transformers`` 4.57.

    Args:
        options: The request's options, with ``num_beams`` of more than 1 and without ``do_sample``.
        prompt: INT64 ``[length]``, the prompt (of an encoder-decoder: the decoder's).
        max_length: Most tokens of a sequence, prompt included.
        encoder_ids: INT64 ``[source]``, what the encoder reads; None: the prompt.
    """

    takes_argmax = False

    def __init__(
        self, options: GenerationOptions, prompt: Integers, *, max_length: int, encoder_ids: Integers | None = None
    ) -> None:
        beams = options.num_beams
        source = prompt if encoder_ids is None else encoder_ids
        self._options, self._max_length, self._prompt_length = options, max_length, len(prompt)
        self._processors = logits_processors(options, prompt_length=len(prompt), max_length=max_length, encoder_ids=source)
        self._end = np.unique(np.array(options.eos_token_id, dtype=np.int64))
        self.max_rows = beams
        self._read = np.zeros((beams, max_length), dtype=np.int64)
        self._read[:, : len(prompt)] = prompt
        self._length = len(prompt)
        self._scores = np.full(beams, EXCLUDED, dtype=np.float32)
        self._scores[0] = 0  # all beams are equal at first, so one is continued
        self._best = Hypotheses(
            tokens=self._read.copy(),
            lengths=np.full(beams, len(prompt), dtype=np.int64),
            scores=np.full(beams, EXCLUDED, dtype=np.float32),
            ended=np.zeros(beams, dtype=np.bool_),
        )
        self._may_improve, self._finished = True, False

    def advance(self, logits: Floats, argmax: Integers | None) -> Continuation | None:  # noqa: ARG002 - as the protocol has it
        """Choose the next token of each beam; see :class:`~.decoding.Decoding`."""
        is_first = len(logits) < self.max_rows
        scores = self._log_probabilities(np.repeat(logits, self.max_rows, axis=0) if is_first else logits)
        scores += self._scores[:, None]
        found = self._candidates(scores)
        if found.scores[0] == FORBIDDEN:
            raise AllForbiddenError
        self._length += 1
        best = slice(self.max_rows)  # only these may end a sequence
        ending = self._continued(found.sources[best], found.tokens[best])
        self._read, self._scores = (
            self._continued(found.sources[found.chosen], found.tokens[found.chosen]),
            found.running_scores[found.chosen],
        )
        self._keep_ended(ending, found.scores[best], found.ended[best])
        self._may_improve = self._may_improve and self._can_improve()
        is_full = bool(self._best.ended.all()) and self._options.early_stopping is True
        self._finished = not self._may_improve or is_full or bool(found.ended.all())
        if self._finished:
            return None
        sources = np.zeros_like(found.chosen) if is_first else found.sources[found.chosen]
        return Continuation(self._read[:, self._length - 1], sources)

    def _candidates(self, scores: Floats) -> _Candidates:
        """Return the best continuations: so many that enough of them go on, whichever end."""
        flat = scores.reshape(-1)
        count = min(max(2, 1 + len(self._end)) * self.max_rows, flat.size)
        positions, certain = ranked_candidates(flat, count)
        found = self._candidates_at(positions, scores)
        return found if found.deciding <= certain else self._candidates_at(partial_sort(flat, count), scores)

    def _candidates_at(self, positions: Positions, scores: Floats) -> _Candidates:
        sources, tokens = np.divmod(positions, scores.shape[1])
        found = scores.reshape(-1)[positions]
        ended = np.isin(tokens, self._end) | (self._length + 1 >= self._max_length)
        running = found + _penalty(ended)
        return _Candidates(sources, tokens, found, ended, running, np.argsort(-running, kind="stable")[: self.max_rows])

    def _continued(self, sources: Positions, tokens: Positions) -> Integers:
        """Return beams with their next tokens: INT64 ``[sequences, length]``."""
        sequences = self._read[sources]
        sequences[:, self._length - 1] = tokens
        return sequences

    def _log_probabilities(self, logits: Floats) -> Floats:
        """Return the log probabilities of all tokens after each beam, as the processors leave them: FP32 ``[beams, vocab]``."""
        highest = logits.max(axis=1, keepdims=True)
        if not np.isfinite(highest).all():  # NaN fails this check too
            raise NotFiniteError
        scores: Floats = logits - highest
        scores -= np.log(np.exp(scores).sum(axis=1, keepdims=True))
        for processor in self._processors:
            processor(self._read[:, : self._length], scores)
        return scores

    def _keep_ended(self, sequences: Integers, scores: Floats, ended: Truths) -> None:
        """Keep the candidates that have ended, if they are among the best.

        Args:
            sequences: INT64 ``[beams, length]``, the best candidates.
            scores: FP32 ``[beams]``, theirs.
            ended: BOOL ``[beams]``, whether they have ended.
        """
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            penalized: Floats = scores / self._length_penalty(self._length)
        if self._options.early_stopping is True and self._best.ended.all():
            penalized += EXCLUDED
        if not self._may_improve:
            penalized += EXCLUDED
        penalized += _penalty(~ended)
        lengths = np.full(len(scores), self._length, dtype=np.int64)
        self._best = self._best.merge(Hypotheses(sequences, lengths, penalized, ended))

    def _can_improve(self) -> bool:
        """Estimate whether a beam can still become better than the worst sequence that has ended."""
        hopeful = self._options.early_stopping == "never" and self._options.length_penalty > 0
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            possible = self._scores[0] / self._length_penalty(self._max_length if hopeful else self._length)
        worst = np.where(self._best.ended, self._best.scores.min(), EXCLUDED)
        return bool((possible > worst).any())

    def _length_penalty(self, length: int) -> np.float32:
        with np.errstate(over="ignore", under="ignore"):
            return np.float32(np.float64(length - self._prompt_length) ** self._options.length_penalty)

    def end_with_next(self) -> None:
        """Let the beams end with their next token; see :class:`~.time_limit.Shortened`."""
        self._max_length = self._length + 1

    def sequences(self) -> Sequence[GeneratedSequence]:
        """Return the best sequences; before the end the best beams, see :class:`~.decoding.Decoding`."""
        count, start = self._options.num_return_sequences, self._prompt_length
        if not self._finished:
            return [GeneratedSequence(read[start : self._length].tolist(), "") for read in self._read[:count]]
        pairs = zip(self._best.tokens[:count], self._best.lengths[:count].tolist(), strict=True)
        found = [tokens[start:length].tolist() for tokens, length in pairs]
        return [GeneratedSequence(tokens, STOP if tokens and tokens[-1] in self._end else LENGTH) for tokens in found]


def _penalty(excluded: Truths) -> Floats:
    """Return what to add to scores: FP32 ``[beams]``."""
    return np.where(excluded, EXCLUDED, np.float32(0))
