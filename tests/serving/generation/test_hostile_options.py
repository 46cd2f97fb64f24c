"""Whatever a client writes as the value of an option: it is used, or the client is told in one line why it is not."""

from __future__ import annotations

import json
import math
import time
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from serving.runtime.generation.decoding import AllForbiddenError
from serving.runtime.generation.decoding_choice import decoding_for
from serving.runtime.generation.generation_options import MOST_NGRAM, NEUTRAL, OPTIONS, GenerationOptions
from serving.runtime.generation.option_lists import MOST_TOKEN_LISTS, MOST_WORD_TOKENS
from serving.runtime.generation.request_reader import read_fields
from serving.runtime.tasks.text_generation import TextGeneration
from serving.runtime.tasks.translation import Translation

VOCABULARY, CAPACITY = 50, 40
DEFAULTS = TextGeneration(vocab_size=VOCABULARY, generation={"max_new_tokens": 8, "eos_token_id": 2})


def nested(depth: int, inner: str = "1") -> str:
    return "[" * depth + inner + "]" * depth


HOSTILE = [
    *("null", "true", "false", "0", "-0.0", "1", "-1", "7", "0.5", "-1.5", "3.0", "1e308", "5e-324", "-5e-324", "1e-300"),
    *("1e999", "-1e999", "NaN", "Infinity", "-Infinity", str(2**31), str(2**63), str(2**64), str(-(2**63)), str(10**400)),
    *("9" * 4300, "9" * 6000, '""', '"a"', '"7"', '"true"', '"never"', '"hole"', '"\\ud800"', '"\\udfffx"', '"\\u0000"', '"é😀"'),
    *(json.dumps("a" * size) for size in (256, 257, 10**6)),
    *('"[1"', '"[[1]]"', '"[]"', '"{}"', json.dumps(nested(990)), json.dumps(nested(100_000)), json.dumps(nested(2, '"a"'))),
    *("[]", "[1]", "[1, 1]", "[-1]", "[50]", "[1.0]", "[true]", "[null]", '["a"]', '[""]', '["\\ud83d"]', "[[1]]", "[[1, 2], [3]]"),
    *("[[]]", "[[-1]]", "[[50]]", '[["a"]]', "[[[1]]]", f"[{10**400}]", f"[[{10**400}]]", "[NaN]", "[[1e999]]", nested(990)),
    *(nested(990, ""), nested(10_000), nested(100_000), "{}", '{"a": 1}', '{"a": ' * 990 + "1" + "}" * 990),
    *(json.dumps(list(range(size))) for size in (49, 50, 2000)),
    *(json.dumps([[1] * size]) for size in (MOST_WORD_TOKENS, MOST_WORD_TOKENS + 1, 10**5)),
    *(json.dumps([[one % 50] for one in range(size)]) for size in (MOST_TOKEN_LISTS, MOST_TOKEN_LISTS + 1)),
]
"""JSON."""
NAMES = sorted({*OPTIONS, *NEUTRAL, *DEFAULTS.own_options, "nothing", "\ud800", "x" * 10_000})


PYTHON = ("recursion", "sys.", "codec", "Overflow", "out of range", "int too large")
"""Words of Python's own messages, which tell a client nothing."""


def told(error: ValueError, name: str) -> str:
    """The message of a refusal, which is one line for a client."""
    message = str(error)
    assert len(message) < 420, message
    assert message.encode("utf-8", "backslashreplace").decode().isprintable() or "\ud800" in name or "\x00" in message
    assert not any(words in message for words in PYTHON), message
    return message


def generates(options: GenerationOptions, *, source: bool) -> None:
    """Choose a few tokens."""
    prompt = np.array([1, 2, 3, 2, 3])
    try:
        limit = options.max_total_length(len(prompt), capacity=CAPACITY)
    except ValueError as error:
        told(error, "")
        return
    decoding = decoding_for(options, prompt, max_length=limit, encoder_ids=np.array([4, 5, 4]) if source else None)
    generator, rows = np.random.default_rng(1), 1
    with np.errstate(all="raise", under="ignore"):
        for _ in range(12):
            logits = generator.normal(0, 4, (rows, VOCABULARY)).astype(np.float32)
            try:
                continuation = decoding.advance(logits, logits.argmax(axis=1) if decoding.takes_argmax else None)
            except AllForbiddenError:
                return
            if continuation is None:
                return
            assert ((continuation.tokens >= 0) & (continuation.tokens < VOCABULARY)).all()
            rows = len(continuation.tokens)


@pytest.mark.parametrize("beside", [{}, {"do_sample": True}, {"num_beams": 3}], ids=str)
def test_each_value_of_each_option_is_used_or_refused(beside: dict[str, Any]) -> None:
    used = refused = 0
    for name in NAMES:
        if name in beside:
            continue
        for value in HOSTILE:
            text = (
                f"{{{json.dumps(name)}: {value}"
                + "".join(f", {json.dumps(key)}: {json.dumps(one)}" for key, one in beside.items())
                + "}"
            )
            begun = time.perf_counter()
            try:
                options = read_fields({}, text.encode(), "", DEFAULTS).options
            except ValueError as error:
                told(error, name)
                refused += 1
            else:
                generates(options, source=used % 2 == 0)
                used += 1
            assert time.perf_counter() - begun < 5, (name, value[:80])
    assert used > 200 and refused > 2000


@pytest.mark.parametrize("name", sorted({*Translation.options, "nothing"}))
def test_each_value_of_a_request_parameter_is_used_or_refused(name: str) -> None:
    """Triton hands whole numbers, numbers, booleans and strings to a model, which may hold JSON."""
    task = Translation(vocab_size=VOCABULARY, decoder_start_token_id=0)
    for value in HOSTILE:
        for given in (value, value[1:-1]):
            try:
                task.with_options({name: given})
            except ValueError as error:
                told(error, name)


def test_limits_are_named() -> None:
    for parameters, words in [
        ({"bad_words_ids": [[1] * 33]}, "an entry of 33 tokens, but each may have 32"),
        ({"bad_words_ids": [[1]] * 1025}, "has 1025 entries, but may have 1024"),
        ({"no_repeat_ngram_size": MOST_NGRAM + 1}, "no_repeat_ngram_size must be 64 or less, not 65"),
        ({"encoder_no_repeat_ngram_size": 10**6}, "encoder_no_repeat_ngram_size must be 64 or less"),
        ({"max_new_tokens": 10**400}, "max_new_tokens must be 1000000000 or less"),
        *(
            ({name: 10**30}, f"option {name} must be 1000000000 or less, not 1{'0' * 30}")
            for name in ("max_length", "min_length", "max_new_tokens", "min_new_tokens", "max_tokens", "min_tokens")
        ),
        ({"max_length": 10**5000}, "max_length must be 1000000000 or less, not a number with too many digits"),
        ({"seed": 10**30}, "seed must be 18446744073709551615 or less"),
        ({"top_k": 10**30}, "top_k must be 9223372036854775807 or less, not 1000000000000000000000000000000"),
        ({"forced_bos_token_id": 10**30}, "forced_bos_token_id must be 9223372036854775807 or less"),
        ({"num_beams": 10**30}, "num_beams must be 64 or less"),
        ({"n": 10**30}, "n must be 64 or less"),
        ({"stop_token_ids": 10**30}, "option stop_token_ids names token 1000000000000000000000000000000, but"),
        ({"temperature": 10**400}, "temperature must be 1e+06 or less, not inf"),
        ({"top_p": math.nan}, "top_p must be 0 or more, not nan"),
        ({"num_beams": 16, "eos_token_id": list(range(32))}, "with num_beams of 16, at most 31 tokens may end a sequence"),
        ({"num_beams": 64, "eos_token_id": list(range(5)), "stop_token_ids": [5, 6, 7]}, "at most 7 tokens may end a sequence"),
        ({"stop": "a\ud800"}, r"option stop holds half of a surrogate pair, which is no text: 'a\\ud800'"),
    ]:
        with pytest.raises(ValueError) as error:
            GenerationOptions().with_parameters(parameters, vocab_size=VOCABULARY)
        assert words.replace("\\\\", "\\") in str(error.value)


def test_what_the_limits_allow_is_quick() -> None:
    """A million tokens in one list took a second for each token."""
    generator = np.random.default_rng(2)
    words = generator.integers(0, 2, (MOST_TOKEN_LISTS, MOST_WORD_TOKENS)).tolist()
    words = [word[: 1 + at % MOST_WORD_TOKENS] for at, word in enumerate(words)]
    given = {"bad_words_ids": words, "no_repeat_ngram_size": MOST_NGRAM, "encoder_no_repeat_ngram_size": MOST_NGRAM}
    options = replace(GenerationOptions().with_parameters(given, vocab_size=VOCABULARY), max_new_tokens=20)
    prompt = generator.integers(0, 2, 2000)
    decoding = decoding_for(options, prompt, max_length=2020)
    logits = np.zeros((1, VOCABULARY), dtype=np.float32)
    begun = time.process_time()
    for _ in range(10):
        decoding.advance(logits, None)
    assert time.process_time() - begun < 1, "10 tokens"


@pytest.mark.parametrize("beside", [{}, {"repetition_penalty": 1e-6}], ids=["scores differ", "scores are equal"])
@pytest.mark.parametrize("ends", [[5] * MOST_TOKEN_LISTS, list(range(31))], ids=["repeated", "distinct"])
def test_beams_that_may_end_with_many_tokens_are_quick_and_small(ends: list[int], beside: dict[str, Any]) -> None:
    """2,048 entries that all name one token took 2 seconds and a gigabyte for each token."""
    vocabulary, beams, generator = 49_152, 16, np.random.default_rng(3)
    given = {"num_beams": beams, "eos_token_id": ends, "stop_token_ids": ends, "max_new_tokens": 1900, **beside}
    options = GenerationOptions().with_parameters(given, vocab_size=vocabulary)
    search = decoding_for(options, generator.integers(0, vocabulary, 100), max_length=2000)
    steps = [generator.normal(0, 3, (rows, vocabulary)).astype(np.float32) for rows in (1, beams, beams, beams, beams)]
    tracemalloc.start()
    begun = time.process_time()
    for logits in steps:
        assert search.advance(logits, None) is not None
    spent, (_, most) = time.process_time() - begun, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert spent < 1, "5 tokens"
    assert most < 30 * 2**20, "the scores of all beams, several times"


def test_bad_words_are_prepared_once_for_all_rows() -> None:
    """1,024 words beside 2,048 tokens that end a sequence took 0.16 s for each row, in the thread that takes requests."""
    ends = list(range(2 * MOST_TOKEN_LISTS))
    words = [[3000 + at] * (1 + at % MOST_WORD_TOKENS) for at in range(MOST_TOKEN_LISTS - 1)]
    given = {"bad_words_ids": [[7], *words], "eos_token_id": ends[:MOST_TOKEN_LISTS], "stop_token_ids": ends[MOST_TOKEN_LISTS:]}
    options = GenerationOptions().with_parameters(given, vocab_size=5000)
    begun = time.process_time()
    decodings = [decoding_for(options, np.array([1, 2]), max_length=9) for _ in range(64)]
    assert time.process_time() - begun < 0.5, "64 rows"
    logits = np.zeros((1, 5000), dtype=np.float32)
    logits[0, [7, 3000, 8]] = 3, 9, 1
    for decoding in decodings[:2]:
        continuation = decoding.advance(logits, None)
        assert continuation is None, "it ends with a token that may end a sequence, though that is a bad word too"
        assert [list(one.token_ids) for one in decoding.sequences()] == [[7]]
