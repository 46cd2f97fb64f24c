"""``TritonPipeline`` of a model that generates text equals ``transformers.pipeline``: inputs, options, answers and errors."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from transformers import GenerationConfig, pipeline

from serving.client import AsyncTritonPipeline, TritonPipeline
from serving.errors import InvalidArgumentError
from tests.serving.generation.conftest import Generating

GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 12}
TEXTS = ["Once upon a time", "The cat , the dog", "", "Tom said", "🎬 naïve 好"]
CHAT = [{"role": "user", "content": "Tell a story."}]
PREFILL = [*CHAT, {"role": "assistant", "content": "Once upon"}]


@pytest.fixture(scope="module", params=["grpc", "http"])
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def stories(generating: Generating, protocol: str) -> Iterator[TritonPipeline]:
    with generating.client(protocol) as pipe:
        yield pipe


@pytest.fixture
def chat(generating: Generating, protocol: str) -> Iterator[TritonPipeline]:
    with generating.client(protocol, "chat") as pipe:
        yield pipe


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"return_full_text": False},
        {"return_full_text": True, "clean_up_tokenization_spaces": False},
        {"return_tensors": True},
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 2},
        {"num_beams": 2, "num_return_sequences": 2, "return_tensors": True},
        {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
        {"min_new_tokens": 5, "eos_token_id": [411, 13]},
        {"stop_sequence": "was"},
        {"prefix": "Hello. "},
        {"add_special_tokens": False, "bad_words_ids": [[403], [261, 376]]},
        {"handle_long_generation": "hole"},
        {"max_new_tokens": None, "max_length": 30},
        {"truncation": True},
    ],
    ids=str,
)
def test_answers_to_a_list_are_the_pipelines(generating: Generating, stories: TritonPipeline, options: dict[str, Any]) -> None:
    asked = GREEDY | options
    assert stories(TEXTS, **asked) == generating.pipelines["stories"](TEXTS, **asked)


@pytest.mark.parametrize(
    "options",
    [
        {"pad_token_id": 0},
        {"pad_token_id": 5, "num_beams": 2, "num_return_sequences": 2, "eos_token_id": [411, 13], "return_tensors": True},
        {"pad_token_id": None, "num_beams": 2, "num_return_sequences": 2, "eos_token_id": [411, 13], "return_tensors": True},
        {"bos_token_id": 411},
        {"use_cache": False, "low_memory": False, "disable_compile": True, "remove_invalid_values": True, "synced_gpus": False},
        {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 2},
        {"cache_implementation": "static", "max_time": 600},
        {"max_time": 0},
        {"max_time": 0, "num_beams": 2},
        GenerationConfig(num_beams=2, max_length=30).to_dict(),
    ],
    ids=lambda options: str(options)[:60],
)
def test_options_that_ask_for_nothing_special(generating: Generating, stories: TritonPipeline, options: dict[str, Any]) -> None:
    asked = GREEDY | options
    texts = [text for text in TEXTS if text or "prompt_lookup_num_tokens" not in options]
    assert stories(texts, **asked) == generating.pipelines["stories"](texts, **asked)


@pytest.mark.parametrize(
    ("name", "config", "options"),
    [
        ("stories", {}, {}),
        ("stories", {"max_new_tokens": 5}, {}),
        ("stories", {"max_length": 30}, {}),
        ("stories", {"max_length": 30}, {"max_new_tokens": 6}),
        ("stories", {"max_new_tokens": 30, "max_length": 50}, {"max_new_tokens": None}),
        ("stories", {"num_beams": 2, "num_return_sequences": 2, "max_new_tokens": 7}, {"eos_token_id": [411, 13]}),
        ("stories", {"do_sample": True, "top_k": 1, "max_new_tokens": 7}, {"bad_words_ids": None}),
        ("stories", {"max_new_tokens": 7, "no_repeat_ngram_size": 3}, {"prefix": "Tom said"}),
        ("limited", {"max_new_tokens": 13}, {}),
        ("limited", {"max_length": 30}, {"max_new_tokens": 13}),
        ("limited", {"max_new_tokens": 14, "use_cache": False, "pad_token_id": 3}, {"repetition_penalty": 1.3}),
        ("limited", {"max_new_tokens": 14, "no_repeat_ngram_size": 3}, {"no_repeat_ngram_size": 0}),
    ],
    ids=str,
)
def test_a_generation_config_is_that_of_the_pipeline(
    generating: Generating, protocol: str, name: str, config: dict[str, Any], options: dict[str, Any]
) -> None:
    asked = {"generation_config": GenerationConfig(**config), "return_tensors": True, **options}
    expected = generating.pipelines[name](TEXTS[:2], **asked)
    with generating.client(protocol, name, repetition_penalty=1.9) as pipe:
        assert pipe(TEXTS[:2], **asked) == expected
        assert pipe(TEXTS[:2], **asked | {"generation_config": config}) == expected


def test_a_generation_config_beside_a_prefix_says_how_long_an_answer_is(generating: Generating, protocol: str) -> None:
    with generating.client(protocol, "limited") as pipe:
        for config in ({"max_length": 30}, {"max_new_tokens": 20, "min_length": 7}):
            with pytest.raises(ValueError, match="generation_config needs max_new_tokens, and no min_length"):
                pipe(TEXTS[0], generation_config=config)
        pipe(TEXTS[0], generation_config={"temperature": 0.5}, max_tokens=3)
    with (
        generating.client(protocol, "limited", generation_config={"max_length": 30}) as pipe,
        pytest.raises(ValueError, match="generation_config needs max_new_tokens, and no min_length"),
    ):
        pipe(TEXTS[0], generation_config=None)


def test_an_asynchronous_client_takes_a_generation_config(generating: Generating, protocol: str) -> None:
    config = GenerationConfig(max_new_tokens=5)

    async def ask() -> Any:
        async with AsyncTritonPipeline(
            "stories", url=generating.url(protocol), protocol=protocol, generation_config=config
        ) as pipe:
            return await pipe(TEXTS[0]), "".join([piece async for piece in pipe.stream_text(TEXTS[0])])

    answer, streamed = asyncio.run(ask())
    assert answer == generating.pipelines["stories"](TEXTS[0], generation_config=config)
    assert answer[0]["generated_text"] == TEXTS[0] + streamed


def test_an_answer_ends_after_its_time(generating: Generating, protocol: str) -> None:
    with generating.client(protocol, "slow") as pipe:
        asked = {"do_sample": False, "return_full_text": False, "max_new_tokens": 250, "eos_token_id": None}
        (answer,) = pipe("Once", max_time=0.4, **asked)
        pieces = list(pipe.stream_text("Once", max_time=0.4, **asked))
        whole = pipe("Once", **asked | {"max_new_tokens": 30})[0]["generated_text"]
    assert 1 <= len(pieces) <= 25
    assert all(whole.startswith(text) for text in (answer["generated_text"], "".join(pieces)))
    assert 0 < len(answer["generated_text"]) < len(whole)


PREFIX = {"prefix": "Once there was a big dog."}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prefix": ""},
        PREFIX,
        PREFIX | {"add_special_tokens": True},
        PREFIX | {"max_length": 50},
        PREFIX | {"max_length": 50, "max_new_tokens": None},
        PREFIX | {"max_new_tokens": 15},
        PREFIX | {"max_new_tokens": None},
        PREFIX | {"min_length": 35, "eos_token_id": [411, 13], "min_new_tokens": None},
        {"min_length": 25, "eos_token_id": [411, 13]},
        {"min_length": 3, "eos_token_id": [411, 13]},
        {"min_new_tokens": 2, "min_length": 25, "eos_token_id": [411, 13]},
        {"eos_token_id": [411, 13], "min_new_tokens": None},
        {"eos_token_id": None},
        {"max_new_tokens": None},
        {"max_length": None},
        {"no_repeat_ngram_size": None},
        {"bad_words_ids": None, "suppress_tokens": None},
        {"forced_eos_token_id": None, "stop_strings": None},
        {"do_sample": True, "top_k": 1},
        {"num_beams": 2, "bad_words_ids": None},
    ],
    ids=str,
)
def test_lengths_and_none_are_those_of_the_pipeline(generating: Generating, protocol: str, options: dict[str, Any]) -> None:
    asked = {"do_sample": False, "return_tensors": True, **options}
    expected = generating.pipelines["limited"](TEXTS[:2], **asked)
    with generating.client(protocol, "limited") as pipe:
        assert pipe(TEXTS[:2], **asked) == expected


def test_none_undoes_a_default_of_the_client(generating: Generating, protocol: str) -> None:
    own = {"bad_words_ids": [[432]], "eos_token_id": [410], "no_repeat_ngram_size": 3}
    none = dict.fromkeys(own)
    expected = generating.pipelines["stories"](TEXTS[0], **GREEDY | none)
    with generating.client(protocol, **own) as pipe:
        assert pipe(TEXTS[0], **GREEDY | none) == expected != pipe(TEXTS[0], **GREEDY)


def test_a_stop_string_that_is_json_is_a_text(generating: Generating, stories: TritonPipeline) -> None:
    for text in ("[]", '["a"]'):  # the second one has a letter that the answer has too
        assert stories(TEXTS[0], stop_strings=text, **GREEDY) == generating.pipelines["stories"](TEXTS[0], **GREEDY)


@pytest.mark.parametrize("inputs", [TEXTS[0], [TEXTS[0]], TEXTS[:2]], ids=["text", "list of one", "list"])
def test_forms_of_texts(generating: Generating, stories: TritonPipeline, inputs: object) -> None:
    assert stories(inputs, **GREEDY) == generating.pipelines["stories"](inputs, **GREEDY)
    assert stories(text_inputs=inputs, **GREEDY) == generating.pipelines["stories"](text_inputs=inputs, **GREEDY)


@pytest.mark.parametrize("inputs", [CHAT, PREFILL, [CHAT, PREFILL], (CHAT[0],), [CHAT]], ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, {"return_full_text": False}, {"continue_final_message": False}, {"return_tensors": True}, {"num_beams": 2}],
    ids=str,
)
def test_chats(generating: Generating, chat: TritonPipeline, inputs: Any, options: dict[str, Any]) -> None:
    asked = GREEDY | options
    assert chat(inputs, **asked) == generating.pipelines["chat"](inputs, **asked)


@pytest.mark.parametrize("inputs", [CHAT, [CHAT, PREFILL]], ids=["chat", "chats"])
@pytest.mark.parametrize(
    ("variables", "differs"),
    [
        ({}, False),
        ({"enable_thinking": False}, True),
        ({"enable_thinking": True, "unused": None}, False),
        ({"mood": " happy é"}, True),
        ({"mood": 1.5}, False),
    ],
    ids=str,
)
def test_variables_of_the_template(
    generating: Generating, chat: TritonPipeline, inputs: Any, variables: dict[str, Any], differs: bool
) -> None:
    asked = GREEDY | {"return_tensors": True}
    expected = generating.pipelines["chat"](inputs, tokenizer_encode_kwargs=variables, **asked)
    assert chat(inputs, tokenizer_encode_kwargs=variables, **asked) == expected
    assert chat(inputs, chat_template_kwargs=variables, **asked) == expected
    assert (chat(inputs, **asked) != expected) is differs


def test_variables_of_a_client_hold_for_its_calls(generating: Generating, protocol: str) -> None:
    expected = generating.pipelines["chat"](CHAT, tokenizer_encode_kwargs={"mood": " sad"}, **GREEDY)
    with generating.client(protocol, "chat", tokenizer_encode_kwargs={"mood": " sad"}, **GREEDY) as pipe:
        assert pipe(CHAT) == expected
        assert "".join(pipe.stream_text(CHAT)) == expected[0]["generated_text"][-1]["content"]
        with pytest.raises(
            InvalidArgumentError, match="option chat_template_kwargs needs messages: a text alone has no chat template"
        ):
            pipe("Once")
        with pytest.raises(ValueError, match="cannot set bos_token, which is no variable of the template"):
            pipe(CHAT, chat_template_kwargs={"bos_token": "x"})


def test_null_as_a_parameter_of_a_request_says_that_nothing_was_given(stories: TritonPipeline) -> None:
    (expected,) = stories.tensors([["Once"]], **GREEDY)
    null = dict.fromkeys(("pad_token_id", "bos_token_id", "chat_template_kwargs"), "null")
    (found,) = stories.tensors([["Once"]], **null, **GREEDY)
    assert found["text_output"].tolist() == expected["text_output"].tolist()


def test_names_of_vllm_win_and_lose_as_the_others(generating: Generating, protocol: str) -> None:
    for own, given in (({"max_tokens": 2}, {"max_new_tokens": 3}), ({"max_new_tokens": 2}, {"max_tokens": 3})):
        with generating.client(protocol, do_sample=False, return_full_text=False, **own) as pipe:
            expected = generating.pipelines["stories"](TEXTS[0], do_sample=False, return_full_text=False, max_new_tokens=3)
            assert pipe(TEXTS[0], **given) == expected
            assert pipe(TEXTS[0], generation_config={"max_tokens": 3}) == expected
            (found,) = pipe.tensors([[TEXTS[0]]], **given)
            assert found["num_output_tokens"].tolist() == [3]


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"chat_template_kwargs": {"x": "\ud800"}}, "chat_template_kwargs"),
        ({"tokenizer_encode_kwargs": {"x": "\ud800"}}, "chat_template_kwargs"),
        ({"prefix": "\ud800"}, "prefix"),
        ({"stop_sequence": "\ud800"}, "stop_sequence"),
        ({"stop_strings": "\ud800"}, "stop_strings"),
    ],
    ids=["variables", "tokenizer", "prefix", "stop_sequence", "stop_strings"],
)
def test_half_of_a_surrogate_pair_is_refused_before_anything_is_sent(
    generating: Generating, chat: TritonPipeline, protocol: str, given: dict[str, Any], name: str
) -> None:
    async def ask() -> None:
        async with AsyncTritonPipeline("chat", url=generating.url(protocol), protocol=protocol) as pipe:  # type: ignore[arg-type]
            await pipe(CHAT, **given)

    for refused in (lambda: chat(CHAT, **given), lambda: list(chat.stream_text(CHAT, **given)), lambda: asyncio.run(ask())):
        with pytest.raises(ValueError, match=f"option {name} holds half of a surrogate pair"):
            refused()


def test_half_of_a_surrogate_pair_is_refused_in_parameters_of_tensors(stories: TritonPipeline) -> None:
    with pytest.raises(ValueError, match="option prefix holds half of a surrogate pair"):
        stories.tensors([["Once"]], prefix="\ud800")


LENGTHS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("stories", {"max_length": 14}, {}),
    ("stories", {"max_length": 14}, {"max_length": 17}),
    ("stories", {"max_length": 14}, {"max_new_tokens": 3}),
    ("stories", {"max_length": 14}, {"max_new_tokens": None}),
    ("stories", {"max_length": 14}, {"prefix": "Tom said"}),
    ("stories", {"max_length": 17, "max_new_tokens": 256}, {}),
    ("stories", {"max_length": 14, "max_new_tokens": 4}, {}),
    ("stories", {"max_length": 14, "max_new_tokens": 4}, {"max_new_tokens": None}),
    ("limited", {"max_length": 30}, {}),
]


@pytest.mark.filterwarnings("ignore:max_length is ignored")
@pytest.mark.parametrize(("name", "own", "options"), LENGTHS, ids=str)
def test_a_length_of_the_construction_is_that_of_the_pipeline(
    generating: Generating, protocol: str, name: str, own: dict[str, Any], options: dict[str, Any]
) -> None:
    asked = {"return_tensors": True, **options}
    made = pipeline("text-generation", model=str(generating.checkpoints[name]), device=-1, do_sample=False, **own)
    with generating.client(protocol, name, do_sample=False, **own) as pipe:
        assert pipe(TEXTS[:2], **asked) == made(TEXTS[:2], **asked)


def test_a_length_of_the_construction_holds_for_chats_and_asynchronous_clients(generating: Generating, protocol: str) -> None:
    own: dict[str, Any] = {"do_sample": False, "max_length": 40}
    expected = pipeline("text-generation", model=str(generating.checkpoints["chat"]), device=-1, **own)(CHAT)

    async def ask() -> Any:
        async with AsyncTritonPipeline("chat", url=generating.url(protocol), protocol=protocol, **own) as pipe:  # type: ignore[arg-type]
            return await pipe(CHAT)

    assert asyncio.run(ask()) == expected
    with generating.client(protocol, "chat", **own) as pipe:
        assert pipe(CHAT) == expected
        assert "".join(pipe.stream_text(CHAT)) == expected[0]["generated_text"][-1]["content"]


def test_a_generator_is_read_one_by_one(generating: Generating, stories: TritonPipeline) -> None:
    def texts() -> Iterator[str]:
        yield from TEXTS

    assert list(stories(texts(), **GREEDY)) == list(generating.pipelines["stories"](texts(), **GREEDY))


def test_defaults_of_the_client_are_those_of_its_calls(generating: Generating, protocol: str) -> None:
    with generating.client(protocol, return_full_text=False, **GREEDY) as pipe:
        assert pipe(TEXTS[0]) == generating.pipelines["stories"](TEXTS[0], return_full_text=False, **GREEDY)
        assert pipe.task == "text-generation" and pipe.model.config.vocab_size == 512


def test_a_seed_repeats_a_sample(stories: TritonPipeline) -> None:
    asked = {"max_new_tokens": 8, "temperature": 2.0, "return_full_text": False}
    first = stories("Once", seed=7, **asked)
    assert stories("Once", seed=7, **asked) == first
    assert len({str(stories("Once", seed=seed, **asked)) for seed in range(4)}) > 1
    assert len({one["generated_text"] for one in stories("Once", seed=7, num_return_sequences=3, **asked)}) > 1


@pytest.mark.parametrize(
    ("inputs", "options"),
    [
        ([], {}),
        (None, {}),
        ([1], {}),
        (("a", "b"), {}),
        ({"text": "a"}, {}),
        (["a", CHAT], {}),
        ([CHAT, "a"], {}),
        ([{"role": "user"}], {}),
        (CHAT, {}),  # there is no chat template
        ("a", {"colour": 1}),
        ("a", {"top_k": "many"}),
        ("a", {"temperature": -1.0, "do_sample": True}),
        ("a", {"max_new_tokens": 0}),
        ("a", {"num_return_sequences": 2}),
        ("a", {"handle_long_generation": "cut"}),
        ("a", {"return_full_text": True, "return_tensors": True}),
        ("a", {"max_new_tokens": None, "max_length": 1}),
        ("a", {"num_beams": None}),
        ("a", {"early_stopping": None}),
        ("a", {"num_beams": 2, "length_penalty": None}),
        ("a", {"num_beams": 2, "num_return_sequences": None}),
    ],
    ids=str,
)
def test_errors_are_of_the_pipelines_classes(
    generating: Generating, stories: TritonPipeline, inputs: Any, options: dict[str, Any]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(Exception) as expected:
            generating.pipelines["stories"](inputs, **GREEDY | options)
    with pytest.raises(expected.type):
        stories(inputs, **GREEDY | options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"typical_p": 0.5}, "option typical_p is not supported"),
        ({"num_beams": 2, "stop_strings": ["a"]}, "option stop_strings is not supported with num_beams"),
        ({"skip_special_tokens": False}, "option skip_special_tokens is not supported"),
        ({"tokenizer_encode_kwargs": {"max_length": 4}}, "option tokenizer_encode_kwargs cannot set max_length"),
        ({"streamer": print}, "option streamer is not supported"),
    ],
    ids=lambda given: str(given) if isinstance(given, str) else "-".join(given),
)
def test_what_is_not_supported_is_refused_by_name(stories: TritonPipeline, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stories("a", **GREEDY | options)


def test_the_server_refuses_what_does_not_fit(stories: TritonPipeline) -> None:
    with pytest.raises(InvalidArgumentError, match="asks for 400 tokens") as refused:
        stories("Once", max_new_tokens=400)
    assert refused.value.status == "INVALID_ARGUMENT"
    assert stories("Once", **GREEDY), "the client goes on"


def test_many_prompts_run_at_the_same_time_and_stay_in_order(generating: Generating, protocol: str) -> None:
    texts = [f"{text} {number}" for number in range(6) for text in TEXTS]
    with generating.client(protocol, concurrency=8) as pipe:
        assert pipe(texts, **GREEDY) == generating.pipelines["stories"](texts, **GREEDY)


def test_the_tensors_of_a_request(stories: TritonPipeline) -> None:
    (found,) = stories.tensors([["Once upon"]], max_new_tokens=4, do_sample=False)
    assert found["num_output_tokens"].tolist() == [4] and found["token_ids"].shape == (4,)
    assert found["finish_reason"].tolist() == [b"length"]


@pytest.mark.parametrize("more", [{"max_new_tokens": 4}, {"generation_config": {"max_new_tokens": 4}}])
def test_options_of_the_construction_hold_for_tensors(generating: Generating, protocol: str, more: dict[str, Any]) -> None:
    with generating.client(protocol, do_sample=False, return_full_text=False, **more) as pipe:
        assert [
            pipe.tensors([["Once upon"]], **given)[0]["num_output_tokens"].tolist() for given in ({}, {"max_new_tokens": 2})
        ] == [
            [4],
            [2],
        ]


def test_the_rows_of_tensors_and_streams_are_no_letters_and_no_keys(stories: TritonPipeline, chat: TritonPipeline) -> None:
    for rows in ("Once upon", ["Once upon"], [{"text_input": "Once"}], {"text_input": "Once"}, [[1]], [b"Once"], 1):
        with pytest.raises(TypeError, match=r'rows must be sequences of texts, such as \[\["a text"\]\]'):
            stories.tensors(rows)  # type: ignore[arg-type]
    for row in (["a", "b"], []):
        with pytest.raises(ValueError, match="a row must have a text for each of text_input, not"):
            stories.tensors([row])
    (found,) = chat.tensors([(json.dumps(CHAT), "messages")], max_new_tokens=2, do_sample=False)
    assert found["num_output_tokens"].tolist() == [2]
    for inputs in ("Once upon", {"text": "Once"}):
        for stream in (stories.stream, stories.stream_marked):
            with pytest.raises(TypeError, match="inputs must be several rows, such as"):
                next(stream(inputs))  # type: ignore[call-overload]


def test_asynchronous_calls(generating: Generating, protocol: str) -> None:
    async def ask() -> list[Any]:
        async with AsyncTritonPipeline("stories", url=generating.url(protocol), protocol=protocol) as pipe:  # type: ignore[arg-type]
            return [await pipe(TEXTS[0], **GREEDY), *[answer async for answer in pipe.stream(TEXTS, **GREEDY)]]

    expected = generating.pipelines["stories"]
    assert asyncio.run(ask()) == [expected(TEXTS[0], **GREEDY), *expected(TEXTS, **GREEDY)]
