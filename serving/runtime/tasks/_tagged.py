"""Rows of a data set for token classification: words with their labels, or a text with its entities."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any

OUTSIDE = "O"
"""The label of what belongs to no entity."""


def read_list(value: Any) -> list[Any] | None:
    """A list, or the JSON of one; None where it is neither."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return value if isinstance(value, list) else None


_WORD = re.compile(r"\w+|[^\w\s]")


def tagged_text(text: Any, entities: list[Any]) -> dict[str, list[Any]]:
    """A text and its entities → its words, punctuation apart, with ``B-`` and ``I-`` before the entities' labels."""
    if not isinstance(text, str):
        raise ValueError(f"the words are {type(text).__name__}, not a list, and no text either")
    spans = sorted((_span(entity, text) for entity in entities), key=lambda span: span[0])
    if any(one[1] > other[0] for one, other in pairwise(spans)):
        raise ValueError("entities overlap")
    edges = sorted({0, len(text), *(place for start, end, _ in spans for place in (start, end))})
    parts = pairwise(edges)
    words = [match.span() for start, end in parts for match in _WORD.finditer(text, start, end)]
    labels = [OUTSIDE] * len(words)
    for start, end, label in spans:
        inside = [index for index, word in enumerate(words) if start <= word[0] < end]
        for index in inside:
            labels[index] = f"{'B' if index == inside[0] else 'I'}-{label}"
    return {"start": [start for start, _ in words], "end": [end for _, end in words], "label": labels}


def _span(entity: Any, text: str) -> tuple[int, int, str]:
    match entity:
        case {"start": int(start), "end": int(end), "label": str(label)} if 0 <= start < end <= len(text):
            return start, end, label
    raise ValueError(f"no entity of this text with start, end and label: {entity!r:.80}")
