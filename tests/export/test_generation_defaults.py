"""The defaults of generation are those that ``transformers.pipeline`` finds in the same checkpoint."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    pipeline,
)

from export.generation_defaults import IGNORED, generation_defaults
from export.generation_settings import is_generation_setting, refused_default_hint
from export.tasks._generation import ExportedGenerationTask
from export.tasks.summarization import SummarizationTask
from export.tasks.text_generation import TextGenerationTask
from export.tasks.translation import TranslationTask
from serving.runtime.generation.generation_options import OPTIONS, GenerationOptions
from serving.runtime.generation.library_defaults import LIBRARY_DEFAULTS

GENERATION: tuple[dict[str, Any], ...] = (
    {},
    {"eos_token_id": [2, 5], "temperature": 0.2, "top_k": 7, "do_sample": False},
    {"max_length": 100, "num_beams": 2, "no_repeat_ngram_size": 3, "length_penalty": 2.0, "early_stopping": True},
    {"max_new_tokens": 9, "max_length": 77, "repetition_penalty": 1.2},
    {"max_new_tokens": 9, "forced_bos_token_id": 3, "bad_words_ids": [[3], [4, 5]], "chat_format": "custom"},
    {"max_new_tokens": 9, "transformers_version": "4.30.0", "min_length": 5, "num_beams": 3},
)
SPECIFIC = {
    "summarization": {"prefix": "summarize: ", "min_length": 30, "max_length": 200, "num_beams": 1, "early_stopping": True},
    "translation_en_to_de": {"prefix": "translate English to German: ", "num_beams": 5},
    "text-generation": {"do_sample": True, "max_length": 50},
}
SPECIAL = {"pad_token": "<pad>"}
WORDS = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "a": 1}, "a")), **SPECIAL)
SIZES = {"vocab_size": 100, "num_hidden_layers": 1, "num_layers": 1, "hidden_size": 8, "d_model": 8, "d_kv": 4, "d_ff": 8}


def model_of(task: str, specific: dict[str, Any] | None) -> Any:
    more = {"task_specific_params": specific, "decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
    if task == "text-generation":
        return LlamaForCausalLM(LlamaConfig(**SIZES, num_attention_heads=2, intermediate_size=8, prefix="Hi ", **more))
    return T5ForConditionalGeneration(T5Config(**SIZES, num_heads=2, **more))


@pytest.mark.filterwarnings("ignore:.translation. task was used:UserWarning")
@pytest.mark.parametrize("task", ["text-generation", "summarization", "translation", "translation_en_to_de"])
@pytest.mark.parametrize("given", GENERATION, ids=range(len(GENERATION)))
@pytest.mark.parametrize("specific", [None, SPECIFIC], ids=["plain", "specific"])
def test_defaults_are_those_of_the_pipeline(task: str, given: dict[str, Any], specific: dict[str, Any] | None) -> None:
    model = model_of(task, specific)
    model.generation_config = GenerationConfig(**{"eos_token_id": 1, "decoder_start_token_id": 0} | given)
    found = generation_defaults(task, model.generation_config, model.config.to_dict(), pad_token_id=WORDS.pad_token_id)
    pipe = pipeline(task, model=model, tokenizer=WORDS, device=-1)
    used, _ = model._prepare_generation_config(pipe.generation_config)  # what generate makes of it
    assert found.prefix == (pipe.prefix or "")
    assert {**used.to_diff_dict(), "chat_format": None} == {
        **{name: value for name, value in used.to_diff_dict().items() if name in IGNORED},
        **found.generation,
        "chat_format": None,
    }
    assert (found.pad_token_id, found.bos_token_id) == (used.pad_token_id, used.bos_token_id)
    assert found.decoder_start_token_id == used.decoder_start_token_id
    alone, _ = model._prepare_generation_config(GenerationConfig())  # what generate makes of an empty generation_config
    served = {name: value for name, value in alone.to_diff_dict().items() if name not in {*IGNORED, "chat_format"}}
    padding = {} if alone.pad_token_id is None else {"pad_token_id": alone.pad_token_id}
    assert found.model_generation == served | padding
    if not (found.generation.get("do_sample") and found.generation.get("num_beams", 1) != 1):  # the server has no such decoding
        GenerationOptions.from_settings(found.generation, vocab_size=100)


def test_another_task_has_no_defaults() -> None:
    with pytest.raises(KeyError, match="fill-mask"):
        generation_defaults("fill-mask", GenerationConfig(), {}, pad_token_id=None)


def summarization_task(**generation: Any) -> SummarizationTask:
    model = model_of("summarization", None)
    model.generation_config = GenerationConfig(eos_token_id=1, decoder_start_token_id=0, **generation)
    config = model.config.to_dict()
    return SummarizationTask.from_config(config, pair=False).bound_to(model, WORDS, config)


def test_settings_of_export_replace_the_checkpoints_defaults() -> None:
    bound = summarization_task(max_length=77, num_beams=3, no_repeat_ngram_size=2)
    assert bound.with_defaults({}) == bound
    found = bound.with_defaults({"max_new_tokens": 9, "num_beams": 1}).served.generation_options
    assert (found.max_new_tokens, found.num_beams, found.no_repeat_ngram_size) == (9, 1, 2)
    assert bound.served.generation_options.max_new_tokens is None  # it has max_length


def test_settings_that_do_not_fit_the_checkpoint_are_refused() -> None:
    with pytest.raises(ValueError, match="num_beams"):
        summarization_task(do_sample=True, max_length=9, num_beams=1).with_defaults({"num_beams": 2})
    sampling = summarization_task(do_sample=True, max_length=9, num_beams=3)
    with pytest.raises(ValueError, match="give do_sample=false, or num_beams=1 to sample"):
        sampling.with_defaults({})
    assert sampling.with_defaults({"do_sample": False}).served.generation_options.num_beams == 4, "the pipeline's"


def test_a_limit_of_export_replaces_the_other_limit_of_the_checkpoint() -> None:
    bound = summarization_task(max_new_tokens=9, min_new_tokens=3, num_beams=1)
    for served in (
        bound.with_defaults({"max_length": 30, "min_length": 5}).served,
        bound.with_defaults({"max_new_tokens": 7}).served,
    ):
        assert served.model_generation is not None
        for found in (served.generation, served.model_generation):
            assert ("max_new_tokens" in found, "min_new_tokens" in found) == (
                ("max_length" not in found),
                ("min_length" not in found),
            )


@pytest.mark.parametrize("task", [TextGenerationTask, SummarizationTask, TranslationTask], ids=lambda task: task.name)
def test_each_option_of_generation_is_a_setting_of_export(task: type[ExportedGenerationTask]) -> None:
    given = {
        "do_sample": "false",
        "max_new_tokens": "9",
        "temperature": "0.5",
        "top_p": "1",
        "top_k": "null",
        "eos_token_id": "[2, 5]",
        "forced_eos_token_id": "7",
        "bad_words_ids": "[[3]]",
        "early_stopping": "never",
        "stop_strings": "12",
        "seed": "4",
        "typical_p": "1.0",
        "dola_layers": "null",
        "sequence_bias": None,
        "max_time": 3,
        "truncation": "true",
    }
    assert task.check_settings(given) == {
        "do_sample": False,
        "max_new_tokens": 9,
        "temperature": 0.5,
        "top_p": 1.0,
        "top_k": None,
        "eos_token_id": [2, 5],
        "forced_eos_token_id": 7,
        "bad_words_ids": [[3]],
        "early_stopping": "never",
        "stop_strings": "12",
        "seed": 4,
        "typical_p": 1.0,
        "dola_layers": None,
        "sequence_bias": None,
        "max_time": 3,
        "truncation": True,
    }
    assert task.check_settings({"early_stopping": "true"}) == {"early_stopping": True}
    assert {name for name in OPTIONS if name in LIBRARY_DEFAULTS} <= {name for name in OPTIONS if is_generation_setting(name)}
    own = {name for name in given if name in task.known_settings()}
    assert set(task.serving_settings(given)) == given.keys() - own


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"do_sample": "maybe"}, "option do_sample must be true or false, not 'maybe'"),
        ({"temperature": "-1"}, "option temperature must be 0 or more"),
        ({"top_p": 1.5}, "option top_p must be 1 or less"),
        ({"eos_token_id": "[1"}, "option eos_token_id must be a list in JSON"),
        ({"typical_p": "0.5"}, r"option typical_p is not supported: only 1\.0 is accepted"),
        ({"guidance_scale": "high"}, "option guidance_scale is not supported"),
        ({"use_cache": "false"}, "text-generation has no setting use_cache"),
        (
            {"max_tokens": "5"},
            "has no setting max_tokens; options of generation have their names in transformers: give max_new_tokens",
        ),
        ({"stop": "a"}, "text-generation has no setting stop; .*: give stop_strings$"),
        ({"ignore_eos": "true"}, "has no setting ignore_eos; only options of generation that transformers has are settings"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_refused_as_a_request_would_be(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextGenerationTask.check_settings(given)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"eos_token_id": "999999"}, "option eos_token_id names token 999999, but the model has tokens 0 to 99"),
        ({"suppress_tokens": "[0, 1, 99999]"}, "option suppress_tokens names token 99999, but the model has tokens 0 to 99"),
        ({"num_beams": "null"}, "option num_beams must have a value, not null"),
        ({"num_beams": "3"}, "option num_beams of more than 1 is not supported with do_sample"),
    ],
    ids=str,
)
def test_a_hint_names_the_setting_that_is_at_fault(setting: dict[str, str], message: str) -> None:
    model = model_of("text-generation", None)
    bound = TextGenerationTask.from_config(model.config.to_dict(), pair=False).bound_to(model, WORDS, model.config.to_dict())
    chosen = TextGenerationTask.check_settings(setting | {"top_p": 1.0})
    with pytest.raises(ValueError, match=message) as refused:
        bound.with_defaults(chosen)
    assert refused_default_hint(str(refused.value), chosen) == f"change --setting {next(iter(setting))}"
    assert "--setting do_sample=false" in refused_default_hint(str(refused.value), ["top_p"])


def test_a_prefix_of_export_replaces_that_of_the_checkpoint() -> None:
    model = model_of("text-generation", None)
    task = TextGenerationTask.from_config(model.config.to_dict(), pair=False)
    bound = task.bound_to(model, WORDS, model.config.to_dict())
    assert bound.served.prefix == "Hi "
    assert bound.with_defaults({"prefix": "Once "}).served.prefix == "Once "
    assert not bound.with_defaults({"prefix": ""}).served.prefix
