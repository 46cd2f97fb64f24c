"""Describes the windows of a text before the model sees them, and finds the most probable spans of each window after it."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..types import Floats, Integers

if TYPE_CHECKING:
    from tokenizers import Encoding

    Ints = npt.NDArray[np.int32]

CHUNK = 2**22
"""Maximum number of span scores in memory at once."""
ANSWERABLE, WORD = 1, 2
"""Bits of a token: it may begin or end an answer; it belongs to a word of the text."""

_HEAD = struct.Struct("<IIIBB")
"""Start of a window's metadata: tokens of the window, the first token described, the number of tokens described, whether a special
token opens the window, whether the tokens differ in their bits. Then INT32 by token: where in the text an answer begins that begins
with it, and where one ends that ends with it; where the bits differ, the same without alignment to words, and UINT8 the bits. Then
the text in UTF-8, for the first window of its row."""


def text_tokens(window: Encoding, *, text_first: bool = False) -> tuple[int, int]:
    """Find where the text's tokens begin in a window, and how many there are."""
    sequence, text = window.sequence_ids, 0 if text_first else 1
    count = sequence.count(text)
    return (sequence.index(text) if count else 0), count


def metadata_of(
    windows: Sequence[Encoding],
    sample_mapping: Integers,
    contexts: Sequence[str],
    *,
    words: bool,
    text_first: bool,
    pad_token_id: int,
) -> list[bytes]:
    """Pack the metadata of each window, in the form of :data:`_HEAD`.

    Args:
        windows: Windows of all rows.
        sample_mapping: ``[windows]``, positions in ``contexts``.
        contexts: Texts of the rows.
        words: Whether answers are widened to whole words.
        text_first: Whether the text stands in front of the question. Every token may then be part of an answer.
        pad_token_id: Id of the padding token. It matters where the text is first.
    """
    metadata = []
    before = -1
    for window, row in zip(windows, sample_mapping.tolist(), strict=True):
        packed = _pack_text_first(window, words=words, pad_token_id=pad_token_id) if text_first else _pack(window, words=words)
        metadata.append(packed if row == before else packed + contexts[row].encode())
        before = row
    return metadata


def _pack(window: Encoding, *, words: bool) -> bytes:
    ids = window.ids
    opened = bool(ids) and window.special_tokens_mask[0] == 1
    first, count = text_tokens(window)
    found = window.word_ids[first : first + count] if words else []
    numbers = np.array(found, dtype=np.float64)  # NaN where a token belongs to no word
    if (opened and ids.count(ids[0]) > 1) or not (numbers[1:] >= numbers[:-1]).all() or np.isnan(numbers[:1]).any():
        return _pack_by_token(window, first, count, opened=opened, words=words)
    offsets = itertools.chain.from_iterable(window.offsets[first : first + count])
    spans = np.fromiter(offsets, dtype=np.int32, count=2 * count).reshape(count, 2)
    if words and count:
        edges = np.flatnonzero(numbers[1:] != numbers[:-1]) + 1
        firsts, lasts = np.concatenate(([0], edges)), np.concatenate((edges, [count]))
        spans = np.repeat(np.stack((spans[firsts, 0], spans[lasts - 1, 1]), axis=1), lasts - firsts, axis=0)
    return _HEAD.pack(len(ids), first, count, opened, False) + spans.T.tobytes()


def _pack_by_token(window: Encoding, first: int, count: int, *, opened: bool, words: bool) -> bytes:
    """Pack the metadata of a window whose tokens must be described one by one.

    That is so where words are out of order or missing, or where the opening token's name is written out in the question, which the
    pipeline then takes for part of an answer.
    """
    ids = window.ids
    inside = [first <= token < first + count or (opened and ids[token] == ids[0]) for token in range(len(ids))]
    return _pack_each(window, [*range(len(ids))], inside, opened=opened, words=words, text=1)


def _pack_text_first(window: Encoding, *, words: bool, pad_token_id: int) -> bytes:
    """Pack a window in which the pipeline takes the tokens of the question, and special ones, for parts of the text too.

    It takes a padding token that is written out in a text for padding on the left. Each such token moves the place where it looks a
    token up by one to the left, and from the first to the last.
    """
    count = len(window.ids)
    shift = window.ids.count(pad_token_id)
    places = [token - shift for token in range(count)]
    return _pack_each(window, places, [True] * count, opened=False, words=words, text=0)


def _pack_each(window: Encoding, places: list[int], inside: list[bool], *, opened: bool, words: bool, text: int) -> bytes:
    """Pack the metadata of a window token by token.

    Args:
        window: The window.
        places: By token, the token that is looked up in its place. Below 0 it is counted from the end, and belongs to no word.
        inside: By token, whether it may be part of an answer.
        opened: Whether a special token opens the window.
        words: Whether answers are widened to whole words.
        text: Position of the text among the two texts of the window.
    """
    offsets = window.offsets
    raw = [offsets[place] for place in places]
    numbers = window.word_ids
    spans, bits = [], []
    for token, place in enumerate(places):
        number = numbers[place] if place >= 0 else None
        word = window.word_to_chars(number, text) if words and number is not None else None
        spans.append(word or raw[token])
        bits.append(ANSWERABLE * inside[token] + WORD * (word is not None or not words))
    both = np.concatenate((np.array(spans, dtype=np.int32).T, np.array(raw, dtype=np.int32).T))
    return _HEAD.pack(len(places), 0, len(places), opened, True) + both.tobytes() + np.array(bits, dtype=np.uint8).tobytes()


@dataclass(frozen=True)
class Windows:
    """The metadata of several windows.

    Attributes:
        tokens: INT64 ``[windows]``, number of tokens without padding.
        bits: UINT8 ``[windows, longest]``.
        spans: INT32 ``[4, windows, longest]``: where an answer begins and ends, then the same without alignment to words.
        texts: UTF-8; empty except for the first window of a row.
    """

    tokens: npt.NDArray[np.int64]
    bits: npt.NDArray[np.uint8]
    spans: Ints
    texts: list[bytes]

    @classmethod
    def read(cls, metadata: Sequence[bytes], longest: int) -> Windows:
        """Unpack what :func:`metadata_of` packed, for windows padded to ``longest`` tokens."""
        tokens = np.zeros(len(metadata), dtype=np.int64)
        bits = np.zeros((len(metadata), longest), dtype=np.uint8)
        spans = np.zeros((4, len(metadata), longest), dtype=np.int32)
        texts = []
        for row, packed in enumerate(metadata):
            tokens[row], first, count, opened, differ = _HEAD.unpack_from(packed)
            described = slice(first, first + count)
            kinds = 4 if differ else 2
            place = _HEAD.size + 4 * kinds * count
            spans[:kinds, row, described] = np.frombuffer(packed, np.int32, kinds * count, _HEAD.size).reshape(kinds, count)
            bits[row, described] = np.frombuffer(packed, np.uint8, count, place) if differ else ANSWERABLE | WORD
            bits[row, 0] |= ANSWERABLE * opened
            texts.append(packed[place + count * differ :])
        return cls(tokens, bits, spans, texts)

    def places(self, starts: Ints, ends: Ints, scores: Floats) -> tuple[Ints, Ints, Floats]:
        """Convert first and last tokens ``[windows, count]`` to character positions. The score is 0 where the span is no answer."""
        rows = np.arange(len(starts))[:, None]
        both = self.bits[rows, starts] & self.bits[rows, ends]
        begins, behinds = self.spans[0, rows, starts], self.spans[1, rows, ends]
        apart = (both & WORD) == 0
        if apart.any():  # one end is in no word: the pipeline then widens neither
            begins = np.where(apart, self.spans[2, rows, starts], begins)
            behinds = np.where(apart, self.spans[3, rows, ends], behinds)
        return begins, behinds, np.where((both & ANSWERABLE) != 0, scores, 0)


# -- scores of spans -----------------------------------------------------------------------------------------------------------


def probabilities(logits: Floats, windows: Windows) -> Floats:
    """Compute the softmax over the tokens of each window that may be part of an answer: ``[windows, longest]``."""
    inside = np.arange(logits.shape[1]) < windows.tokens[:, None]
    shown = np.where((windows.bits & ANSWERABLE) != 0, logits, np.float32(-10000.0))
    shown = np.where(inside, shown, np.float32(-np.inf))
    scores: Floats = np.exp(shown - shown.max(axis=-1, keepdims=True))
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores


def best_spans(start: Floats, end: Floats, count: int, most: int) -> tuple[Ints, Ints, Floats]:
    """Find the ``count`` most probable spans of at most ``most`` tokens in each window.

    A span among the best begins with one of the ``count`` tokens whose own best span is best, so only those are multiplied.

    Returns:
        First tokens, last tokens and scores, ``[windows, count or less]``, best first.
    """
    longest = start.shape[1]
    most = min(most, longest)
    begins = np.sort(_top(start * _sliding_max(end, most), count), axis=1)
    reach = np.lib.stride_tricks.sliding_window_view(np.pad(end, ((0, 0), (0, most - 1))), most, axis=1)
    parts = []
    step = max(1, CHUNK // (begins.shape[1] * most))
    for first in range(0, len(start), step):
        chunk = slice(first, first + step)
        rows = np.arange(len(start))[chunk, None]
        scores = (start[rows, begins[chunk]][:, :, None] * reach[rows, begins[chunk]]).reshape(len(rows), -1)
        best = np.sort(_top(scores, count), axis=1)
        best = best[np.arange(len(rows))[:, None], np.argsort(-np.take_along_axis(scores, best, 1), axis=1, kind="stable")]
        starts = np.take_along_axis(begins[chunk], best // most, 1)
        parts.append((starts, np.minimum(starts + best % most, longest - 1), np.take_along_axis(scores, best, 1)))
    return tuple(map(np.concatenate, zip(*parts, strict=True)))  # type: ignore[return-value]


def _sliding_max(values: Floats, width: int) -> Floats:
    """Compute the maximum of each value and the ``width - 1`` values after it: ``[rows, n]``."""
    found, reach = values.copy(), 1
    while reach < width:
        step = min(reach, width - reach)
        found[:, :-step] = np.maximum(found[:, :-step], found[:, step:])
        reach += step
    return found


def _top(scores: Floats, count: int) -> npt.NDArray[np.int64]:
    """Find the positions of the largest values of each row, in no order: ``[rows, count or less]``."""
    rows, columns = scores.shape
    if count == 1:
        best: npt.NDArray[np.int64] = scores.argmax(axis=1)[:, None]
        return best
    if count >= columns:
        return np.broadcast_to(np.arange(columns), (rows, columns))
    found: npt.NDArray[np.int64] = np.argpartition(scores, columns - count, axis=1)[:, columns - count :]
    return found
