"""Every attribute of ``GenerationConfig`` is supported, accepted at its default, or refused by its own name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

import serving
from serving.generation_request import TextRequest
from serving.pipeline_call import PipelineCall
from serving.runtime.generation.generation_options import NEUTRAL, OPTIONS, is_known
from serving.runtime.generation.library_defaults import ARGUMENTS, LIBRARY_DEFAULTS, METADATA, WITHOUT_EFFECT
from serving.runtime.tasks._generation import TOKENS, GenerationTask
from serving.runtime.tasks.summarization import Summarization
from serving.runtime.tasks.text_generation import TextGeneration
from serving.runtime.tasks.translation import Translation

MODEL: dict[str, Any] = {"eos_token_id": 2, "repetition_penalty": 1.2}
WRITER = TextGeneration(
    vocab_size=100,
    generation=MODEL | {"max_new_tokens": 256, "do_sample": True, "temperature": 0.7},
    model_generation=MODEL,
    bos_token_id=1,
    pad_token_id=3,
)
SUMMARIZER = Summarization(
    vocab_size=100,
    decoder_start_token_id=0,
    generation=MODEL | {"max_new_tokens": 256, "num_beams": 4},
    model_generation=MODEL,
    bos_token_id=1,
)
TASKS = [WRITER, SUMMARIZER]
ATTRIBUTES = sorted(vars(GenerationConfig()))
UNSUPPORTED = sorted(name for name in LIBRARY_DEFAULTS if name not in {*OPTIONS, *WITHOUT_EFFECT, *TOKENS})
DOCUMENTED = Path(serving.__file__).parent / "README.md"


def read(task: GenerationTask, given: Mapping[str, Any], **defaults: Any) -> GenerationTask:
    """What the server makes of a call of the client."""
    parameters = PipelineCall.read(task, ("Hi",), given, defaults)[1].request([("Hi",)])[1]
    if not isinstance(task, TextGeneration):
        return task.with_options(parameters)  # type: ignore[arg-type]
    sent = TextRequest.of("x", [b"Hi"], parameters)
    return task.with_values({**sent.options, **task.parsed(sent.parameters)})


def test_the_table_is_that_of_the_library() -> None:
    expected = {name: value for name, value in vars(GenerationConfig()).items() if name not in METADATA}
    assert expected == LIBRARY_DEFAULTS
    assert all(type(LIBRARY_DEFAULTS[name]) is type(value) for name, value in expected.items())


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
@pytest.mark.parametrize("name", ATTRIBUTES)
def test_the_default_of_the_library_is_accepted(task: GenerationTask, name: str) -> None:
    value = getattr(GenerationConfig(), name)
    if name == "max_length":
        with pytest.warns(UserWarning, match="max_length is ignored"):
            read(task, {name: value})
    else:
        read(task, {name: value})
    task.with_values({name: value})


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
@pytest.mark.parametrize("name", UNSUPPORTED)
@pytest.mark.parametrize("value", [True, 3, 0.7, "high", [[1, 2]], {"a": 1}], ids=str)
def test_what_is_not_supported_is_refused_by_its_own_name(task: GenerationTask, name: str, value: Any) -> None:
    if value in NEUTRAL.get(name, ()) or value == LIBRARY_DEFAULTS[name]:
        return
    for ask in (lambda: read(task, {name: value}), lambda: task.with_values({name: value})):
        with pytest.raises(ValueError, match=f"^option {name} is not supported") as refused:
            ask()
        assert "did you mean" not in str(refused.value)


@pytest.mark.parametrize("name", ARGUMENTS[1:])
def test_objects_of_generate_are_refused_by_name(name: str) -> None:
    for given in (object(), [object()]):
        with pytest.raises(ValueError, match=f"^option {name} is not supported"):
            read(WRITER, {name: given})
    assert read(WRITER, {name: None}).generation_options == WRITER.generation_options


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_a_whole_config_can_be_given_as_options(task: GenerationTask) -> None:
    found = read(task, GenerationConfig(max_length=30).to_dict()).generation_options
    assert (found.max_length, found.max_new_tokens, found.do_sample, found.num_beams, found.eos_token_id) == (
        30,
        None,
        False,
        1,
        (),
    )
    changed = GenerationConfig(temperature=0.4, do_sample=True, max_new_tokens=9).to_diff_dict()
    found = read(task, changed | {"num_beams": 1}).generation_options
    assert (found.temperature, found.do_sample, found.max_new_tokens) == (0.4, True, 9)


@pytest.mark.parametrize("name", sorted(WITHOUT_EFFECT))
def test_what_changes_only_speed_has_no_effect(name: str) -> None:
    for value in (True, False, 7, "static", {"a": 1}, object()):
        assert read(WRITER, {name: value}).generation_options == WRITER.generation_options
    assert WRITER.with_values({name: 3}).generation_options == WRITER.generation_options


def test_a_token_for_padding_is_accepted() -> None:
    for task in TASKS:
        assert read(task, {"pad_token_id": 0}).generation_options == task.generation_options
        with pytest.raises(ValueError, match="option pad_token_id must be a whole number"):
            read(task, {"pad_token_id": "0"})


def test_tokens_that_the_model_begins_with() -> None:
    assert read(WRITER, {"bos_token_id": 5}).bos_token_id == 5
    assert read(WRITER, {"bos_token_id": None}).bos_token_id == 1
    with pytest.raises(ValueError, match="option bos_token_id names token 100, but the model has tokens 0 to 99"):
        read(WRITER, {"bos_token_id": 100})
    assert read(WRITER, {"decoder_start_token_id": 7}) == WRITER, "a decoder does not read it"
    assert read(SUMMARIZER, {"decoder_start_token_id": 0, "bos_token_id": 1}) == SUMMARIZER
    with pytest.raises(ValueError, match="option decoder_start_token_id is not supported with 7: only the model's own is, 0"):
        read(SUMMARIZER, {"decoder_start_token_id": 7})
    with pytest.raises(ValueError, match="option bos_token_id is not supported with 5: only the model's own is, 1"):
        read(SUMMARIZER, {"bos_token_id": 5})


def test_the_token_of_the_language_may_be_given() -> None:
    task = Translation(vocab_size=100, languages={"en": 5, "de": 6}, src_lang="en", tgt_lang="de", tokenizer_language="en")
    for given in (6, None):
        assert read(task, {"forced_bos_token_id": given}).generation_options.forced_bos_token_id == 6
    with pytest.raises(TypeError, match="give tgt_lang"):
        read(task, {"forced_bos_token_id": 5})


CONFIGS: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ({}, {}, {"do_sample": False, "temperature": 1.0, "max_new_tokens": 20, "repetition_penalty": 1.2, "num_beams": 1}),
    ({"max_new_tokens": 5}, {}, {"do_sample": False, "max_new_tokens": 5}),
    (
        {"max_new_tokens": 5, "temperature": 0.3, "do_sample": True},
        {"max_new_tokens": 7},
        {"temperature": 0.3, "max_new_tokens": 7},
    ),
    ({"max_length": 30}, {}, {"max_new_tokens": None, "max_length": 30}),
    ({"max_length": 30}, {"max_new_tokens": 4}, {"max_new_tokens": 4}),
    ({"eos_token_id": [4, 5]}, {"repetition_penalty": 1.0}, {"eos_token_id": (4, 5), "repetition_penalty": 1.0}),
    ({"do_sample": True}, {"max_length": 40}, {"max_new_tokens": None, "max_length": 40, "do_sample": True, "temperature": 1.0}),
]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
@pytest.mark.parametrize(("config", "given", "expected"), CONFIGS, ids=str)
def test_a_generation_config_is_expanded(
    task: GenerationTask, config: dict[str, Any], given: dict[str, Any], expected: dict[str, Any]
) -> None:
    for one in (config, GenerationConfig(**config), GenerationConfig(**config).to_dict()):
        options = read(task, given | {"generation_config": one}).generation_options
        assert {name: getattr(options, name) for name in expected} == expected
        assert read(task, given, generation_config=one).generation_options == options, "given to the client"
        assert read(task, given | {"generation_config": one}, temperature=0.1, top_k=3).generation_options == options


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_a_generation_config_may_use_the_names_of_vllm(task: GenerationTask) -> None:
    config = {"max_tokens": 2, "stop": "x", "min_tokens": None}
    for options in (
        read(task, {"generation_config": config}).generation_options,
        read(task, {}, generation_config=config).generation_options,
        read(task, {"generation_config": GenerationConfig(max_tokens=2, stop="x")}).generation_options,
    ):
        assert (options.max_new_tokens, options.stop_strings, options.include_stop_strings) == (2, ("x",), False)
    for given in ({"max_new_tokens": 3}, {"max_tokens": 3}):
        assert read(task, {"generation_config": config, **given}).generation_options.max_new_tokens == 3
        assert read(task, given, generation_config=config).generation_options.max_new_tokens == 3
        assert read(task, {"generation_config": {"max_new_tokens": 2}, **given}).generation_options.max_new_tokens == 3
        assert read(task, {"generation_config": config}, **given).generation_options.max_new_tokens == 2
        assert read(task, given, generation_config={"max_new_tokens": 2}, temperature=0.5).generation_options.max_new_tokens == 3
    with pytest.raises(ValueError, match="options max_new_tokens and max_tokens are the same: give one"):
        read(task, {"generation_config": {"max_tokens": 2, "max_new_tokens": 3}})


def test_a_generation_config_that_is_none_or_wrong() -> None:
    assert read(WRITER, {"generation_config": None}).generation_options == WRITER.generation_options
    for wrong in ("greedy", 3, ["max_new_tokens"], {1: 2}):
        with pytest.raises(TypeError, match="option generation_config must be a GenerationConfig or an object of options"):
            read(WRITER, {"generation_config": wrong})
    with pytest.raises(ValueError, match=r"^option max_new_token is unknown or not supported; did you mean max_new_tokens\?$"):
        read(WRITER, {"generation_config": {"max_new_token": 3}})
    with pytest.raises(ValueError, match="generation_config cannot hold another generation_config"):
        read(WRITER, {"generation_config": {"generation_config": {"max_new_tokens": 3}}})
    with pytest.raises(ValueError, match=r"^option typical_p is not supported: only 1\.0 is accepted"):
        read(WRITER, {"generation_config": GenerationConfig(typical_p=0.5, do_sample=True)})
    with pytest.raises(ValueError, match="use_model_defaults is not supported together with generation_config"):
        read(WRITER, {"generation_config": {}, "use_model_defaults": False})
    with pytest.raises(ValueError, match=r"^option generation_config is not supported: give its entries as options$"):
        WRITER.with_values({"generation_config": {"max_new_tokens": 3}})
    with pytest.raises(ValueError, match="generation_config is not supported by this model: export it again"):
        read(TextGeneration(vocab_size=9), {"generation_config": {}})


def test_the_readme_names_what_is_not_supported() -> None:
    lines = [
        line for line in DOCUMENTED.read_text(encoding="utf-8").splitlines() if "what is not supported is a `ValueError`" in line
    ]
    assert len(lines) == 1
    named = set(re.findall(r"`(\w+)`", lines[0]))
    assert {*UNSUPPORTED, *ARGUMENTS[1:]} <= named
    assert all(is_known(name) for name in named - {"ValueError", "text", "generation", "summarization", "translation"})
