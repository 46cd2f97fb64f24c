"""What CTranslate2 is told of the options of a request, and what it cannot be told."""

from __future__ import annotations

from benchmarks.generation.ctranslate2_options import absent_options, generator_options, translator_options
from benchmarks.generation.rewriters import library_settings
from serving.runtime.generation.generation_options import GenerationOptions

OPTIONS = GenerationOptions(
    max_new_tokens=6,
    min_length=4,
    repetition_penalty=1.2,
    no_repeat_ngram_size=3,
    bad_words_ids=((1, 2),),
    suppress_tokens=(5,),
    num_beams=4,
    length_penalty=0.5,
    eos_token_id=(2,),
    forced_eos_token_id=(2,),
)


def word(token: int) -> str:
    return f"w{token}"


def test_options_in_its_words() -> None:
    assert generator_options(OPTIONS, word) == {
        "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 3,
        "suppress_sequences": [["w1", "w2"], ["w5"]],
    }
    found = translator_options(OPTIONS, word, capacity=5)
    assert found["max_decoding_length"] == 4, "the cache has no room for more"
    assert (found["beam_size"], found["length_penalty"], found["min_decoding_length"], found["end_token"]) == (4, 0.5, 3, [2])
    assert "end_token" not in translator_options(GenerationOptions(), word, capacity=5)


def test_what_it_lacks_is_named() -> None:
    assert absent_options(GenerationOptions()) == []
    assert absent_options(OPTIONS) == ["forced_eos_token_id", "early_stopping=false"]
    assert absent_options(GenerationOptions(num_beams=4, early_stopping=True)) == []
    renormalized = GenerationOptions(num_beams=4, early_stopping=True, renormalize_logits=True)
    assert absent_options(renormalized) == ["renormalize_logits"]
    assert absent_options(GenerationOptions(renormalize_logits=True)) == [], "without beams it changes no token"


def test_options_of_transformers() -> None:
    found = library_settings(OPTIONS, capacity=64)
    assert (found["max_new_tokens"], found["min_length"], found["bad_words_ids"], found["suppress_tokens"]) == (6, 4, [[1, 2]], [5])
    assert "max_length" not in found and "seed" not in found and "begin_suppress_tokens" not in found
    assert library_settings(GenerationOptions(), capacity=64)["max_new_tokens"] == 20, "as generate itself, without the first token"
