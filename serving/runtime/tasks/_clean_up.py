"""Removes the spaces in front of punctuation, as ``transformers`` does where ``clean_up_tokenization_spaces`` is true."""

from __future__ import annotations

_CLEAN_UP = (
    *((f" {mark}", mark) for mark in ".?!,"),
    (" ' ", "'"),
    *((f" {ending}", ending) for ending in ("n't", "'m", "'s", "'ve", "'re")),
)
"""Replacements of ``transformers`` (``clean_up_tokenization``), in its order."""


def cleaned_up(text: str) -> str:
    """Remove the spaces in front of punctuation from decoded text."""
    for old, new in _CLEAN_UP:
        text = text.replace(old, new)
    return text


class TextCleaner:
    """Cleans up the spaces of text that comes in pieces, as if it stood as a whole behind the text before it.

    As in ``transformers.pipeline``, the text begins as many characters behind the beginning of both as the text before it has.
    """

    def __init__(self, before: str) -> None:
        """Begin behind ``before``."""
        self._pending = before[_certain(before) :]
        self._skipped = len(cleaned_up(self._pending))

    def clean(self, text: str, *, final: bool) -> str:
        """Take the next piece; return the text that no further piece can change, or where this is the ``final`` one, the rest."""
        self._pending += text
        end = len(self._pending) if final else _certain(self._pending)
        cleaned = cleaned_up(self._pending[:end])
        self._pending = self._pending[end:]
        kept = cleaned[self._skipped :]
        self._skipped -= len(cleaned) - len(kept)
        return kept


def _certain(text: str) -> int:
    """Return the length of the beginning of a text whose cleaned form does not depend on what follows.

    It ends where neither of two characters is a space or an apostrophe: no replacement, nor one that another makes possible, goes
    over such a place.
    """
    end = len(text)
    while end > 0 and any(character in " '" for character in text[max(end - 2, 0) : end]):
        end -= 1
    return end
