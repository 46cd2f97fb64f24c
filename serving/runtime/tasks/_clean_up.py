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
