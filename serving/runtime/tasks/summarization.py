"""Summarization: a text → what it says, in fewer words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ._rewriting import RewritingTask


@dataclass(frozen=True, kw_only=True)
class Summarization(RewritingTask):
    """A text → a shorter one. See :class:`RewritingTask` for the fields."""

    name: ClassVar[str] = "summarization"
    columns: ClassVar[Mapping[str, str | None]] = {"text": "text", "text_pair": None, "label": "summary"}
    default_max_length: ClassVar[int] = 512

    @property
    def metric(self) -> str:
        return "rouge"

    @property
    def main_metric(self) -> str:
        return "rouge_l"


TASK = Summarization
