"""Compare a decoder's graph with its original, token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from export.generation.slotted_decoder import Logits, SlottedDecoder
from export.long_steps import tracked

TIED = 1e-4
"""Tokens whose logits differ by less are tied, multiplied by the largest logit if that is above 1.

It is ten times what other orders of fp32 sums change, and a tenth of the limit of the logit difference.
"""

OriginalLogits = Callable[[Sequence[int]], Logits]
"""From the tokens of a row to the logits ``[tokens, vocabulary]`` that follow each of them."""


@dataclass(frozen=True, kw_only=True)
class TokenComparison:
    """What a variant and the original say about the next token, at each token of some rows but the last.

    Attributes:
        rows: INT64 ``[tokens]``, the row that each token belongs to.
        original_losses: FLOAT64 ``[tokens]``, negative log-likelihood of the token that follows, by the original.
        losses: The same by the variant; NaN if its logits are NaN or infinite.
        agrees: BOOL ``[tokens]``, whether both have the same most probable token; tied tokens are the same.
        ties: BOOL ``[tokens]``, which of them agree only because of a tie.
        max_logit_difference: Largest difference of two logits; None if one is NaN or infinite.
        largest_logit: Largest logit of the original.
    """

    rows: npt.NDArray[np.int64]
    original_losses: npt.NDArray[np.float64]
    losses: npt.NDArray[np.float64]
    agrees: npt.NDArray[np.bool_]
    ties: npt.NDArray[np.bool_]
    max_logit_difference: float | None
    largest_logit: float


@dataclass(frozen=True, kw_only=True)
class GreedyComparison:
    """How a variant's greedy answers compare with those of ``transformers``.

    Attributes:
        answers: Number of answers.
        tokens: Number of tokens in the original's answers.
        equal: Number of answers whose tokens are all equal.
        ties: Number of answers that count as equal because the original's logits of the first different tokens are tied.
    """

    answers: int
    tokens: int
    equal: int
    ties: int


def compare_tokens(
    original: OriginalLogits, decoder: SlottedDecoder, rows: Sequence[Sequence[int]], *, title: str = "comparing tokens"
) -> TokenComparison:
    """Ask both about the next token everywhere in some rows. The variant gets the rows token by token, as it is served.

    Args:
        original: The original.
        decoder: The variant. As many rows as it has slots run together.
        rows: Tokens of each row, at least two.
        title: What the progress says.

    Returns:
        The comparison.
    """
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))  # those that end first are the last of their batch
    found: list[TokenComparison] = []
    batches = [order[start : start + decoder.rows] for start in range(0, len(order), decoder.rows)]
    wanted: list[Logits] = []
    steps = [(batch, place) for batch in batches for place in range(len(rows[batch[0]]) - 1)]
    for batch, place in tracked(steps, title):
        if place == 0:
            wanted = [original(rows[row][:-1]) for row in batch]
        running = [slot for slot, row in enumerate(batch) if len(rows[row]) > place + 1]
        tokens = [rows[batch[slot]][place] for slot in running]
        logits = decoder.begin([[token] for token in tokens]) if place == 0 else decoder.advance(np.array(tokens))
        following = np.array([rows[batch[slot]][place + 1] for slot in running])
        expected = np.stack([wanted[slot][place] for slot in running])
        found.append(compare_next(np.array([batch[slot] for slot in running]), following, expected, logits))
    return joined(found)


def joined(parts: Sequence[TokenComparison]) -> TokenComparison:
    """Join the comparisons of parts of the tokens."""
    differences = [part.max_logit_difference for part in parts]
    return TokenComparison(
        rows=np.concatenate([part.rows for part in parts]),
        original_losses=np.concatenate([part.original_losses for part in parts]),
        losses=np.concatenate([part.losses for part in parts]),
        agrees=np.concatenate([part.agrees for part in parts]),
        ties=np.concatenate([part.ties for part in parts]),
        max_logit_difference=None if None in differences else max(filter(None, differences), default=0.0),
        largest_logit=max(part.largest_logit for part in parts),
    )


def compare_next(
    rows: npt.NDArray[np.int64], following: npt.NDArray[np.int64], original: Logits, variant: Logits
) -> TokenComparison:
    """Compare the logits of some tokens.

    Args:
        rows: INT64 ``[tokens]``, the row that each belongs to.
        following: INT64 ``[tokens]``, the tokens that follow them.
        original: ``[tokens, vocabulary]``.
        variant: As ``original``.

    Returns:
        The comparison.
    """
    each = np.arange(len(rows))
    finite = np.logical_and.reduce(np.isfinite(variant), axis=-1)
    best, chosen = original.argmax(axis=-1), variant.argmax(axis=-1)
    tied = original[each, best] - original[each, chosen] <= tie_margin(original)
    return TokenComparison(
        rows=rows,
        original_losses=_losses(original, following),
        losses=np.where(finite, _losses(np.where(finite[:, None], variant, 0), following), np.nan),
        agrees=finite & ((best == chosen) | tied),
        ties=finite & (best != chosen) & tied,
        max_logit_difference=float(np.abs(variant.astype(np.float64) - original).max()) if finite.all() else None,
        largest_logit=float(np.abs(original).max()),
    )


def _losses(logits: Logits, following: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    from scipy.special import log_softmax

    found: npt.NDArray[np.float64] = -log_softmax(logits.astype(np.float64), axis=-1)[np.arange(len(logits)), following]
    return found


def tie_margin(logits: Logits) -> npt.NDArray[np.float32]:
    """Return by how much two logits of each row may differ and be tied.

    Args:
        logits: ``[rows, vocabulary]``.

    Returns:
        FLOAT32 ``[rows]``.
    """
    margin: npt.NDArray[np.float32] = TIED * np.maximum(1, np.abs(logits).max(axis=-1))
    return margin


def compare_greedy(
    original: OriginalLogits,
    prompts: Sequence[Sequence[int]],
    expected: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
) -> GreedyComparison:
    """Compare the greedy answers of a variant with those of the original.

    Args:
        original: The original.
        prompts: Tokens of each prompt.
        expected: The original's answers.
        answers: The variant's answers.

    Returns:
        The comparison.
    """
    equal = ties = 0
    for prompt, wanted, found in zip(prompts, expected, answers, strict=True):
        if list(wanted) == list(found):
            equal += 1
            continue
        first = next((place for place, pair in enumerate(zip(wanted, found, strict=False)) if pair[0] != pair[1]), None)
        if first is None:  # one answer is the beginning of the other
            continue
        logits = original([*prompt, *wanted[:first]])[-1]
        ties += bool(abs(logits[wanted[first]] - logits[found[first]]) <= tie_margin(logits[None])[0])
    return GreedyComparison(answers=len(answers), tokens=sum(map(len, expected)), equal=equal, ties=ties)
