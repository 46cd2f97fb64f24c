"""Parts of texts: more for a teacher to say something of than there are labelled rows (n-gram sampling, Tang et al. 2019)."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from serving.runtime.tokenization import TextEncoder

LEAST = 2
"""Words of a part."""


def parts_of(texts: Sequence[str], count: int, encoder: TextEncoder, draw: random.Random) -> list[list[str]]:
    """``count`` parts of each text: words in a row, any number of them but all. Words are what the tokenizer finds to be such, or,
    where those are fewer, what stands between spaces. A text that is too short stands for its own parts."""
    found = []
    for text, encoding in zip(texts, encoder.encode(texts, offsets=True), strict=True):
        words = [encoding.word_to_chars(word) for word in sorted({word for word in encoding.word_ids if word is not None})]
        spaced = [match.span() for match in re.finditer(r"\S+", text)]
        words = words if len(words) >= len(spaced) or encoding.overflowing else spaced
        found.append([_part(text, words, draw) for _ in range(count)])
    return found


def _part(text: str, words: Sequence[tuple[int, int]], draw: random.Random) -> str:
    if len(words) <= LEAST:
        return text
    length = draw.randint(LEAST, len(words) - 1)
    first = draw.randint(0, len(words) - length)
    return text[words[first][0] : words[first + length - 1][1]]
