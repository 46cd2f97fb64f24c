"""Figures of a decoder's variant from its comparison with the original, and the gates that they must pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from export.generation.token_comparison import GreedyComparison, TokenComparison
from export.metric import CONFIDENCE, RESAMPLES, ROUNDING, share_interval
from export.verify import MAX_LOGIT_DIFFERENCE
from serving.manifests import VariantGate

MAX_PERPLEXITY_INCREASE = {"fp32": 0.001, "fp16": 0.01, "int8": 0.05}
"""Allowed relative increase of the perplexity by precision.

A language model of the next size down differs by more than 10 %; int8 with a scale per row costs 0.3 to 3 %. fp32 changes the order
of sums only, and fp16 rounds in the fourth digit.
"""
MIN_TOKEN_AGREEMENT = {"fp32": 1.0, "fp16": 0.98, "int8": 0.8}
"""Required share of next tokens that equal the original's by precision.

Small models choose between near-equal tokens most often, and so does any model on texts that it does not expect: int8 of SmolLM2
(135 million) agrees in 83 % on film reviews, where its perplexity rises from 167 to 172.
"""


@dataclass(frozen=True, kw_only=True)
class GenerationLimits:
    """The limits that the user may set. fp32 always has its own.

    Attributes:
        max_perplexity_increase: Allowed relative increase of the perplexity; None: as in :data:`MAX_PERPLEXITY_INCREASE`.
        min_token_agreement: Required share of equal next tokens; None: as in :data:`MIN_TOKEN_AGREEMENT`.
    """

    max_perplexity_increase: float | None = None
    min_token_agreement: float | None = None


@dataclass(frozen=True, kw_only=True)
class GenerationFigures:
    """How a variant compares with the original.

    Attributes:
        perplexity: Perplexity of the rows; None if a logit is NaN or infinite.
        perplexity_increase: By how much it is larger than the original's, relatively; None as before.
        perplexity_interval: 95 % interval of the increase, by a paired bootstrap over the rows; None as before.
        token_agreement: Share of next tokens that equal the original's.
        token_agreement_interval: 95 % interval of the share, by a bootstrap over the rows.
        ties: Number of next tokens that count as equal because the original's logits are tied.
        max_logit_difference: Largest difference of two logits; None if one is NaN or infinite.
        greedy: Comparison of the greedy answers.
        answers_alone_equal: Number of greedy answers that are the same alone and among the others.
    """

    perplexity: float | None
    perplexity_increase: float | None
    perplexity_interval: tuple[float, float] | None
    token_agreement: float
    token_agreement_interval: tuple[float, float]
    ties: int
    max_logit_difference: float | None
    greedy: GreedyComparison
    answers_alone_equal: int


def generation_figures(comparison: TokenComparison, greedy: GreedyComparison, *, answers_alone_equal: int) -> GenerationFigures:
    """Compute the figures of a variant.

    Args:
        comparison: Comparison of the next tokens.
        greedy: Comparison of the greedy answers.
        answers_alone_equal: Number of greedy answers that are the same alone and among the others.

    Returns:
        The figures.
    """
    finite = bool(np.isfinite(comparison.losses).all())
    increase, increase_interval = perplexity_increase(comparison) if finite else (None, None)
    agreement, agreement_interval = token_agreement(comparison)
    return GenerationFigures(
        perplexity=perplexity(comparison.losses) if finite else None,
        perplexity_increase=increase,
        perplexity_interval=increase_interval,
        token_agreement=agreement,
        token_agreement_interval=agreement_interval,
        ties=int(comparison.ties.sum()),
        max_logit_difference=comparison.max_logit_difference,
        greedy=greedy,
        answers_alone_equal=answers_alone_equal,
    )


def perplexity(losses: npt.NDArray[np.float64]) -> float:
    """Return the perplexity of tokens with these negative log-likelihoods."""
    return float(np.exp(losses.mean()))


def perplexity_increase(comparison: TokenComparison) -> tuple[float, tuple[float, float]]:
    """Compute by how much the variant's perplexity is larger, relatively, with a 95 % interval.

    Args:
        comparison: The comparison; all losses are finite.

    Returns:
        The increase (0.01: 1 %) and its bounds.
    """
    found, (low, high) = _ratio(comparison.rows, comparison.losses - comparison.original_losses)
    return float(np.expm1(found)), (float(np.expm1(low)), float(np.expm1(high)))


def token_agreement(comparison: TokenComparison) -> tuple[float, tuple[float, float]]:
    """Compute the share of next tokens that agree, with a 95 % interval.

    Args:
        comparison: The comparison.

    Returns:
        The share and its bounds. If all rows have one share, the interval is that of independent tokens.
    """
    found, (low, high) = _ratio(comparison.rows, comparison.agrees.astype(np.float64))
    if high - low < ROUNDING:
        low, high = share_interval(int(comparison.agrees.sum()), len(comparison.agrees))
    return found, (low, high)


def _ratio(rows: npt.NDArray[np.int64], values: npt.NDArray[np.float64]) -> tuple[float, tuple[float, float]]:
    """Return the mean of values, one per token, and its 95 % interval by a bootstrap over the rows that the tokens belong to."""
    from scipy.stats import bootstrap

    _, places = np.unique(rows, return_inverse=True)
    sums, counts = np.bincount(places, weights=values), np.bincount(places)
    mean = float(sums.sum() / counts.sum())
    if len(sums) < 2 or np.ptp(sums / counts) == 0:  # nothing varies between rows
        return mean, (mean, mean)
    found = bootstrap(
        (sums, counts),
        lambda some, tokens, axis: some.sum(axis=axis) / tokens.sum(axis=axis),
        paired=True,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return mean, (float(found.low), float(found.high))


def generation_gates(
    precision: str, figures: GenerationFigures, limits: GenerationLimits, *, largest_logit: float
) -> tuple[VariantGate, ...]:
    """Decide whether a variant is good enough.

    A perplexity or an agreement passes if its whole interval keeps the limit: there are thousands of tokens, so the interval is
    narrow, and one that is wide is no evidence. fp32 must give the tokens of ``transformers``; int8 must give the same answer
    alone and among other rows.

    Args:
        precision: Precision of the variant.
        figures: Its figures.
        limits: The limits.
        largest_logit: Largest logit of the original.

    Returns:
        The gates.
    """
    gates = [_perplexity_gate(figures, _limit(precision, limits.max_perplexity_increase, MAX_PERPLEXITY_INCREASE))]
    gates.append(_agreement_gate(precision, figures, _limit(precision, limits.min_token_agreement, MIN_TOKEN_AGREEMENT)))
    if precision == "fp32":
        gates += [_logit_gate(figures, MAX_LOGIT_DIFFERENCE * max(1.0, largest_logit)), _greedy_gate(figures)]
    if precision == "int8":
        gates.append(_alone_gate(figures))
    return tuple(gates)


def _limit(precision: str, asked: float | None, defaults: dict[str, float]) -> float:
    return defaults[precision] if precision == "fp32" or asked is None else asked


def _perplexity_gate(figures: GenerationFigures, limit: float) -> VariantGate:
    increase, interval = figures.perplexity_increase, figures.perplexity_interval
    if increase is None or interval is None:
        message = "the perplexity cannot be computed: a logit is NaN or infinite"
    else:
        message = (
            f"the perplexity increases by {increase:.2%} (95 % interval {interval[0]:.2%} to {interval[1]:.2%}), "
            f"the limit is {limit:.2%}"
        )
    return VariantGate(
        name="perplexity_increase",
        limit=limit,
        value=increase,
        interval=interval,
        passed=interval is not None and interval[1] <= limit,
        message=message,
    )


def _agreement_gate(precision: str, figures: GenerationFigures, limit: float) -> VariantGate:
    share, (low, high) = figures.token_agreement, figures.token_agreement_interval
    return VariantGate(
        name="token_agreement",
        limit=limit,
        value=share,
        interval=(low, high),
        passed=share >= limit if precision == "fp32" else low >= limit,  # fp32: every token of the rows
        message=f"{share:.2%} of the next tokens agree with the original's (95 % interval {low:.2%} to {high:.2%}), "
        f"the minimum is {limit:.2%}",
    )


def _logit_gate(figures: GenerationFigures, limit: float) -> VariantGate:
    difference = figures.max_logit_difference
    found = "cannot be compared" if difference is None else f"differ by up to {difference:.2g}"
    return VariantGate(
        name="max_logit_difference",
        limit=limit,
        value=difference,
        interval=None,
        passed=difference is not None and difference <= limit,
        message=f"logits {found}, the limit is {limit:.2g}",
    )


def _greedy_gate(figures: GenerationFigures) -> VariantGate:
    greedy = figures.greedy
    tied = f", {greedy.ties} more up to a tie of two tokens" if greedy.ties else ""
    return VariantGate(
        name="greedy_answers",
        limit=greedy.answers,
        value=greedy.equal + greedy.ties,
        interval=None,
        passed=greedy.equal + greedy.ties == greedy.answers,
        message=f"{greedy.equal} of {greedy.answers} greedy answers have the tokens of transformers' generate{tied}; all must",
    )


def _alone_gate(figures: GenerationFigures) -> VariantGate:
    equal, answers = figures.answers_alone_equal, figures.greedy.answers
    return VariantGate(
        name="answers_alone",
        limit=answers,
        value=equal,
        interval=None,
        passed=equal == answers,
        message=f"{equal} of {answers} greedy answers are the same alone and among other rows; all must",
    )
