"""Compare the graphs of an encoder-decoder with the original, token by token and answer by answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from export.generation.encoder_decoder_gates import BeamComparison
from export.generation.encoder_decoder_rows import EncoderDecoderRows
from export.generation.original_encoder_decoder import OriginalEncoderDecoder
from export.generation.served_encoder_decoder import ServedEncoderDecoder
from export.generation.slotted_decoder import Logits
from export.generation.token_comparison import TIED, GreedyComparison, TokenComparison, compare_greedy, compare_next, joined
from export.long_steps import tracked


def compare_next_tokens(
    original: OriginalEncoderDecoder, served: ServedEncoderDecoder, rows: EncoderDecoderRows
) -> TokenComparison:
    """Ask both about each token of the targets; the variant gets them token by token, many rows together."""
    found = served.logits(rows.sources, rows.targets)
    triples = [*zip(rows.sources, rows.targets, found, strict=True)]
    return joined(
        [
            compare_next(np.full(len(target), row), np.array(target), original.logits(source, target), logits)
            for row, (source, target, logits) in enumerate(tracked(triples, "tokens of PyTorch"))
        ]
    )


def compare_greedy_answers(
    original: OriginalEncoderDecoder,
    sources: Sequence[Sequence[int]],
    expected: Sequence[Sequence[int]],
    found: Sequence[Sequence[int]],
) -> GreedyComparison:
    """Compare greedy answers row by row, because each has a source of its own."""
    each = []
    for source, wanted, answer in zip(sources, expected, found, strict=True):

        def following(tokens: Sequence[int], source: Sequence[int] = source) -> Logits:
            return original.logits(source, [*tokens, 0])  # the last token is not read

        each.append(compare_greedy(following, [[]], [wanted], [answer]))
    return GreedyComparison(
        answers=len(each),
        tokens=sum(one.tokens for one in each),
        equal=sum(one.equal for one in each),
        ties=sum(one.ties for one in each),
    )


def compare_beam_answers(
    original: OriginalEncoderDecoder,
    sources: Sequence[Sequence[int]],
    expected: Sequence[Sequence[int]],
    found: Sequence[Sequence[int]],
    *,
    length_penalty: float,
) -> BeamComparison:
    """Compare answers by beam search; those that the original scores alike are tied."""
    equal = ties = 0
    for source, wanted, answer in zip(sources, expected, found, strict=True):
        if list(wanted) == list(answer):
            equal += 1
            continue
        scores = [original.score(source, tokens, length_penalty=length_penalty) for tokens in (wanted, answer)]
        ties += abs(scores[0] - scores[1]) <= TIED * max(1.0, *map(abs, scores))
    return BeamComparison(answers=len(found), equal=equal, ties=ties)
