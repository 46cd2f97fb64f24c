"""The options of a request in the words of CTranslate2, and those that it does not have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from serving.runtime.generation.generation_options import GenerationOptions

Word = Callable[[int], "str | None"]
"""From a token to its string."""
ABSENT = ("encoder_no_repeat_ngram_size", "begin_suppress_tokens", "forced_eos_token_id", "stop_strings")
"""Options that CTranslate2 does not have."""
ABSENT_OF_BEAMS = ("renormalize_logits",)
"""Those that have an effect on beams alone."""


def generator_options(options: GenerationOptions, word: Word) -> dict[str, Any]:
    """Return the keywords of ``Generator.generate_batch`` that change the scores of tokens."""
    forbidden = [*options.bad_words_ids, *((token,) for token in options.suppress_tokens)]
    return {
        "repetition_penalty": options.repetition_penalty,
        "no_repeat_ngram_size": options.no_repeat_ngram_size,
        "suppress_sequences": [[word(token) for token in tokens] for tokens in forbidden],
    }


def translator_options(options: GenerationOptions, word: Word, *, capacity: int) -> dict[str, Any]:
    """Return the keywords of ``Translator.translate_batch``, without those that are about a source.

    Args:
        options: The options.
        word: From a token to its string.
        capacity: Most tokens of an answer with the one that the decoder begins with.
    """
    own = generator_options(options, word) | {
        "beam_size": options.num_beams,
        "length_penalty": options.length_penalty,
        "min_decoding_length": max(options.min_new_tokens or 0, options.min_length - 1),
        "max_decoding_length": options.max_total_length(1, capacity=capacity) - 1,
        "max_input_length": 0,  # the source is truncated already
    }
    return own | ({"end_token": list(options.eos_token_id)} if options.eos_token_id else {})


def absent_options(options: GenerationOptions) -> list[str]:
    """Return the options of a request that have an effect, and that CTranslate2 does not have."""
    neutral = GenerationOptions()
    names = (*ABSENT, *(ABSENT_OF_BEAMS if options.num_beams > 1 else ()))
    found = [name for name in names if getattr(options, name) != getattr(neutral, name)]
    if options.num_beams > 1 and options.early_stopping is not True:  # CTranslate2 ends when as many answers have ended as beams
        found.append(f"early_stopping={str(options.early_stopping).lower()}")
    return found
