"""Packs the tokens of token classification for their way around the model, joins them to words, and labels the words."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, TypedDict
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from ..types import Flags, Floats, Integers

if TYPE_CHECKING:
    from typing import Self  # the Python inside Triton may be older than 3.11

    from tokenizers import Tokenizer

    from ..tokenization import TextEncoder

_COUNT = struct.Struct("<i")
NUMBERS = np.dtype("<i4")
"""Data type of the numbers in a row's metadata."""


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Tokens of several model rows, without special tokens.

    Attributes:
        rows: ``[tokens]``, the model row of each token.
        positions: ``[tokens]``, the position of the token in its row.
        starts: ``[tokens]``, the first character of the token in its text.
        ends: ``[tokens]``, the character after its last.
        continues: ``[tokens]``, whether the token continues the word of the token before.
        words: The tokenizer's spelling of each token.
    """

    rows: Integers
    positions: Integers
    starts: Integers
    ends: Integers
    continues: Flags
    words: list[str]

    @staticmethod
    def pack(table: npt.NDArray[np.int32], words: list[str]) -> bytes:
        """Pack the metadata of one row: the number of tokens, four numbers of each, their spellings as JSON."""
        return _COUNT.pack(len(words)) + table.tobytes() + json.dumps(words, ensure_ascii=False).encode()

    @classmethod
    def unpack(cls, metadata: Sequence[bytes]) -> Self:
        """Unpack the tokens of the rows that :meth:`pack` packed."""
        counts = [_COUNT.unpack_from(packed)[0] for packed in metadata]
        tables = [np.frombuffer(row, NUMBERS, 4 * count, _COUNT.size) for row, count in zip(metadata, counts, strict=True)]
        table = np.concatenate(tables).reshape(-1, 4).astype(np.int64)
        ends = [_COUNT.size + part.nbytes for part in tables]
        words = list(chain.from_iterable(json.loads(row[end:]) for row, end in zip(metadata, ends, strict=True)))
        positions, starts, stops, continues = table.T
        rows = np.repeat(np.arange(len(metadata)), counts)
        return cls(rows=rows, positions=positions, starts=starts, ends=stops, continues=continues > 0, words=words)

    def word_starts(self) -> Integers:
        """Find the positions of the tokens that begin a word. The first token of a row does."""
        begins = ~self.continues
        begins[0] = True
        begins[1:] |= self.rows[1:] != self.rows[:-1]
        return np.flatnonzero(begins)


class Vocabulary:
    """Looks up the properties of tokens in a tokenizer's vocabulary.

    Args:
        tokenizer: A tokenizer. Later changes to it have no effect.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        ids = tokenizer.get_vocab(with_added_tokens=True).values()
        self.spelled = np.array([tokenizer.id_to_token(token) or "" for token in range(max(ids) + 1)], dtype=np.object_)
        self._lengths = np.array([len(token) for token in self.spelled], dtype=np.int64)
        self._marks = bool(getattr(tokenizer.model, "continuing_subword_prefix", None))

    @staticmethod
    def of(encoder: TextEncoder) -> Vocabulary:
        """Return the vocabulary of an encoder, made once."""
        if encoder not in _VOCABULARIES:
            _VOCABULARIES[encoder] = Vocabulary(encoder.tokenizer)
        return _VOCABULARIES[encoder]

    def continues(self, ids: Integers, places: Integers, rows: Integers, texts: Sequence[str]) -> Flags:
        """Tell whether each token continues the word of the token before, by the pipeline's rules.

        Args:
            ids: ``[tokens]``.
            places: ``[tokens, 2]``, start and end in the text.
            rows: ``[tokens]``, positions in ``texts``.
            texts: The texts.

        Returns:
            ``[tokens]``.
        """
        starts, ends = places.T
        found: Flags
        if self._marks:
            found = self._lengths[ids] != ends - starts
            return found
        last = int(starts.max(initial=0)) + 1
        texts = [text[:last] for text in texts]  # the rest of a long text was truncated
        sizes = np.array([len(text) + 1 for text in texts])  # one beyond the end, where there is no space
        spaces = np.frombuffer(("\0".join(texts) + "\0").encode("utf-32-le"), dtype="<u4") == ord(" ")
        here = (np.cumsum(sizes) - sizes)[rows] + starts
        found = (starts > 0) & ~spaces[here - 1] & ~spaces[here]
        return found


_VOCABULARIES: WeakKeyDictionary[TextEncoder, Vocabulary] = WeakKeyDictionary()


LabelsAndScores = tuple[Integers, Floats]
"""Label and score of each unit: a token or a word."""


def _by_first(scores: Floats, firsts: Integers) -> LabelsAndScores:
    """Label each word as its first token, or each token as itself."""
    return scores[firsts].argmax(axis=-1), scores[firsts].max(axis=-1)


def _by_average(scores: Floats, firsts: Integers) -> LabelsAndScores:
    """Label each word by the mean of its tokens' scores."""
    counts = np.diff(np.append(firsts, len(scores))).astype(scores.dtype)
    means = np.add.reduceat(scores, firsts, axis=0) / counts[:, None]
    return means.argmax(axis=-1), means.max(axis=-1)


def _by_maximum(scores: Floats, firsts: Integers) -> LabelsAndScores:
    """Label each word as its token with the highest score, the first of equals."""
    each = scores.max(axis=-1)
    most = np.maximum.reduceat(each, firsts)
    words = np.repeat(np.arange(len(firsts)), np.diff(np.append(firsts, len(scores))))
    surest = np.flatnonzero(each == most[words])
    chosen = surest[np.unique(words[surest], return_index=True)[1]]
    return scores[chosen].argmax(axis=-1), most


class Entity(TypedDict, total=False):
    """One item of an answer, as the pipeline gives it: a token has ``entity`` and ``index``, a group ``entity_group``."""

    entity: str | int
    entity_group: str
    score: float
    index: int
    word: str
    start: int
    end: int


def without_overlaps(entities: list[Entity]) -> list[Entity]:
    """Keep the longest of overlapping entities, then the one with the highest score.

    The entities come from the windows of one text. As in the pipeline, an entity of no length that stands first appears twice.
    """
    if not entities:
        return []
    ranked = sorted(entities, key=lambda entity: entity["start"])
    kept: list[Entity] = []
    last = ranked[0]
    for entity in ranked:
        if last["start"] <= entity["start"] < last["end"]:
            last = max(last, entity, key=lambda one: (one["end"] - one["start"], one["score"]))
        else:
            kept.append(last)
            last = entity
    return [*kept, last]


LABELLED_BY = {"simple": _by_first, "first": _by_first, "average": _by_average, "max": _by_maximum}
"""Function that labels units, by aggregation strategy."""
