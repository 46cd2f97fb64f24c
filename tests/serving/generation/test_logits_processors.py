"""Logits processors, held against those of transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import GenerationConfig
from transformers.generation.logits_process import LogitsProcessorList

from serving.runtime.generation.generation_options import GenerationOptions
from serving.runtime.generation.logits_processors import logits_processors

VOCABULARY = 40
CASES = [
    {},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.7},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 3},
    {"encoder_no_repeat_ngram_size": 2},
    {"encoder_no_repeat_ngram_size": 4},
    {"bad_words_ids": [[3], [1, 2], [1, 1, 1], [2], [0, 1, 2, 3, 4, 5, 6, 7]]},
    {"bad_words_ids": [[1, 2], [1, 3], [2, 2], [2, 1, 3], [3, 1, 3], [2, 1, 1], [1, 1, 2, 3]]},
    {"min_length": 9, "eos_token_id": [2, 7]},
    {"min_new_tokens": 4, "eos_token_id": 2},
    {"min_new_tokens": 0, "min_length": 30, "eos_token_id": 2},
    {"min_length": 30},
    {"forced_bos_token_id": 5},
    {"forced_eos_token_id": 2},
    {"forced_eos_token_id": [2, 7], "min_length": 30, "eos_token_id": 2},
    {"suppress_tokens": [1, 3, 5]},
    {"begin_suppress_tokens": [1, 3, 5]},
    {"begin_suppress_tokens": [1, 3, 5], "forced_bos_token_id": 4},
    {
        "repetition_penalty": 1.7,
        "no_repeat_ngram_size": 2,
        "encoder_no_repeat_ngram_size": 3,
        "bad_words_ids": [[8], [1, 1]],
        "min_new_tokens": 3,
        "forced_bos_token_id": 5,
        "forced_eos_token_id": 2,
        "suppress_tokens": [6],
        "begin_suppress_tokens": [9],
        "eos_token_id": [2],
    },
]


def transformers_processors(
    options: dict[str, object], *, prompt_length: int, max_length: int, encoder_ids: np.ndarray
) -> LogitsProcessorList:
    """The list that generate builds, without a model."""
    from transformers import GenerationMixin

    config = GenerationConfig(**options)
    config._eos_token_tensor = None if config.eos_token_id is None else torch.tensor(config.eos_token_id).reshape(-1)
    if config.min_new_tokens is not None:  # as generate does before it builds the list
        config.min_length = config.min_new_tokens + prompt_length
    config.max_length = max_length
    return GenerationMixin()._get_logits_processor(
        config, input_ids_seq_length=prompt_length, encoder_input_ids=torch.tensor(encoder_ids)[None], device="cpu"
    )


@pytest.mark.parametrize("prompt_length", [1, 4])
@pytest.mark.parametrize("options", CASES, ids=lambda options: "-".join(options) or "none")
def test_the_processors_equal_those_of_transformers(options: dict[str, object], prompt_length: int) -> None:
    generator = np.random.default_rng(7)
    encoder_ids = generator.integers(1, 10, prompt_length + 12)
    max_length = 14
    theirs = transformers_processors(options, prompt_length=prompt_length, max_length=max_length, encoder_ids=encoder_ids)
    given = GenerationOptions().with_parameters(options, vocab_size=VOCABULARY)
    ours = logits_processors(given, prompt_length=prompt_length, max_length=max_length, encoder_ids=encoder_ids)
    changed = 0
    for length in range(prompt_length, max_length):
        for tokens in (4, 10):
            sequences = generator.integers(1, tokens, (3, length))
            scores = generator.normal(0, 3, (3, VOCABULARY)).astype(np.float32)
            expected = theirs(torch.tensor(sequences), torch.tensor(scores)).numpy()
            found = scores.copy()
            for processor in ours:
                processor(sequences, found)
            np.testing.assert_array_equal(found, expected)
            changed += not np.array_equal(found, scores)
    without_effect = not options or options.keys() == {"min_length"} or options.get("min_new_tokens") == 0
    first_token_only = "forced_bos_token_id" in options and len(options) == 1 and prompt_length > 1
    assert (changed == 0) == (without_effect or first_token_only), "the case tests something"
