"""Figures of an encoder-decoder's variant, and the gates that they must pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from export import metric
from export.generation.decoder_gates import GenerationFigures, GenerationLimits, generation_gates
from export.verify import drop_gate
from serving.manifests import VariantGate


@dataclass(frozen=True, kw_only=True)
class TextMetric:
    """A metric of generated texts.

    Attributes:
        name: Folder in ``export/metrics``.
        figure: The figure of which higher is better.
    """

    name: str
    figure: str


@dataclass(frozen=True, kw_only=True)
class BeamComparison:
    """How a variant's answers by beam search compare with those of ``transformers``.

    Attributes:
        answers: Number of answers.
        equal: Number of answers whose tokens are all equal.
        ties: Number of answers that count as equal because the original scores both alike.
    """

    answers: int
    equal: int
    ties: int


@dataclass(frozen=True, kw_only=True)
class TextComparison:
    """How the texts of a variant compare with those of the original, by the right texts.

    Attributes:
        metric: The metric.
        original: The figure of the original, 0 to 1.
        variant: The figure of the variant.
        drop: By how much the variant's is lower, in points (hundredths).
        drop_interval: 95 % interval of the drop, by a paired bootstrap over the rows.
    """

    metric: TextMetric
    original: float
    variant: float
    drop: float
    drop_interval: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class EncoderDecoderLimits:
    """The limits that the user may set.

    Attributes:
        tokens: Limits of the next tokens.
        max_metric_drop: Points (hundredths) of the main metric that a variant may lose.
    """

    tokens: GenerationLimits = field(default_factory=GenerationLimits)
    max_metric_drop: float = 0.5


def compare_texts(
    texts: TextMetric, original: Sequence[str], variant: Sequence[str], references: Sequence[Sequence[str]]
) -> TextComparison:
    """Measure both against the right texts of the same rows."""
    figures = [metric.compute(texts.name, found, references)[texts.figure] for found in (original, variant)]
    drop, (low, high) = metric.bootstrapped_drop(texts.name, texts.figure, original, variant, references)
    return TextComparison(
        metric=texts, original=figures[0], variant=figures[1], drop=100 * drop, drop_interval=(100 * low, 100 * high)
    )


def encoder_decoder_gates(
    precision: str,
    figures: GenerationFigures,
    beams: BeamComparison,
    texts: TextComparison,
    limits: EncoderDecoderLimits,
    *,
    largest_logit: float,
) -> tuple[VariantGate, ...]:
    """Decide whether a variant is good enough.

    Args:
        precision: Precision of the variant.
        figures: How its next tokens and greedy answers compare with the original's.
        beams: How its answers by beam search do.
        texts: How its texts do.
        limits: The limits.
        largest_logit: Largest logit of the original.

    Returns:
        The gates. fp32 must give the tokens of ``transformers``, by beam search too.
    """
    gates = generation_gates(precision, figures, limits.tokens, largest_logit=largest_logit)
    drop = drop_gate(texts.metric.figure, texts.drop, texts.drop_interval, limits.max_metric_drop)
    return (*gates, *([_beam_gate(beams)] if precision == "fp32" else []), drop)


def _beam_gate(beams: BeamComparison) -> VariantGate:
    tied = f", {beams.ties} more up to a tie of two answers" if beams.ties else ""
    return VariantGate(
        name="beam_answers",
        limit=beams.answers,
        value=beams.equal + beams.ties,
        interval=None,
        passed=beams.equal + beams.ties == beams.answers,
        message=f"{beams.equal} of {beams.answers} beam-search answers have the tokens of transformers' generate{tied}; all must",
    )
