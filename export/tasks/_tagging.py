"""Reads rows for token classification: words with their labels, or a text with its entities."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TypedDict

import numpy as np

from serving.records import parse_json
from serving.runtime.tasks._labels import OUTSIDE
from serving.runtime.types import Integers

_WORD = re.compile(r"\w+|[^\w\s]")


class TaggedWords(TypedDict):
    """Words of a text in order: their places in characters, and their labels."""

    start: list[int]
    end: list[int]
    label: list[str | int]


def read_list(value: object) -> list[object] | None:
    """Read a list, or a string with a JSON list; return None for anything else."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = parse_json(value)
        except ValueError:
            return None
    return value if isinstance(value, list) else None


def tagged_text(text: object, entities: list[object]) -> TaggedWords:
    """Split a text into words, punctuation apart, and label them with ``B-`` and ``I-`` by its entities.

    Raises:
        ValueError: The text is not text, or an entity is invalid or overlaps another.
    """
    if not isinstance(text, str):
        raise ValueError(f"the words are of type {type(text).__name__}, neither a list nor a text")
    spans = sorted((_span(entity, text) for entity in entities), key=lambda span: span[0])
    if any(one[1] > other[0] for one, other in pairwise(spans)):
        raise ValueError("entities overlap")
    edges = sorted({0, len(text), *(place for start, end, _ in spans for place in (start, end))})
    parts = pairwise(edges)
    words = [match.span() for start, end in parts for match in _WORD.finditer(text, start, end)]
    labels: list[str | int] = [OUTSIDE] * len(words)
    for start, end, label in spans:
        inside = [index for index, word in enumerate(words) if start <= word[0] < end]
        for index in inside:
            labels[index] = f"{'B' if index == inside[0] else 'I'}-{label}"
    return {"start": [start for start, _ in words], "end": [end for _, end in words], "label": labels}


def _span(entity: object, text: str) -> tuple[int, int, str]:
    match entity:
        case {"start": int(start), "end": int(end), "label": str(label)} if 0 <= start < end <= len(text):
            return start, end, label
    raise ValueError(f"not an entity of this text with start, end and label: {entity!r:.80}")


def first_tokens(starts: Integers, ends: Integers, words: Mapping[str, Sequence[object]]) -> Integers:
    """Find the first token of each word.

    Args:
        starts: ``[tokens]``, first characters of the tokens, ascending.
        ends: ``[tokens]``, the characters after their last.
        words: ``start`` and ``end`` of the words, ascending.

    Returns:
        ``[words]``: -1 if a word has no token (it was truncated, or the tokenizer drops it).
    """
    begin, stop = (np.array(words[side], dtype=np.int64) for side in ("start", "end"))
    if not len(starts):
        return np.full(len(begin), -1, dtype=np.int64)
    first = np.searchsorted(ends, begin, side="right")  # some tokenizers put the space before a word into its first token
    inside = np.minimum(first, len(starts) - 1)
    return np.where((first < len(starts)) & (starts[inside] < stop), inside, -1)
