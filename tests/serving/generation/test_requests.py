"""What a request may hold: inputs, options, text and messages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from serving.runtime.generation.engine_settings import TextSettings
from serving.runtime.generation.generation_options import GenerationOptions
from serving.runtime.generation.prompt_reader import CHARACTERS_PER_TOKEN, CHAT_TEMPLATE, PromptReader
from serving.runtime.generation.request_reader import RequestFields, read_fields
from tests.helpers.checkpoints import make_tokenizer

DEFAULTS = GenerationOptions(max_new_tokens=256, do_sample=True)


def read(parameters: object = "", sampling: bytes = b"", **flags: bool) -> RequestFields:
    text = parameters if isinstance(parameters, str) else json.dumps(parameters)
    return read_fields(flags, sampling, text, DEFAULTS, vocab_size=100)


def test_inputs_mean_what_they_mean_in_vllm() -> None:
    plain = read()
    assert plain.prepend_input and not (plain.stream or plain.messages or plain.finish_reason or plain.num_output_tokens)
    assert plain.options == DEFAULTS
    assert not read(exclude_input_in_output=True).prepend_input
    assert not read(stream=True).prepend_input and not read({"messages": True}).prepend_input
    assert not read(stream=True, exclude_input_in_output=True).prepend_input
    assert read(return_finish_reason=True, return_num_output_tokens=True).finish_reason
    asked = read({"top_k": 5, "stop": '["a"]'}, b'{"max_tokens": 7, "suppress_tokens": [1]}').options
    assert (asked.top_k, asked.max_new_tokens, asked.suppress_tokens, asked.stop_strings) == (5, 7, (1,), ("a",))


@pytest.mark.parametrize(
    ("parameters", "sampling", "flags", "named"),
    [
        ({}, b"", {"stream": True, "exclude_input_in_output": False}, "exclude_input_in_output"),
        ({"messages": True}, b"", {"exclude_input_in_output": False}, "exclude_input_in_output"),
        ({"messages": "yes"}, b"", {}, "messages"),
        ({"num_return_sequences": 2}, b"", {"stream": True}, "num_return_sequences"),
        ({"num_beams": 2, "do_sample": False}, b"", {"stream": True}, "num_beams"),
        ({}, b"{", {}, "sampling_parameters"),
        ({}, b"[1]", {}, "sampling_parameters"),
        ({}, b'{"a":' * 50_000, {}, "sampling_parameters"),
        ({}, b'{"stop": "\xff"}', {}, "sampling_parameters"),
        ({}, b'{"top_p": NaN}', {}, "top_p"),
        ({"top_k": 5}, b'{"top_k": 5}', {}, "top_k is given twice"),
        ({"nothing": 5}, b"", {}, "nothing"),
    ],
)
def test_a_wrong_request_is_refused_by_name(parameters: object, sampling: bytes, flags: dict[str, bool], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        read(parameters, sampling, **flags)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_tokenizer("bpe").backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_texts_are_tokenized_with_special_tokens_and_conversations_by_their_template(folder: Path) -> None:
    tokenizer = make_tokenizer("bpe")
    reader = PromptReader(folder, TextSettings(), capacity=64)
    prompt = reader.read(b"a good film", messages=False)
    assert prompt.text == "a good film" and prompt.tokens.tolist() == tokenizer("a good film").input_ids
    with pytest.raises(ValueError, match="no chat template"):
        reader.read(b'[{"role": "user", "content": "a"}]', messages=True)
    (folder / CHAT_TEMPLATE).write_text("{{ bos_token }}{{ messages[0].content }}", encoding="utf-8")
    reader = PromptReader(folder, TextSettings(template_tokens={"bos_token": "<s>"}), capacity=64)
    prompt = reader.read('[{"role": "user", "content": "a 好"}]'.encode(), messages=True)
    assert prompt.text == "<s>a 好" and prompt.tokens.tolist() == tokenizer("<s>a 好", add_special_tokens=False).input_ids


def test_a_text_that_cannot_be_a_prompt_is_refused(folder: Path) -> None:
    reader = PromptReader(folder, TextSettings(), capacity=64)
    with pytest.raises(ValueError, match="byte 2 is not valid UTF-8"):
        reader.read(b"ab\xff", messages=False)
    with pytest.raises(ValueError, match=f"4097 characters.*{CHARACTERS_PER_TOKEN * 64} at most.*64 tokens"):
        reader.read(b"a" * 4097, messages=False)


@pytest.mark.parametrize("bos", [None, 3])
def test_a_text_without_tokens_begins_as_in_transformers(folder: Path, bos: int | None) -> None:
    raw = make_tokenizer("bpe").backend_tokenizer
    raw.post_processor = None
    raw.save(str(folder / "tokenizer.json"))
    reader = PromptReader(folder, TextSettings(bos_token_id=bos), capacity=64)
    if bos is None:
        with pytest.raises(ValueError, match="text_input has no tokens"):
            reader.read(b"", messages=False)
    else:
        assert reader.read(b"", messages=False).tokens.tolist() == [3]
