"""What is compared between a graph and its original: the next token everywhere, and greedy answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from export.generation.original_decoder import OriginalDecoder
from export.generation.slotted_decoder import Logits, SlottedDecoder
from export.generation.token_comparison import GreedyComparison, compare_greedy, compare_tokens
from tests.export.generation.conftest import ExportedDecoder
from tests.helpers.decoders import POSITIONS, VOCABULARY, made_up_rows, make_decoder

ROWS = made_up_rows(7, longest=12, seed=2)


class Disturbed(SlottedDecoder):
    """Changes the logits of the first row of every step."""

    change: Callable[[Logits], None]

    def begin(self, prompts: Any) -> Logits:
        logits = super().begin(prompts)
        self.change(logits[0])
        return logits

    def advance(self, tokens: Any) -> Logits:
        logits = super().advance(tokens)
        self.change(logits[0])
        return logits


def disturbed(exported: Callable[[str], ExportedDecoder], change: Callable[[Logits], None]) -> Disturbed:
    decoder = Disturbed(exported("llama").path, rows=4, capacity=POSITIONS, threads=1)
    decoder.change = change
    return decoder


@pytest.mark.parametrize("slots", [1, 3, 16])
def test_losses_are_those_of_pytorch_whatever_runs_together(exported: Callable[[str], ExportedDecoder], slots: int) -> None:
    decoder = exported("llama")
    found = compare_tokens(decoder.original.logits, decoder.load(rows=slots), ROWS)
    for number, row in enumerate(ROWS):
        tokens = torch.tensor([row])
        with torch.inference_mode():
            wanted = torch.nn.functional.cross_entropy(decoder.model(tokens).logits[0, :-1], tokens[0, 1:], reduction="none")
        of_row = found.rows == number
        assert np.allclose(found.original_losses[of_row], wanted, atol=1e-4)
        assert np.allclose(found.losses[of_row], wanted, atol=1e-4)
    assert len(found.rows) == sum(len(row) - 1 for row in ROWS)
    assert found.agrees.all()


def test_nan_is_found_and_does_not_spread(exported: Callable[[str], ExportedDecoder]) -> None:
    def change(logits: Logits) -> None:
        logits[5] = np.nan

    found = compare_tokens(exported("llama").original.logits, disturbed(exported, change), ROWS)
    assert found.max_logit_difference is None
    assert 0 < np.isnan(found.losses).sum() < len(found.losses)
    assert not found.agrees[np.isnan(found.losses)].any()
    assert found.agrees[~np.isnan(found.losses)].all()


def test_another_token_does_not_agree(exported: Callable[[str], ExportedDecoder]) -> None:
    def change(logits: Logits) -> None:
        logits[logits.argmin()] = logits.max() + 1

    found = compare_tokens(exported("llama").original.logits, disturbed(exported, change), ROWS)
    assert found.max_logit_difference is not None
    assert found.max_logit_difference > 1
    assert 0 < (~found.agrees).sum() < len(found.agrees)
    assert not found.ties.any()


def test_two_equal_tokens_are_a_tie(exported: Callable[[str], ExportedDecoder]) -> None:
    """Two tokens of the same weights have the same logits; which of them comes first is chance."""
    model = make_decoder("llama")
    best = int(OriginalDecoder(model).logits([5, 6, 7])[-1].argmax())
    twin = VOCABULARY - 1 if best != VOCABULARY - 1 else VOCABULARY - 2
    with torch.no_grad():
        model.get_output_embeddings().weight[twin] = model.get_output_embeddings().weight[best]
    original = OriginalDecoder(model)
    answers = [[best], [twin], [(twin - 3) % VOCABULARY]]
    found = compare_greedy(original.logits, [[5, 6, 7]] * 3, [[best]] * 3, answers)
    assert found == GreedyComparison(answers=3, tokens=3, equal=1, ties=1)


def test_the_original_uses_the_attention_that_defines_it() -> None:
    """The library's default ignores Gemma 2's soft cap. The model's own choice is left as it was."""
    model = make_decoder("gemma2", attn_logit_softcapping=1.0)
    assert model.config._attn_implementation == "sdpa"
    found = OriginalDecoder(model).logits(ROWS[0])
    with torch.inference_mode():
        default = model(torch.tensor([ROWS[0]])).logits[0].numpy()
    assert np.abs(found - default).max() > 1e-2
    assert model.config._attn_implementation == "sdpa"


def test_greedy_takes_no_option_of_the_checkpoint() -> None:
    model = make_decoder("llama")
    plain = OriginalDecoder(model).greedy([5, 6, 7], new_tokens=8)
    model.generation_config.update(repetition_penalty=9.0, do_sample=True, max_length=2)
    assert OriginalDecoder(model).greedy([5, 6, 7], new_tokens=8) == plain
    assert len(plain) == 8


def test_answers_end(exported: Callable[[str], ExportedDecoder]) -> None:
    decoder = exported("llama")
    prompts = [row[:2] for row in ROWS]
    endless = decoder.load(rows=7).greedy(prompts, new_tokens=6)
    end = {endless[0][2], endless[1][4]}
    cut = [answer[: next((place + 1 for place, token in enumerate(answer) if token in end), 6)] for answer in endless]
    assert decoder.load(rows=7).greedy(prompts, new_tokens=6, end=end) == cut
    assert len({len(answer) for answer in cut}) > 1
    assert [decoder.original.greedy(prompt, new_tokens=6, end=sorted(end)) for prompt in prompts] == cut
