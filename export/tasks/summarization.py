"""Summarization: a text → a shorter text with its content."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from export.tasks._rewriting import RewritingTask
from serving.runtime.tasks.summarization import Summarization


@dataclass(frozen=True, kw_only=True)
class SummarizationTask(RewritingTask):
    """Trains and exports summarization. See :class:`RewritingTask` for the fields."""

    name: ClassVar[str] = "summarization"
    served_class: ClassVar[type[Summarization]] = Summarization
    columns: ClassVar[Mapping[str, str | None]] = {"text": "text", "text_pair": None, "label": "summary"}
    default_max_length: ClassVar[int] = 512

    @property
    def metric(self) -> str:
        """Return ROUGE."""
        return "rouge"

    @property
    def default_metric(self) -> str:
        """Return ROUGE-L."""
        return "rouge_l"

    @property
    def selectable_metrics(self) -> tuple[str, ...]:
        """Return the figures of the metric of which higher is better."""
        return ("rouge_l", "rouge_1", "rouge_2")


TASK = SummarizationTask
