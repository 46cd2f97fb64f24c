"""The figures of a variant, and whether its gates hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from export.generation.decoder_gates import (
    GenerationFigures,
    GenerationLimits,
    generation_figures,
    generation_gates,
    perplexity_increase,
    token_agreement,
)
from export.generation.token_comparison import GreedyComparison, TokenComparison

GREEDY = GreedyComparison(answers=4, tokens=100, equal=4, ties=0)
ROWS, TOKENS = 40, 25


def compared(increase: float = 0.0, wrong: int = 0, noise: float = 0.0, **changed: Any) -> TokenComparison:
    """Forty rows of 25 tokens: losses that are larger by ``increase``, tokens of which the first ``wrong`` rows' first differ."""
    numbers = np.random.default_rng(0)
    rows = np.repeat(np.arange(ROWS), TOKENS)
    losses = numbers.uniform(1, 3, ROWS * TOKENS)
    comparison = TokenComparison(
        rows=rows,
        original_losses=losses,
        losses=losses + increase + noise * numbers.normal(size=losses.size),
        agrees=~((np.arange(losses.size) % TOKENS == 0) & (rows < wrong)),
        ties=np.zeros(losses.size, dtype=np.bool_),
        max_logit_difference=1e-5,
        largest_logit=20.0,
    )
    return replace(comparison, **changed)


def figures(comparison: TokenComparison, greedy: GreedyComparison = GREEDY, *, alone: int = 4) -> GenerationFigures:
    return generation_figures(comparison, greedy, answers_alone_equal=alone)


def failed(precision: str, found: GenerationFigures, limits: GenerationLimits | None = None) -> list[str]:
    gates = generation_gates(precision, found, limits or GenerationLimits(), largest_logit=20.0)
    return [gate.message for gate in gates if not gate.passed]


def test_the_perplexity_increases_by_the_exponential_of_the_mean_difference() -> None:
    found, (low, high) = perplexity_increase(compared(increase=0.01))
    assert found == pytest.approx(np.expm1(0.01))
    assert low == pytest.approx(high) == pytest.approx(found), "no row differs from another"
    found, (low, high) = perplexity_increase(compared(increase=0.01, noise=0.3))
    assert low < found < high
    independent = 2 * 1.96 * 0.3 / (ROWS * TOKENS) ** 0.5
    assert high - low == pytest.approx(independent, rel=0.25)


def test_tokens_of_one_row_count_as_one_observation() -> None:
    """Rows that differ as wholes make the interval wider than that of as many tokens."""
    shifted = compared()
    shifted = replace(shifted, losses=shifted.losses + np.repeat(np.where(np.arange(ROWS) % 2, 0.2, 0.0), TOKENS))
    low, high = perplexity_increase(shifted)[1]
    assert high - low > 0.04


def test_the_agreement_is_a_share_of_the_tokens() -> None:
    share, (low, high) = token_agreement(compared(wrong=20))
    assert share == 1 - 20 / (ROWS * TOKENS)
    assert 0.97 < low < share < high < 0.99
    assert token_agreement(compared())[1] == pytest.approx((0.9963, 1), abs=1e-4), "exact: 1000 tokens agree"


def test_fp32_passes_if_it_is_the_original() -> None:
    assert failed("fp32", figures(compared())) == []


@pytest.mark.parametrize(
    ("comparison", "greedy", "message"),
    [
        (compared(increase=0.002), GREEDY, "the perplexity increases by 0.20% (95 % interval 0.20% to 0.20%), the limit is 0.10%"),
        (compared(wrong=1), GREEDY, "99.90% of the next tokens agree with the original's "
         "(95 % interval 99.70% to 100.00%), the minimum is 100.00%"),
        (compared(max_logit_difference=0.03), GREEDY, "logits differ by up to 0.03, the limit is 0.02"),
        (compared(max_logit_difference=None), GREEDY, "logits cannot be compared, the limit is 0.02"),
        (
            compared(),
            replace(GREEDY, equal=2, ties=1),
            "2 of 4 greedy answers have the tokens of transformers' generate, 1 more up to a tie of two tokens; all must",
        ),
    ],
)  # fmt: skip
def test_fp32_fails_if_anything_differs(comparison: TokenComparison, greedy: GreedyComparison, message: str) -> None:
    assert failed("fp32", figures(comparison, greedy)) == [message]


def test_ties_count_as_equal() -> None:
    assert failed("fp32", figures(compared(), replace(GREEDY, equal=3, ties=1))) == []


def test_int8_passes_within_its_limits() -> None:
    found = figures(compared(increase=0.02, noise=0.1, wrong=30), replace(GREEDY, equal=0))
    assert failed("int8", found) == [], "other answers than the original's are expected"
    assert len(failed("fp16", found)) == 2
    assert len(failed("int8", found, GenerationLimits(max_perplexity_increase=0.01, min_token_agreement=0.98))) == 2


def test_the_whole_interval_must_keep_the_limit() -> None:
    found = figures(compared(increase=0.045, noise=0.3))
    assert found.perplexity_increase is not None
    assert found.perplexity_increase < 0.05
    assert len(failed("int8", found)) == 1


def test_int8_answers_must_not_depend_on_other_rows() -> None:
    assert failed("int8", figures(compared(), alone=3)) == [
        "3 of 4 greedy answers are the same alone and among other rows; all must"
    ]


def test_limits_of_the_user_do_not_apply_to_fp32() -> None:
    loose = GenerationLimits(max_perplexity_increase=1, min_token_agreement=0)
    assert len(failed("fp32", figures(compared(increase=0.1, wrong=9)), loose)) == 2


def test_nan_fails() -> None:
    losses = compared().losses.copy()
    losses[3] = np.nan
    found = figures(compared(losses=losses, max_logit_difference=None))
    assert (found.perplexity, found.perplexity_increase) == (None, None)
    assert failed("int8", found) == ["the perplexity cannot be computed: a logit is NaN or infinite"]


def test_one_row_is_enough_for_figures() -> None:
    one = compared(increase=0.01)
    one = replace(one, rows=np.zeros_like(one.rows))
    found, interval = perplexity_increase(one)
    assert interval == pytest.approx((found, found))
