"""The logits processors of ``transformers`` in numpy, in its order: they forbid, penalize or force tokens before one is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..types import Floats, Integers
from .decoding import FORBIDDEN

if TYPE_CHECKING:
    from .generation_options import GenerationOptions


class LogitsProcessor(Protocol):
    """Changes the scores of the next token."""

    def __call__(self, sequences: Integers, scores: Floats) -> None:
        """Change ``scores`` in place.

        Args:
            sequences: INT64 ``[rows, length]``, what each row has read: the prompt (of an encoder-decoder: the decoder's), then the
                generated tokens.
            scores: FP32 ``[rows, vocab]``.
        """
        ...


def logits_processors(
    options: GenerationOptions, *, prompt_length: int, max_length: int, encoder_ids: Integers
) -> list[LogitsProcessor]:
    """Return the processors that a request needs, in the order of ``transformers``.

    Args:
        options: The request's options.
        prompt_length: Tokens of the prompt (of an encoder-decoder: the decoder's).
        max_length: Most tokens of the whole sequence, prompt included.
        encoder_ids: INT64 ``[source]``, what the encoder reads; of a decoder alone, the prompt.
    """
    eos = np.array(options.eos_token_id, dtype=np.int64)
    min_length = options.min_length if options.min_new_tokens is None else prompt_length + options.min_new_tokens
    begin = prompt_length if prompt_length > 1 or options.forced_bos_token_id is None else prompt_length + 1
    processors: list[LogitsProcessor] = []
    if options.repetition_penalty != 1.0:
        processors.append(RepetitionPenalty(options.repetition_penalty))
    if options.no_repeat_ngram_size:
        processors.append(NoRepeatNGram(options.no_repeat_ngram_size))
    if options.encoder_no_repeat_ngram_size:
        processors.append(EncoderNoRepeatNGram(options.encoder_no_repeat_ngram_size, encoder_ids))
    if (no_bad_words := options.no_bad_words) is not None:
        processors.append(no_bad_words)
    if min_length and len(eos):
        processors.append(MinLength(min_length, eos))
    if options.forced_bos_token_id is not None:
        processors.append(ForcedToken(1, [options.forced_bos_token_id]))
    if options.forced_eos_token_id:
        processors.append(ForcedToken(max_length - 1, options.forced_eos_token_id))
    if options.suppress_tokens:
        processors.append(SuppressTokens(options.suppress_tokens))
    if options.begin_suppress_tokens:
        processors.append(SuppressTokens(options.begin_suppress_tokens, length=begin))
    if options.renormalize_logits and options.num_beams > 1:  # without beams it changes no token
        processors.append(LogitNormalization())
    return processors


class RepetitionPenalty:
    """Makes tokens that were read less probable."""

    def __init__(self, penalty: float) -> None:
        self._penalty = np.float32(penalty)

    def __call__(self, sequences: Integers, scores: Floats) -> None:
        """Divide positive scores of tokens that a row has read by the penalty, and multiply negative ones."""
        read = np.take_along_axis(scores, sequences, axis=1)
        np.put_along_axis(scores, sequences, np.where(read < 0, read * self._penalty, read / self._penalty), axis=1)


class NoRepeatNGram:
    """Forbids tokens that would repeat n tokens of the sequence."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __call__(self, sequences: Integers, scores: Floats) -> None:
        """Forbid what followed each earlier occurrence of a row's last n - 1 tokens."""
        _forbid_followers(sequences, sequences, self._size, scores)


class EncoderNoRepeatNGram:
    """Forbids tokens that would repeat n tokens of what the encoder read (of a decoder alone: of the prompt)."""

    def __init__(self, size: int, encoder_ids: Integers) -> None:
        self._size = size
        self._source = encoder_ids[None]

    def __call__(self, sequences: Integers, scores: Floats) -> None:
        """Forbid what follows each occurrence of a row's last n - 1 tokens in the source."""
        if sequences.shape[1] >= self._size - 1:
            source = np.broadcast_to(self._source, (len(sequences), self._source.shape[1]))
            _forbid_followers(sequences, source, self._size, scores)


class MinLength:
    """Forbids the end of sequences that are too short."""

    def __init__(self, min_length: int, eos: Integers) -> None:
        self._min_length, self._eos = min_length, eos

    def __call__(self, sequences: Integers, scores: Floats) -> None:
        """Forbid the end-of-sequence tokens."""
        if sequences.shape[1] < self._min_length:
            scores[:, self._eos] = FORBIDDEN


class ForcedToken:
    """Forces tokens at one length of the sequence: its first one, or its last one."""

    def __init__(self, length: int, tokens: Sequence[int]) -> None:
        self._length, self._tokens = length, np.array(tokens, dtype=np.int64)

    def __call__(self, sequences: Integers, scores: Floats) -> None:
        """Forbid all other tokens."""
        if sequences.shape[1] == self._length:
            scores[:] = FORBIDDEN
            scores[:, self._tokens] = 0


class SuppressTokens:
    """Forbids tokens everywhere, or at one length of the sequence."""

    def __init__(self, tokens: Sequence[int], *, length: int | None = None) -> None:
        self._tokens, self._length = np.array(tokens, dtype=np.int64), length

    def __call__(self, sequences: Integers, scores: Floats) -> None:
        """Forbid the tokens."""
        if self._length is None or sequences.shape[1] == self._length:
            scores[:, self._tokens] = FORBIDDEN


class LogitNormalization:
    """Makes log probabilities of the scores again."""

    def __call__(self, sequences: Integers, scores: Floats) -> None:  # noqa: ARG002 - as all processors
        """Normalize the scores of each row. One of which all tokens are forbidden stays as it is."""
        highest = scores.max(axis=1, keepdims=True)
        highest[highest == FORBIDDEN] = 0
        scores -= highest
        total = np.exp(scores).sum(axis=1, keepdims=True)
        total[total == 0] = 1
        scores -= np.log(total)


def _forbid_followers(sequences: Integers, source: Integers, size: int, scores: Floats) -> None:
    """Forbid each token that follows the last ``size - 1`` tokens of a row somewhere in the row's ``source``."""
    windows = source.shape[1] - size + 1
    if windows < 1:
        return
    same = np.ones((len(sequences), windows), dtype=np.bool_)
    for place in range(size - 1):
        same &= source[:, place : place + windows] == sequences[:, place - size + 1, None]
    rows, starts = same.nonzero()
    scores[rows, source[rows, starts + size - 1]] = FORBIDDEN
