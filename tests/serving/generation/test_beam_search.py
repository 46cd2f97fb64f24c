"""Beam search answers token for token as transformers, with every option that changes it."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from serving.runtime.generation.beam_search import BeamSearch
from serving.runtime.generation.decoding import LENGTH, STOP, AllForbiddenError, NotFiniteError, Positions
from serving.runtime.generation.generation_options import GenerationOptions
from serving.runtime.generation.top_candidates import partial_sort, ranked_candidates
from serving.runtime.types import Floats
from tests.helpers.decoding_loop import decode
from tests.helpers.encoder_decoders import SOURCES, VOCABULARY, tiny_encoder_decoder

EOS = 2
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two beams": {"num_beams": 2},
    "seven beams": {"num_beams": 7, "num_return_sequences": 7},
    "no end": {"eos_token_id": []},
    "several ends": {"eos_token_id": [EOS, *range(20, 60)], "num_return_sequences": 3},
    "early": {"early_stopping": True, "eos_token_id": [EOS, *range(20, 50)], "num_return_sequences": 4},
    "never early": {"early_stopping": "never", "eos_token_id": [EOS, *range(20, 50)], "length_penalty": 2.0},
    "never early, short": {"early_stopping": "never", "eos_token_id": [EOS, *range(20, 50)], "length_penalty": -1.0},
    "long": {"length_penalty": 3.0, "eos_token_id": [EOS, 30, 31, 32]},
    "short": {"length_penalty": -2.0, "eos_token_id": [EOS, 30, 31, 32], "num_return_sequences": 2},
    "no penalty": {"length_penalty": 0.0, "eos_token_id": list(range(2, 40))},
    "forced": {"forced_bos_token_id": 11, "forced_eos_token_id": [EOS]},
    "minimum": {"min_length": 9, "eos_token_id": list(range(2, 90))},
    "minimum of new tokens": {"min_new_tokens": 6, "eos_token_id": list(range(2, 90)), "early_stopping": True},
    "no n-gram twice": {"no_repeat_ngram_size": 2, "eos_token_id": [EOS]},
    "no n-gram of the source": {"encoder_no_repeat_ngram_size": 1},
    "bad words": {"bad_words_ids": [[5], [7, 9], [11, 12, 13], *([token] for token in range(100, 190))]},
    "repetition": {"repetition_penalty": 1.7},
    "renormalized": {"renormalize_logits": True, "suppress_tokens": list(range(60, 199)), "no_repeat_ngram_size": 2},
    "length": {"max_length": 9, "max_new_tokens": None},
    "one token": {"max_new_tokens": 1},
}


@functools.cache
def model(family: str) -> Any:
    return tiny_encoder_decoder(family)


def logits_of(family: str, source: list[int]) -> Any:
    import torch

    def compute(rows: Any) -> Any:
        ids = torch.tensor([source] * len(rows))
        with torch.no_grad():
            return model(family)(input_ids=ids, decoder_input_ids=torch.from_numpy(rows)).logits[:, -1].numpy()

    return compute


def generate(family: str, source: list[int], given: dict[str, Any]) -> list[list[int]]:
    """The generated tokens of ``transformers``, without the start token and the padding behind the end."""
    import torch

    own = {"forced_bos_token_id": None, "forced_eos_token_id": None} | given
    own["eos_token_id"] = own["eos_token_id"] or None
    sequences = model(family).generate(torch.tensor([source]), do_sample=False, pad_token_id=VOCABULARY - 1, **own)
    return [[token for token in sequence[1:].tolist() if token != VOCABULARY - 1] for sequence in sequences]


@pytest.mark.parametrize(("name", "family"), [(name, ("mbart", "t5")[at % 2]) for at, name in enumerate(OPTIONS)])
def test_tokens_are_those_of_transformers(name: str, family: str) -> None:
    given = {"num_beams": 4, "max_new_tokens": 24, "eos_token_id": [EOS], "bad_words_ids": [[VOCABULARY - 1]]} | OPTIONS[name]
    options = GenerationOptions.from_settings(given, vocab_size=VOCABULARY)
    start = [model(family).config.decoder_start_token_id]
    for source in SOURCES[:2]:
        search = BeamSearch(
            options,
            np.array(start),
            max_length=options.max_total_length(1, capacity=64),
            encoder_ids=np.array(source),
        )
        assert decode(search, start, logits_of(family, source)) == generate(family, source, given)
        assert all(
            sequence.finish_reason == (STOP if sequence.token_ids[-1] in options.eos_token_id else LENGTH)
            for sequence in search.sequences()
        )


def test_a_decoder_is_searched_from_its_prompt() -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(1)
    decoder = GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, initializer_range=0.4, eos_token_id=None)
    ).eval()
    prompt, given = [5, 9, 17, 4], {"num_beams": 5, "max_new_tokens": 20, "num_return_sequences": 2, "eos_token_id": [7, 8, 9]}
    options = GenerationOptions.from_settings(given, vocab_size=VOCABULARY)
    search = BeamSearch(options, np.array(prompt), max_length=24)
    with torch.no_grad():
        found = decode(search, prompt, lambda rows: decoder(torch.from_numpy(rows)).logits[:, -1].numpy())
    sequences = decoder.generate(torch.tensor([prompt]), do_sample=False, pad_token_id=0, **given)
    assert found == [[token for token in sequence[4:].tolist() if token] for sequence in sequences]


@pytest.mark.parametrize("count", [1, 2, 8, 13])
@pytest.mark.parametrize("values", [3, 1000, 10**6], ids=["few", "some", "many"])
def test_equal_scores_are_ordered_as_by_torch(count: int, values: int) -> None:
    import torch

    chance = np.random.default_rng(count)
    for length in (count * 64, 5000):
        scores = chance.integers(0, values, length).astype(np.float32)
        scores[chance.random(length) < 0.3] = -np.inf
        expected = torch.topk(torch.from_numpy(scores), count).indices.tolist()
        assert partial_sort(scores, count).tolist() == expected
        found, certain = ranked_candidates(scores, count)
        assert found[:certain].tolist() == expected[:certain]
        assert scores[found].tolist() == scores[expected].tolist()


def test_only_equal_scores_that_decide_something_are_sorted_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    sorted_slowly: list[int] = []

    def counting(scores: Floats, count: int) -> Positions:
        sorted_slowly.append(count)
        return partial_sort(scores, count)

    monkeypatch.setattr("serving.runtime.generation.beam_search.partial_sort", counting)
    options = GenerationOptions(num_beams=2, eos_token_id=(1, 1, 5, 5))
    for logits, expected in [([9, 8, 7, 6, 5, 5, 5, 5, 5, 5], []), ([9, 8, 7, 7, 5, 4, 3, 2, 1, 0], [6])]:
        continuation = BeamSearch(options, np.array([0]), max_length=9).advance(np.array([logits], dtype=np.float32), None)
        assert continuation is not None and continuation.tokens.tolist()[0] == 0
        assert sorted_slowly == expected


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_end_the_request(value: float) -> None:
    options = GenerationOptions.from_settings({"num_beams": 2, "max_new_tokens": 4}, vocab_size=VOCABULARY)
    search = BeamSearch(options, np.array([0]), max_length=5)
    with pytest.raises(NotFiniteError):
        search.advance(np.full((1, VOCABULARY), value, dtype=np.float32), None)


@pytest.mark.parametrize("renormalizes", [False, True])
@pytest.mark.parametrize("after", [0, 2])
def test_options_that_forbid_all_tokens_end_the_request(after: int, renormalizes: bool) -> None:
    """transformers goes on with the lowest tokens, whose probability is 0."""
    given = {"num_beams": 2, "max_new_tokens": 4, "bad_words_ids": [[token] for token in range(5)]}
    if after:  # five tokens, each of which may come once: two of them are in the prompt
        given = {"num_beams": 2, "max_new_tokens": 9, "no_repeat_ngram_size": 1}
    options = GenerationOptions.from_settings(given | {"renormalize_logits": renormalizes}, vocab_size=5)
    search = BeamSearch(options, np.array([0, 1, 2][: after + 1]), max_length=9)
    logits = np.zeros((2, 5), dtype=np.float32)
    for _ in range(after):
        assert search.advance(logits, None) is not None
    with pytest.raises(AllForbiddenError, match="the options of this request forbid all tokens"):
        search.advance(logits, None)


def test_before_the_end_the_best_beams_are_returned() -> None:
    options = GenerationOptions.from_settings({"num_beams": 2, "max_new_tokens": 4, "num_return_sequences": 2}, vocab_size=5)
    search = BeamSearch(options, np.array([0]), max_length=5)
    continuation = search.advance(np.array([[0, 1, 9, 8, 2]], dtype=np.float32), None)
    assert continuation is not None
    assert continuation.tokens.tolist() == [2, 3]
    assert [(sequence.token_ids, sequence.finish_reason) for sequence in search.sequences()] == [([2], ""), ([3], "")]


def test_logits_are_not_changed() -> None:
    options = GenerationOptions.from_settings({"num_beams": 2, "max_new_tokens": 4, "repetition_penalty": 2.0}, vocab_size=5)
    search = BeamSearch(options, np.array([0]), max_length=5)
    for rows in (1, 2):
        logits = np.arange(5 * rows, dtype=np.float32).reshape(rows, 5)
        before = logits.copy()
        search.advance(logits, None)
        assert (logits == before).all()
