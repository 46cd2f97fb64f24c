"""Texts as the server tokenizes them, and texts of a given length."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class TokenizedTexts(ABC):
    """Tokenizes what a model reads, and decodes answers, as the server does."""

    tokenizer: Tokenizer

    @abstractmethod
    def tokens(self, text: str) -> list[int]:
        """Tokenize a text, with all that the server adds to it.

        Raises:
            ValueError: It has no tokens, or is far too long.
        """

    @abstractmethod
    def decode(self, tokens: Sequence[int]) -> str:
        """Decode an answer."""

    def of_length(self, texts: Sequence[str], length: int, *, count: int) -> list[str]:
        """Make texts of ``length`` tokens, or a few less, by appending the following texts and truncating at the end of a token.

        There are at most ``count``, and none that truncation makes longer or much shorter.
        """
        made = []
        for place in range(min(count, len(texts))):
            text, step = texts[place], 1
            while len(self.tokenizer.encode(text).ids) < length and step < len(texts):
                text, step = f"{text} {texts[(place + step) % len(texts)]}", step + 1
            ends = [end for _, end in self.tokenizer.encode(text).offsets[:length] if end]
            fitting = next((end for end in reversed(ends) if len(self.tokens(text[:end])) <= length), 0)
            if fitting and len(self.tokens(text[:fitting])) >= length - max(2, length // 10):
                made.append(text[:fitting])
        return made
