"""Quality of generated answers: beside the original's, beside the right ones, and by the bundle's figures of the same model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from statistics import fmean
from typing import Any, Protocol, cast

from benchmarks.generation.generation_inputs import GenerationInputs
from benchmarks.generation.generation_runs import CONTINUOUS
from benchmarks.in_process import ORIGINAL
from benchmarks.inputs import BenchmarkRows
from benchmarks.measurements import ChangedAnswer, Estimate, Quality
from benchmarks.quality import SHOWN
from export import metric
from export.generation.decoder_records import METRIC
from export.tasks._rewriting import RewritingTask
from serving.bundle import Bundle
from serving.manifests import GenerationVariantFigures

Answers = Sequence[Sequence[Any]]
"""The answer to each prompt: its tokens; of an encoder-decoder its text."""


class AnswerComparison(Protocol):
    """Measures the quality of answers."""

    def quality(self, model: str, answers: Answers, original: Answers) -> Quality:
        """Measure the answers of a model.

        Args:
            model: Its name, such as ``onnx.int8``; what is served has the name of the same model in process.
            answers: Its answers to the labelled rows.
            original: The original's.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class ContinuationComparison:
    """Compares continuations, token for token.

    Attributes:
        prompts: The prompts.
        decode: Makes text of tokens.
    """

    prompts: Sequence[str]
    decode: Callable[[Sequence[int]], str]
    bundle: Bundle

    def quality(self, model: str, answers: Answers, original: Answers) -> Quality:
        """Compare answers with the original's, and add the bundle's figures of a variant."""
        found = compare_answers(self.prompts, answers, original, self.decode)
        kind, _, precision = model.partition(".")
        if kind == CONTINUOUS:
            return _with_bundle_figures(found, self.bundle, precision)
        return replace(found, perplexity=self.bundle.manifest.original.metrics.get(METRIC)) if model == ORIGINAL else found


@dataclass(frozen=True, kw_only=True)
class RewritingComparison:
    """Compares texts with the original's, and by the task's metric with the right ones."""

    task: RewritingTask
    rows: BenchmarkRows
    bundle: Bundle

    def quality(self, model: str, answers: Answers, original: Answers) -> Quality:
        """Compare answers with the original's and with the right ones, and add the bundle's figures of a variant."""
        texts, theirs = cast("Sequence[str]", answers), cast("Sequence[str]", original)
        (tensor,), right = self.task.served.inputs(), self.rows.references
        sources = [row[0] for row in self.rows.labelled]
        found = compare_answers(sources, texts, theirs, str, tensor=tensor.name, references=right)
        found = replace(found, **self._by_metric(model, texts, theirs))
        kind, _, precision = model.partition(".")
        return _with_bundle_figures(found, self.bundle, precision) if kind == CONTINUOUS else found

    def _by_metric(self, model: str, texts: Sequence[str], original: Sequence[str]) -> dict[str, Any]:
        name, figure, right = self.task.metric, self.task.main_metric, self.rows.references
        drop = None
        if model != ORIGINAL:
            lost, (low, high) = metric.bootstrapped_drop(name, figure, original, texts, right)
            drop = Estimate(value=lost, low=low, high=high)
        value, low, high = metric.bootstrapped(name, figure, texts, right)
        metrics = {key: value for key, value in metric.compute(name, texts, right).items() if math.isfinite(value)}
        return {"metrics": metrics, "main": Estimate(value=value, low=low, high=high), "drop": drop}


def answer_comparison(inputs: GenerationInputs) -> AnswerComparison:
    """Return how the answers of a model are compared."""
    task, bundle = inputs.subject.task, inputs.bundle
    if isinstance(task, RewritingTask):
        return RewritingComparison(task=task, rows=inputs.rows, bundle=bundle)
    prompts = [row[0] for row in inputs.rows.labelled]
    return ContinuationComparison(prompts=prompts, decode=inputs.subject.texts.decode, bundle=bundle)


def compare_answers(
    prompts: Sequence[str],
    answers: Answers,
    original: Answers,
    decode: Callable[[Any], str],
    *,
    tensor: str = "text_input",
    references: Sequence[Any] = (),
) -> Quality:
    """Compare answers with the original's.

    Args:
        prompts: The prompts.
        answers: The answers to them.
        original: The original's answers.
        decode: Makes text of an answer.
        tensor: Name of the tensor of the prompts.
        references: The right answers; none where there are no right ones.
    """
    shares = [_same(mine, theirs) for mine, theirs in zip(answers, original, strict=True)]
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
                texts={tensor: prompts[row]},
                reference=references[row] if references else "",
                original=decode(original[row]),
                answer=decode(answers[row]),
                difference=1 - share,
            )
            for share, row in changed[:SHOWN]
        ],
    )


def _same(answer: Sequence[Any], original: Sequence[Any]) -> float:
    """Return the share of the longer answer before the first token, or character, that differs."""
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(answer, original, strict=False)))
    longer = max(len(answer), len(original))
    return same / longer if longer else 1.0


def _with_bundle_figures(quality: Quality, bundle: Bundle, precision: str) -> Quality:
    """Add what the bundle's verification found for a variant."""
    figures = bundle.variant(precision).figures
    assert isinstance(figures, GenerationVariantFigures)
    perplexity = figures.metrics.get(METRIC)
    increase = None if perplexity is None or figures.metric_drop is None else figures.metric_drop / 100
    return replace(quality, perplexity=perplexity, perplexity_increase=increase, next_token_agreement=figures.next_token_agreement)
