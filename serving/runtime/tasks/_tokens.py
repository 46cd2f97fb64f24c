"""Tokens of token classification: how they travel around the model, which of them make a word, and what label a word gets."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from typing import Self  # the Python inside Triton may be older than 3.11

    from tokenizers import Tokenizer

    from ..tokenization import TextEncoder

Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

_COUNT = struct.Struct("<i")
NUMBERS = np.dtype("<i4")
"""Of these a note consists, up to its JSON."""


def first_tokens(starts: Integers, ends: Integers, words: Mapping[str, Any]) -> Integers:
    """``[words]``: which token is the first of each word, -1 where it has none (it was cut off, or the tokenizer drops it).

    Args:
        starts, ends: ``[tokens]``, places in the text, ascending.
        words: ``start`` and ``end``, ascending.
    """
    begin, stop = (np.array(words[side], dtype=np.int64) for side in ("start", "end"))
    if not len(starts):
        return np.full(len(begin), -1, dtype=np.int64)
    first = np.searchsorted(ends, begin, side="right")  # some tokenizers put the space before a word to its first token
    inside = np.minimum(first, len(starts) - 1)
    return np.where((first < len(starts)) & (starts[inside] < stop), inside, -1)


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Tokens of several of the model's rows, those of the tokenizer's own left out.

    Args:
        rows: ``[tokens]``, which of the rows each is in.
        positions: where it stands there.
        starts, ends: where it stands in the text, in characters.
        continues: whether it continues the word of the token before.
        words: how the tokenizer spells it.
    """

    rows: Integers
    positions: Integers
    starts: Integers
    ends: Integers
    continues: Flags
    words: list[str]

    @staticmethod
    def pack(table: npt.NDArray[np.int32], words: list[str]) -> bytes:
        """The note of one row: how many tokens, four numbers of each, their spellings as JSON."""
        return _COUNT.pack(len(words)) + table.tobytes() + json.dumps(words, ensure_ascii=False).encode()

    @classmethod
    def unpack(cls, notes: Sequence[bytes]) -> Self:
        """The tokens of rows that :meth:`pack` packed."""
        counts = [_COUNT.unpack_from(note)[0] for note in notes]
        tables = [np.frombuffer(note, NUMBERS, 4 * count, _COUNT.size) for note, count in zip(notes, counts, strict=True)]
        table = np.concatenate(tables).reshape(-1, 4).astype(np.int64)
        ends = [_COUNT.size + part.nbytes for part in tables]
        words = list(chain.from_iterable(json.loads(note[end:]) for note, end in zip(notes, ends, strict=True)))
        positions, starts, stops, continues = table.T
        rows = np.repeat(np.arange(len(notes)), counts)
        return cls(rows=rows, positions=positions, starts=starts, ends=stops, continues=continues > 0, words=words)

    def word_starts(self) -> Integers:
        """Positions of the tokens that begin a word; a row's first does."""
        begins = ~self.continues
        begins[0] = True
        begins[1:] |= self.rows[1:] != self.rows[:-1]
        return np.flatnonzero(begins)


class Vocabulary:
    """What of a tokenizer is looked up for every token.

    Args:
        tokenizer: a copy of what it says is kept: changes do not show.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        ids = tokenizer.get_vocab(with_added_tokens=True).values()
        self.spelled = np.array([tokenizer.id_to_token(token) or "" for token in range(max(ids) + 1)], dtype=np.object_)
        self._lengths = np.array([len(token) for token in self.spelled], dtype=np.int64)
        self._marks = bool(getattr(tokenizer.model, "continuing_subword_prefix", None))

    @staticmethod
    def of(encoder: TextEncoder) -> Vocabulary:
        """That of an encoder, made once."""
        if encoder not in _VOCABULARIES:
            _VOCABULARIES[encoder] = Vocabulary(encoder.tokenizer)
        return _VOCABULARIES[encoder]

    def continues(self, ids: Integers, places: Integers, rows: Integers, texts: Sequence[str]) -> Flags:
        """``[tokens]``: whether each continues the word of the token before, by the pipeline's rules.

        Args:
            ids: ``[tokens]``.
            places: ``[tokens, 2]``, start and end in the text.
            rows: ``[tokens]``, in which text.
            texts: each once.
        """
        starts, ends = places.T
        found: Flags
        if self._marks:
            found = self._lengths[ids] != ends - starts
            return found
        sizes = np.array([len(text) + 1 for text in texts])  # one beyond the end, where there is no space
        spaces = np.frombuffer(("\0".join(texts) + "\0").encode("utf-32-le"), dtype="<u4") == ord(" ")
        here = (np.cumsum(sizes) - sizes)[rows] + starts
        found = (starts > 0) & ~spaces[here - 1] & ~spaces[here]
        return found


_VOCABULARIES: WeakKeyDictionary[TextEncoder, Vocabulary] = WeakKeyDictionary()


Chosen = tuple[Integers, npt.NDArray[np.float32]]
"""Label and score of each unit: a token or a word."""


def _by_first(scores: npt.NDArray[np.float32], firsts: Integers) -> Chosen:
    """Each word as its first token; so too each token as itself."""
    return scores[firsts].argmax(axis=-1), scores[firsts].max(axis=-1)


def _by_average(scores: npt.NDArray[np.float32], firsts: Integers) -> Chosen:
    """Each word by the mean of its tokens' scores."""
    counts = np.diff(np.append(firsts, len(scores))).astype(scores.dtype)
    means = np.add.reduceat(scores, firsts, axis=0) / counts[:, None]
    return means.argmax(axis=-1), means.max(axis=-1)


def _by_surest(scores: npt.NDArray[np.float32], firsts: Integers) -> Chosen:
    """Each word as its surest token, of equally sure ones the first."""
    each = scores.max(axis=-1)
    most = np.maximum.reduceat(each, firsts)
    words = np.repeat(np.arange(len(firsts)), np.diff(np.append(firsts, len(scores))))
    surest = np.flatnonzero(each == most[words])
    chosen = surest[np.unique(words[surest], return_index=True)[1]]
    return scores[chosen].argmax(axis=-1), most


Entity = dict[str, Any]
"""One item of an answer, as the pipeline gives it."""


def without_overlaps(entities: list[Entity]) -> list[Entity]:
    """Entities of a text's windows → of those that overlap the longest, then the surest. As the pipeline does it, where one of no
    length that stands first appears twice."""
    ranked = sorted(entities, key=lambda entity: entity["start"])
    kept: list[Entity] = []
    last = ranked[0] if ranked else {}
    for entity in ranked:
        if last["start"] <= entity["start"] < last["end"]:
            last = max(last, entity, key=lambda one: (one["end"] - one["start"], one["score"]))
        else:
            kept.append(last)
            last = entity
    return [*kept, last] if ranked else kept


LABELLED_BY = {"simple": _by_first, "first": _by_first, "average": _by_average, "max": _by_surest}
"""How each strategy labels units."""
