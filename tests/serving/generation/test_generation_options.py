"""Options of a request: names, aliases, what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
from transformers import GenerationConfig, GenerationMixin

from serving.runtime.generation.generation_options import NEUTRAL, GenerationOptions
from serving.runtime.generation.option_lists import parsed_parameters
from serving.runtime.generation.option_names import ALIASES
from serving.runtime.types import JsonValue

PLAIN = GenerationOptions(max_new_tokens=256, do_sample=True, temperature=0.7, eos_token_id=(2,))


def changed(**parameters: object) -> GenerationOptions:
    return PLAIN.with_parameters(parameters, vocab_size=100)  # type: ignore[arg-type]


def test_names_of_transformers_and_of_vllm() -> None:
    assert changed() == PLAIN
    assert changed(max_tokens=5, min_tokens=2, n=3) == changed(max_new_tokens=5, min_new_tokens=2, num_return_sequences=3)
    assert changed(stop="a").stop_strings == ("a",) and not changed(stop="a").include_stop_strings
    assert changed(stop_strings=["a", "b"]).stop_strings == ("a", "b") and changed(stop_strings="a").include_stop_strings
    assert changed(stop="a", include_stop_str_in_output=True).include_stop_strings
    assert changed(stop_strings="a", include_stop_strings=False).stop_in_whole_text
    assert not changed(stop="a", include_stop_str_in_output=True).stop_in_whole_text, "vLLM searches the text of the answer"
    assert not changed(include_stop_strings=False, stop_strings="a").include_stop_strings
    assert changed(ignore_eos=True).eos_token_id == () and changed(ignore_eos=False).eos_token_id == (2,)
    assert changed(stop_token_ids=[5, 6]).eos_token_id == (2, 5, 6)
    assert changed(eos_token_id=4, stop_token_ids=[5]).eos_token_id == (4, 5)
    assert changed(ignore_eos=True, stop_token_ids=[5]).eos_token_id == (5,)
    assert changed(eos_token_id=[4, 5]).eos_token_id == (4, 5)
    assert changed(top_k=-1).top_k == 0
    assert changed(temperature=1).temperature == 1.0
    assert not changed(temperature=0).do_sample, "vLLM's way to ask for greedy decoding"
    assert changed(early_stopping="never").early_stopping == "never"


def test_a_length_of_the_request_comes_before_the_model_s() -> None:
    assert changed(max_length=30).max_total_length(4, capacity=100) == 30
    assert changed(max_length=30, max_new_tokens=7).max_total_length(4, capacity=100) == 11
    assert changed(max_new_tokens=None).max_total_length(4, capacity=100) == 24, "as if the checkpoint had none"
    assert changed(max_new_tokens=None, max_length=30).max_total_length(4, capacity=100) == 30
    assert not changed(max_new_tokens=None).limit_requested
    assert PLAIN.max_total_length(4, capacity=300) == 260
    assert PLAIN.max_total_length(4, capacity=100) == 100, "a default is cut to what fits"
    assert GenerationOptions().max_total_length(4, capacity=100) == 24, "the default of transformers does not count the prompt"
    assert GenerationOptions().with_parameters({"max_length": 20}, vocab_size=9).max_total_length(4, capacity=100) == 20
    defaults = GenerationOptions.from_settings({"max_new_tokens": 256}, vocab_size=9)
    assert defaults.max_total_length(4, capacity=100) == 100


def test_new_tokens_come_before_the_whole_length_as_in_transformers() -> None:
    defaults = PLAIN.with_parameters({"min_new_tokens": 6}, vocab_size=100)
    chosen = defaults.with_parameters({"min_length": 3}, vocab_size=100)
    assert (chosen.min_new_tokens, chosen.min_length) == (6, 3)
    chosen = defaults.with_parameters({"min_length": 3, "min_new_tokens": None}, vocab_size=100)
    assert (chosen.min_new_tokens, chosen.min_length) == (None, 3)


FULL = GenerationOptions(
    max_new_tokens=30,
    min_new_tokens=2,
    min_length=3,
    do_sample=True,
    temperature=0.5,
    top_k=7,
    top_p=0.8,
    min_p=0.1,
    seed=4,
    repetition_penalty=1.3,
    no_repeat_ngram_size=2,
    encoder_no_repeat_ngram_size=3,
    bad_words_ids=((1, 2),),
    suppress_tokens=(3,),
    begin_suppress_tokens=(4,),
    forced_bos_token_id=5,
    forced_eos_token_id=(6,),
    eos_token_id=(2,),
    stop_strings=("a",),
    renormalize_logits=True,
)
SERVER_S = ("seed", "stop_strings")
"""Options that generate does not have, or for which it needs the tokenizer."""


def test_none_switches_an_option_off_as_in_transformers() -> None:
    own = {name: value for name, value in vars(FULL).items() if value != getattr(GenerationOptions(), name)}
    config = GenerationConfig(**{name: value for name, value in own.items() if name not in SERVER_S})
    model = SimpleNamespace(generation_config=config)
    for name, value in own.items():
        chosen = FULL.with_parameters({name: None}, vocab_size=100)
        assert replace(chosen, **{name: value}, limit_requested=False) == FULL, "the others stay"
        neutral = {"top_k": 0}.get(name, getattr(GenerationOptions(), name))
        assert getattr(chosen, name) == neutral
        if name not in SERVER_S:
            prepared, _ = GenerationMixin._prepare_generation_config(model, None, **{name: None})
            assert getattr(prepared, name) is None


@pytest.mark.parametrize("name", ["num_beams", "num_return_sequences", "early_stopping"])
def test_none_is_refused_where_transformers_refuses_it(name: str) -> None:
    with pytest.raises(TypeError, match=f"option {name} must have a value"):
        changed(**{name: None})


def test_a_length_penalty_of_none_is_refused_with_beams() -> None:
    assert changed(length_penalty=None) == PLAIN
    with pytest.raises(TypeError, match="option length_penalty must be a number"):
        changed(length_penalty=None, num_beams=2, do_sample=False)


def test_none_of_a_name_of_vllm_asks_for_nothing() -> None:
    nothing = dict.fromkeys(("max_tokens", "min_tokens", "n", "stop", "stop_token_ids", "ignore_eos", "include_stop_str_in_output"))
    assert FULL.with_parameters(nothing, vocab_size=100) == FULL
    assert FULL.with_parameters({"max_length": None, "colour": None}, vocab_size=100) == FULL


def test_a_prefix_counts_as_in_the_pipeline() -> None:
    lengths = GenerationOptions(max_length=40, min_length=10)

    def behind(**given: JsonValue) -> tuple[int, int]:
        chosen = lengths.with_parameters(given, vocab_size=9).behind_prefix(7, given)
        return chosen.max_length, chosen.min_length

    assert behind() == (47, 10)
    assert behind(max_length=30, min_length=20) == (37, 27)
    assert behind(max_new_tokens=None, min_new_tokens=None, min_length=20) == (40, 20)
    assert behind(max_tokens=5, min_tokens=2, min_length=20) == (40, 20)
    assert lengths.behind_prefix(0, {"min_length": 20}) == lengths
    plain = GenerationOptions(eos_token_id=(2,)).behind_prefix(7, {})
    assert plain.max_total_length(10, capacity=100) == 27, "the default of transformers counts the prompt then"


@pytest.mark.parametrize(
    ("options", "prompt", "named"),
    [
        (PLAIN, 100, ["100 tokens", "holds 100"]),
        (PLAIN, 120, ["120 tokens", "holds 100"]),
        (changed(max_new_tokens=97), 4, ["max_new_tokens", "97", "prompt of 4", "holds 100", "96 at most"]),
        (changed(max_length=101), 4, ["max_length", "97", "prompt of 4", "holds 100"]),
        (changed(max_length=4), 4, ["max_length is 4", "prompt alone has 4"]),
    ],
)
def test_what_does_not_fit_is_refused_with_both_numbers(options: GenerationOptions, prompt: int, named: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        options.max_total_length(prompt, capacity=100)
    assert all(words in str(error.value) for words in named)


BAD: list[dict[str, object]] = [
    {"max_new_tokens": 0},
    {"max_new_tokens": 2.5},
    {"max_new_tokens": True},
    {"max_tokens": "7"},
    {"do_sample": 1},
    {"temperature": -1},
    {"temperature": math.nan},
    {"temperature": math.inf},
    {"top_k": -2},
    {"top_p": 1.1},
    {"min_p": -0.1},
    {"seed": -1},
    {"seed": 2**64},
    {"repetition_penalty": 0},
    {"no_repeat_ngram_size": -1},
    {"bad_words_ids": [1, 2]},
    {"bad_words_ids": [[1], []]},
    {"bad_words_ids": [[100]]},
    {"bad_words_ids": "ab"},
    {"bad_words_ids": [["a"]]},
    {"suppress_tokens": [1, -1]},
    {"suppress_tokens": list(range(2000))},
    {"eos_token_id": "2"},
    {"eos_token_id": [100]},
    {"forced_bos_token_id": 100},
    {"forced_bos_token_id": [1]},
    {"stop": [""]},
    {"stop": ["a"] * 100},
    {"stop": "a" * 1000},
    {"stop": 3},
    {"stop_strings": [3]},
    {"num_beams": 0},
    {"num_beams": 10**9},
    {"num_beams": 4},
    {"early_stopping": "always"},
    {"length_penalty": math.inf},
    {"num_return_sequences": 2, "do_sample": False},
    {"num_beams": 4, "do_sample": False, "stop": "a"},
    {"num_return_sequences": 5, "do_sample": False, "num_beams": 4},
    {"temperature": 0.0, "do_sample": True},
    {"ignore_eos": "yes"},
    {"stop_token_ids": [True]},
    {"typical_p": 0.9},
    {"renormalize_logits": 2},
    {"max_new_token": 5},
    {"max_tokens": 10**30},
    {"min_tokens": -1},
    {"n": 0},
    {"n": 65},
    {"n": "2"},
    {"n": 2, "do_sample": False},
    {"n": 5, "do_sample": False, "num_beams": 4},
    {"stop_token_ids": [100]},
    {"stop_token_ids": "2"},
    {"include_stop_str_in_output": 2},
]


@pytest.mark.parametrize(
    ("alias", "name", "value"),
    [
        *((alias, name, True if alias.startswith("include") else 2) for alias, name in ALIASES.items()),
        ("stop", "stop_strings", "a"),
    ],
)
def test_an_option_has_one_of_its_names(alias: str, name: str, value: object) -> None:
    for order in ((alias, name), (name, alias)):
        with pytest.raises(ValueError, match=f"^options {name} and {alias} are the same: give one$"):
            changed(**dict.fromkeys(order, value))
        assert changed(**{one: None if one == alias else value for one in order}) == changed(**{name: value})
        if name != "num_return_sequences":  # which is never None
            assert changed(**{one: None if one == name else value for one in order}) == changed(**{alias: value})


@pytest.mark.parametrize("parameters", BAD, ids=lambda parameters: "-".join(f"{one}={parameters[one]!r:.12}" for one in parameters))
def test_a_bad_option_is_refused_by_name(parameters: dict[str, object]) -> None:
    with pytest.raises(ValueError) as error:
        changed(**parameters)
    message = str(error.value)
    assert any(f"option {name} " in message for name in parameters)
    assert len(message) < 300
    of_library = {**ALIASES, "stop": "stop_strings", "stop_token_ids": "eos_token_id"}
    assert not any(of_library[name] in message for name in parameters if name in of_library and of_library[name] not in parameters)


def test_what_is_found_later_is_told_by_the_name_that_the_request_used() -> None:
    with pytest.raises(ValueError, match="option max_tokens asks for 97 tokens after a prompt of 4"):
        changed(max_tokens=97).max_total_length(4, capacity=100)
    with pytest.raises(ValueError, match="option max_tokens of 100 leaves no room"):
        changed(max_tokens=100).prompt_room(capacity=100)
    with pytest.raises(ValueError, match="option stop_sequence names token 100"):
        PLAIN.ending_at([100], vocab_size=100)
    assert changed(max_tokens=None, max_new_tokens=7).client_name("max_new_tokens") == "max_new_tokens"


@pytest.mark.parametrize("parameters", [{"num_beams": 3}, {"num_beams": 3, "do_sample": True}])
def test_a_mix_of_beams_and_sampling_is_refused_with_what_to_do(parameters: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"num_beams of more than 1 .* do_sample: give do_sample=false, or num_beams=1 to sample"):
        changed(**parameters)
    assert changed(**parameters | {"do_sample": False}).num_beams == 3
    assert changed(**parameters | {"num_beams": 1}).do_sample


def test_an_option_that_asks_for_nothing_is_accepted() -> None:
    for name, values in NEUTRAL.items():
        assert all(changed(**{name: value}) == PLAIN for value in (*values, None))


def test_lists_come_as_json_in_the_parameters_of_triton() -> None:
    parsed = parsed_parameters(
        {"eos_token_id": "[1, 2]", "stop": '["a", "b"]', "top_k": 5, "bad_words_ids": "[[1]]", "stop_token_ids": "3"}
    )
    assert parsed == {"eos_token_id": [1, 2], "stop": ["a", "b"], "top_k": 5, "bad_words_ids": [[1]], "stop_token_ids": 3}
    assert parsed_parameters({"stop": "[INST]", "stop_strings": "12"}) == {"stop": "[INST]", "stop_strings": "12"}
    assert parsed_parameters({"top_k": "null", "eos_token_id": "null", "stop": "null"}) == {
        "top_k": None,
        "eos_token_id": None,
        "stop": "null",
    }
    for value in ("[1", "abc", '{"a": 1}', "[" * 100_000):
        with pytest.raises(ValueError, match="suppress_tokens"):
            parsed_parameters({"suppress_tokens": value})
