"""N-gram augmentation for distillation: random spans of each text, which only the teacher labels (Tang et al. 2019)."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from serving.runtime.tokenization import TextEncoder

MIN_WORDS = 2
"""Shortest span, in words."""


def random_spans(texts: Sequence[str], count: int, encoder: TextEncoder, generator: random.Random) -> list[list[str]]:
    """Draw ``count`` random spans of consecutive words from each text.

    Words are those of the tokenizer, or those between spaces if the tokenizer finds fewer words. A span has from
    :data:`MIN_WORDS` words to one less than the text. A text that is too short stands for its own spans.

    Args:
        texts: The texts.
        count: Number of spans per text.
        encoder: Encoder whose tokenizer splits the texts into words.
        generator: Source of randomness.

    Returns:
        ``count`` spans for each text, in the order of ``texts``.
    """
    spans = []
    for text, encoding in zip(texts, encoder.encode(texts, offsets=True), strict=True):
        words = [encoding.word_to_chars(word) for word in sorted({word for word in encoding.word_ids if word is not None})]
        spaced = [match.span() for match in re.finditer(r"\S+", text)]
        words = words if len(words) >= len(spaced) or encoding.overflowing else spaced
        spans.append([_random_span(text, words, generator) for _ in range(count)])
    return spans


def _random_span(text: str, words: Sequence[tuple[int, int]], generator: random.Random) -> str:
    if len(words) <= MIN_WORDS:
        return text
    length = generator.randint(MIN_WORDS, len(words) - 1)
    first = generator.randint(0, len(words) - length)
    return text[words[first][0] : words[first + length - 1][1]]
