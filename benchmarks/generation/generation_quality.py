"""Quality of generated answers: token for token against the original's, and the bundle's figures of the same model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import takewhile
from statistics import fmean

from benchmarks.measurements import ChangedAnswer, Quality
from benchmarks.quality import SHOWN
from export.generation.decoder_records import METRIC
from serving.bundle import Bundle
from serving.manifests import GenerationVariantFigures

Answers = Sequence[Sequence[int]]
"""Tokens of the answer to each prompt."""


def compare_answers(prompts: Sequence[str], answers: Answers, original: Answers, decode: Callable[[Sequence[int]], str]) -> Quality:
    """Compare answers with the original's.

    Args:
        prompts: The prompts.
        answers: The answers to them.
        original: The original's answers.
        decode: Makes text of tokens.
    """
    shares = [_same_tokens(mine, theirs) / len(theirs) for mine, theirs in zip(answers, original, strict=True)]
    changed = sorted((share, row) for row, share in enumerate(shares) if share < 1)
    return Quality(
        rows=len(prompts),
        metrics={},
        agreement=fmean(shares),
        row_agreement=fmean(share == 1 for share in shares),
        max_score_difference=None,
        changed_answers=[
            ChangedAnswer(
                row=row,
                texts={"text_input": prompts[row]},
                reference="",
                original=decode(original[row]),
                answer=decode(answers[row]),
                difference=1 - share,
            )
            for share, row in changed[:SHOWN]
        ],
    )


def _same_tokens(answer: Sequence[int], original: Sequence[int]) -> int:
    """Count the tokens before the first one that differs."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(answer, original, strict=False)))


def with_bundle_figures(quality: Quality, bundle: Bundle, precision: str) -> Quality:
    """Add what the bundle's verification found for a variant."""
    figures = bundle.variant(precision).figures
    assert isinstance(figures, GenerationVariantFigures)
    return replace(
        quality,
        perplexity=figures.metrics.get(METRIC),
        perplexity_increase=None if figures.metric_drop is None else figures.metric_drop / 100,
        next_token_agreement=figures.next_token_agreement,
    )


def original_perplexity(bundle: Bundle) -> float | None:
    """Return the original's perplexity from the bundle's verification."""
    return bundle.manifest.original.metrics.get(METRIC)
