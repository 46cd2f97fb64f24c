"""What a request may hold: inputs, options, text and messages."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from serving.runtime.generation.prompt_reader import CHARACTERS_PER_TOKEN, CHAT_TEMPLATE, PromptReader
from serving.runtime.generation.request_reader import RequestFields, read_fields
from serving.runtime.tasks.text_generation import TextGeneration
from tests.helpers.checkpoints import make_tokenizer

DEFAULTS = TextGeneration(vocab_size=100, generation={"max_new_tokens": 256, "do_sample": True})


def read(parameters: object = "", sampling: bytes = b"", **flags: bool) -> RequestFields:
    text = parameters if isinstance(parameters, str) else json.dumps(parameters)
    return read_fields(flags, sampling, text, DEFAULTS)


def test_inputs_mean_what_they_mean_in_vllm() -> None:
    plain = read()
    assert plain.prepend_input and not (plain.stream or plain.task.messages or plain.finish_reason or plain.num_output_tokens)
    assert plain.options == DEFAULTS.generation_options
    assert not read(exclude_input_in_output=True).prepend_input
    assert not read(stream=True).prepend_input and not read({"messages": True}).prepend_input
    assert read({"messages": True}, exclude_input_in_output=False).prepend_input
    assert not read(stream=True, exclude_input_in_output=True).prepend_input
    assert read(return_finish_reason=True, return_num_output_tokens=True).finish_reason
    asked = read({"top_k": 5, "stop": '["a"]'}, b'{"max_tokens": 7, "suppress_tokens": [1]}').options
    assert (asked.top_k, asked.max_new_tokens, asked.suppress_tokens, asked.stop_strings) == (5, 7, (1,), ("a",))


def test_the_id_of_a_request_is_no_option() -> None:
    """At ``generate``, Triton gives it as a parameter."""
    assert read({"id": "7", "top_k": 5}).given == {"top_k": 5}
    for given in (7, True):
        with pytest.raises(ValueError, match=r"^id must be a string$"):
            read({"id": given})
    with pytest.raises(ValueError, match="option id is unknown"):
        read(sampling=b'{"id": "7"}')


def test_objects_are_json_in_the_sampling_parameters() -> None:
    sampling = b'{"cache_config": {"a": 1}, "compile_config": null, "chat_template_kwargs": {"enable_thinking": false}}'
    asked = read({"messages": True, "use_cache": False, "pad_token_id": 3}, sampling)
    assert asked.options == DEFAULTS.generation_options
    assert asked.task.chat_template_kwargs == {"enable_thinking": False}
    assert read({"chat_template_kwargs": '{"x": 1.5}'}).task.chat_template_kwargs == {"x": 1.5}


@pytest.mark.parametrize(
    ("parameters", "sampling", "flags", "named"),
    [
        ({}, b"", {"stream": True, "exclude_input_in_output": False}, "exclude_input_in_output"),
        ({"messages": "yes"}, b"", {}, "messages"),
        ({"num_return_sequences": 2}, b"", {"stream": True}, "num_return_sequences"),
        ({"num_beams": 2, "do_sample": False}, b"", {"stream": True}, "num_beams"),
        ({"n": 2}, b"", {"stream": True}, "option n of more than 1"),
        ({}, b"{", {}, "sampling_parameters is not JSON: Expecting"),
        ({}, b"[1]", {}, "sampling_parameters must be a JSON object"),
        ({}, b'{"a":' * 50_000, {}, "^sampling_parameters is nested too deeply$"),
        ({}, b"[" * 100_000, {}, "^sampling_parameters is nested too deeply$"),
        ("[" * 100_000, b"", {}, "^parameters is nested too deeply$"),
        ({}, b'{"stop": "\xff"}', {}, "^sampling_parameters: byte 10 is not valid UTF-8$"),
        ({}, b'{"max_length": ' + b"9" * 6000 + b"}", {}, "^sampling_parameters has a number with too many digits$"),
        ({"timeout": 2**63}, b"", {}, "timeout must be 9223372036854775807 or less"),
        ({}, b'{"top_p": NaN}', {}, "top_p"),
        ({"top_k": 5}, b'{"top_k": 6}', {}, "top_k is given twice"),
        ({"nothing": 5}, b"", {}, "nothing"),
        (
            {},
            b'{"generation_config": {"max_new_tokens": 5}}',
            {},
            "generation_config is not supported: give its entries as options",
        ),
        ({"chat_template_kwargs": "{"}, b"", {}, "option chat_template_kwargs is not JSON"),
        ({"max_time": -1}, b"", {}, "option max_time must be 0 or more"),
    ],
)
def test_a_wrong_request_is_refused_by_name(parameters: object, sampling: bytes, flags: dict[str, bool], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        read(parameters, sampling, **flags)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_tokenizer("bpe").backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


CHAT = b'[{"role": "user", "content": "a"}]'


def reader_of(folder: Path, task: TextGeneration = DEFAULTS, capacity: int = 64) -> PromptReader:
    return PromptReader(folder, task, capacity=capacity, split_special_tokens=False)


def test_texts_are_tokenized_with_special_tokens_and_conversations_by_their_template(folder: Path) -> None:
    tokenizer = make_tokenizer("bpe")
    prompt = reader_of(folder).read(b"a good film", DEFAULTS)
    assert prompt.text == "a good film" and prompt.tokens.tolist() == tokenizer("a good film").input_ids
    plain = DEFAULTS.with_options({"add_special_tokens": False, "prefix": "a "})
    prompt = reader_of(folder).read(b"good film", plain)
    assert prompt.text == "good film"
    assert prompt.tokens.tolist() == tokenizer("a good film", add_special_tokens=False).input_ids
    with pytest.raises(ValueError, match="no chat template"):
        reader_of(folder).read(CHAT, DEFAULTS.with_options({"messages": True}))
    (folder / CHAT_TEMPLATE).write_text(
        "{{ bos_token }}{{ messages[0].content }}{% if add_generation_prompt %}:{% endif %}", encoding="utf-8"
    )
    task = replace(DEFAULTS, special_tokens={"bos_token": "<s>"}, messages=True)
    prompt = reader_of(folder, task).read('[{"role": "user", "content": "a 好"}]'.encode(), task)
    assert prompt.text == "<s>a 好:" and prompt.tokens.tolist() == tokenizer("<s>a 好:", add_special_tokens=False).input_ids
    assert reader_of(folder, task).read(CHAT, replace(task, continue_final_message=True)).text == "<s>a"


def test_a_long_text_is_cut_as_the_request_says(folder: Path) -> None:
    tokenizer = make_tokenizer("bpe")
    reader = reader_of(folder, capacity=20)
    text = "a b c d e f g h i j k l m n o p q r s t u v"
    whole = tokenizer(text, add_special_tokens=False).input_ids
    assert len(reader.read(text.encode(), DEFAULTS).tokens) > 20, "whoever reads the prompt refuses it"
    cut = DEFAULTS.with_options({"truncation": True, "add_special_tokens": False})
    assert reader.read(text.encode(), cut).tokens.tolist() == whole[:10]
    asked = DEFAULTS.with_options({"truncation": True, "add_special_tokens": False, "max_new_tokens": 8})
    assert reader.read(text.encode(), asked).tokens.tolist() == whole[:12]
    assert reader.read(b"a b", asked).tokens.tolist() == whole[:2]
    with pytest.raises(ValueError, match="leaves no room for a prompt"):
        reader.read(text.encode(), DEFAULTS.with_options({"truncation": True, "max_new_tokens": 20}))
    hole = DEFAULTS.with_options({"handle_long_generation": "hole", "add_special_tokens": False, "max_new_tokens": 8})
    assert reader.read(text.encode(), hole).tokens.tolist() == whole[-12:]
    assert reader.read(b"a b", hole).tokens.tolist() == whole[:2]
    for parameters, limit in [
        ({}, "max_new_tokens"),
        ({"max_new_tokens": 20}, "max_new_tokens"),
        ({"max_tokens": 20}, "max_tokens"),
    ]:
        with pytest.raises(ValueError, match=f"handle_long_generation needs {limit} from 1 to 19"):
            reader.read(text.encode(), DEFAULTS.with_options({"handle_long_generation": "hole", **parameters}))


def test_a_text_that_cannot_be_a_prompt_is_refused(folder: Path) -> None:
    reader = reader_of(folder)
    with pytest.raises(ValueError, match="byte 2 is not valid UTF-8"):
        reader.read(b"ab\xff", DEFAULTS)
    with pytest.raises(ValueError, match=f"4097 characters.*{CHARACTERS_PER_TOKEN * 64} at most.*64 tokens"):
        reader.read(b"a" * 4097, DEFAULTS)


@pytest.mark.parametrize("bos", [None, 3])
def test_a_text_without_tokens_begins_as_in_transformers(folder: Path, bos: int | None) -> None:
    raw = make_tokenizer("bpe").backend_tokenizer
    raw.post_processor = None
    raw.save(str(folder / "tokenizer.json"))
    task = replace(DEFAULTS, bos_token_id=bos)
    if bos is None:
        with pytest.raises(ValueError, match="text_input has no tokens"):
            reader_of(folder).read(b"", task)
    else:
        assert reader_of(folder).read(b"", task).tokens.tolist() == [3]


def test_the_answer_fits_behind_a_prompt_that_is_truncated(folder: Path) -> None:
    reader, text = reader_of(folder, capacity=20), b"a b c d e f g h i j k l m n o p q r s t u v"

    def room(**parameters: object) -> int:
        task = replace(DEFAULTS, generation=parameters.pop("defaults", {}))  # type: ignore[arg-type]
        given = {"truncation": True, "add_special_tokens": False, **parameters}
        chosen = task.with_options(given)  # type: ignore[arg-type]
        count = len(reader.read(text, chosen).tokens)
        chosen.generation_options.max_total_length(count, capacity=20)
        return count

    assert room(max_new_tokens=8) == 12, "what is asked for fits whole"
    assert room(defaults={"max_new_tokens": 4}) == 16
    assert room(defaults={"max_new_tokens": 256}) == 10, "a default has half of the capacity at most"
    assert room() == 10, "the default of transformers is 20 tokens"
    assert room(max_length=12) == room(defaults={"max_length": 12}) == 6, "it counts the prompt: half is for the answer"
    assert room(defaults={"max_new_tokens": 4}, max_length=2) == 1
    with pytest.raises(ValueError, match="max_new_tokens of 20 leaves no room for a prompt: this model holds 20 tokens"):
        room(max_new_tokens=20)


@pytest.mark.parametrize("template", ["{{ messages[0].content }}", "{{ messages | tojson }}", "{{ messages[0].content + 1 }}"])
def test_messages_that_are_no_text_are_refused(folder: Path, template: str) -> None:
    (folder / CHAT_TEMPLATE).write_text(template, encoding="utf-8")
    task = DEFAULTS.with_options({"messages": True})
    reader = reader_of(folder, task)
    for role in ("user", "assistant"):
        for content in (
            '"\\ud83d"',
            "NaN",
            "1e999",
            "9" * 6000,
            "[" * 10_000,
            *("[" * depth + "]" * depth for depth in (500, 990)),
        ):
            raw = f'[{{"role": "{role}", "content": {content}}}]'
            try:
                assert len(reader.read(raw.encode(), task).tokens)
            except ValueError as error:
                assert len(str(error)) <= 500
                assert "recursion" not in str(error) and "sys." not in str(error)
    with pytest.raises(ValueError, match=r"half of a surrogate pair|cannot use the messages"):
        reader.read(b'[{"role": "user", "content": "a \\ud83d"}]', task)
