"""Summarization: a text → its summary.

The answers are those of ``transformers.pipeline("summarization")``. A text that is longer than the model accepts is refused, unless
``truncation`` is true.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ._text2text import Text2TextTask


@dataclass(frozen=True, kw_only=True)
class Summarization(Text2TextTask):
    """Serves summarization."""

    name: ClassVar[str] = "summarization"
    answer_key: ClassVar[str] = "summary_text"

    @property
    def example(self) -> dict[str, str]:
        """Return a text of two sentences."""
        return {"TEXT": "The tower is 324 metres tall. It was the tallest structure in the world for 41 years."}


TASK = Summarization
