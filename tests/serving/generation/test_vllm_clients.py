"""Clients that were written for Triton's vLLM backend: what they send is accepted, or refused by its name."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from tritonclient.utils import InferenceServerException

from serving.pbtxt import from_pbtxt
from serving.runtime.generation.generation_options import NEUTRAL, OPTIONS
from serving.runtime.generation.request_reader import RequestFields, read_fields
from serving.runtime.tasks.text_generation import TextGeneration
from tests.helpers.generation_server import CONFIG
from tests.helpers.text_generation import TASK
from tests.helpers.vllm_requests import (
    FRONT_END,
    SAMPLE_CLIENT,
    ask_grpc,
    ask_http,
    front_end_inputs,
    sample_client_inputs,
)
from tests.serving.generation.conftest import Generating


def read(sampling: object = None, beside: object = None, **flags: bool) -> RequestFields:
    given = b"" if sampling is None else json.dumps(sampling).encode()
    return read_fields(flags, given, "" if beside is None else json.dumps(beside), TASK)


@pytest.mark.parametrize("kind", FRONT_END)
def test_the_defaults_of_the_openai_front_end_change_only_what_they_say(kind: str) -> None:
    asked = {name: FRONT_END[kind][name] for name in ("temperature", "top_p", "max_tokens")}
    found = read(FRONT_END[kind], stream=True, return_num_input_tokens=True, return_logprobs=False)
    assert found.options == read(asked).options
    assert found.num_input_tokens and not read().num_input_tokens


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("logprobs", 0),
        ("logprobs", 1),
        ("logprobs", True),
        ("logprobs", "0"),
        ("top_logprobs", 3),
        ("logit_bias", {"5": 1}),
        ("best_of", 2),
        ("presence_penalty", 0.5),
        ("frequency_penalty", "-1"),
        ("lora_name", "dolly"),
        ("guided_decoding", "{}"),
        ("structured_outputs", "{}"),
        ("max_tokens", 0),
        ("seed", -5),
    ],
)
def test_what_the_model_does_not_do_is_refused_by_its_name(name: str, value: object) -> None:
    for given in ((FRONT_END["chat of 26.06"] | {name: value},), (None, {name: value})):
        with pytest.raises(ValueError, match=f"^option {name} "):
            read(*given)


@pytest.mark.parametrize("name", ["return_logprobs", "return_cumulative_logprob"])
def test_log_probabilities_are_refused_by_their_input(name: str) -> None:
    assert read(**{name: False}) == read()
    with pytest.raises(ValueError, match=f"^{name} cannot be true: this model gives no log probabilities$"):
        read(**{name: True})


def test_strings_write_numbers_and_booleans() -> None:
    numbers = {"temperature": 0.1, "top_p": 0.95, "max_tokens": 10}
    plain = read(numbers).options
    for given in ((SAMPLE_CLIENT,), (None, SAMPLE_CLIENT), (SAMPLE_CLIENT, SAMPLE_CLIENT), (numbers, SAMPLE_CLIENT)):
        assert read(*given).options == plain
    assert read({"temperature": "1"}).options == read({"temperature": 1}).options
    for text in (".5", "0.5", "+5e-1", "5.E-1"):
        assert read({"temperature": text}).options.temperature == 0.5
    assert read({"ignore_eos": "true", "messages": "false"}).options.eos_token_id == ()
    assert read({name: str(values[0]).lower() for name, values in NEUTRAL.items()}).options == TASK.generation_options
    assert read({"token_healing": "false", "num_beam_groups": "1"}).options == TASK.generation_options
    for text, value in (("true", True), ("false", False), ("never", "never")):
        assert read({"early_stopping": text}).options.early_stopping == value
        assert read({"early_stopping": value}, {"early_stopping": text}).options.early_stopping == value
    assert read({"stop": "7"}).options.stop_strings == ("7",), "a text stays a text"


@pytest.mark.parametrize(
    "text",
    ["", " 1", "1 ", "1\n", "1_0", "1,5", "nan", "inf", "-Infinity", "0x1", "١", "one", ".", "1e", "9" * 5000],
)  # fmt: skip
def test_other_strings_are_refused(text: str) -> None:
    for name, setting in OPTIONS.items():
        if setting.kind in (bool, int, float):
            with pytest.raises(ValueError, match=f"^option {name} must be "):
                read({name: text})
    for name in ("max_tokens", "ignore_eos"):
        for other in ("1.0", "1e1", "True", "yes"):
            with pytest.raises(ValueError, match=f"^option {name} must be "):
                read({name: other})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"max_tokens": 5}, {"max_tokens": 6}),
        ({"max_tokens": "5"}, {"max_tokens": "6"}),
        ({"max_tokens": 1}, {"max_tokens": True}),
        ({"ignore_eos": False}, {"ignore_eos": 0}),
        ({"stop": ["a"]}, {"stop": '["b"]'}),
        ({"top_k": None}, {"top_k": 5}),
    ],
)
def test_an_option_that_is_given_twice_has_one_value(one: dict[str, Any], other: dict[str, Any]) -> None:
    (name,) = one
    with pytest.raises(ValueError, match=f"^option {name} is given twice: it is .* in sampling_parameters, and .* as a parameter"):
        read(one, other)


def test_an_option_may_be_given_twice_with_the_same_value() -> None:
    for one, other in (({"stop": ["a"]}, {"stop": '["a"]'}), ({"top_k": None}, {"top_k": "null"}), ({"top_p": 1}, {"top_p": 1.0})):
        assert read(one, other).options == read(one).options


def test_null_of_what_the_model_reads_says_that_nothing_was_given() -> None:
    names = ("chat_template_kwargs", "pad_token_id", "bos_token_id")
    assert read(dict.fromkeys(names)).task == read().task
    assert read(None, dict.fromkeys(names, "null")).task == read().task
    assert read(dict.fromkeys(names), dict.fromkeys(names, "null")).task == read().task
    assert not read({"prefix": None, "add_special_tokens": True}).marks_prefix


def test_the_defaults_of_vllm_ask_for_nothing() -> None:
    for given in (
        {"detokenize": True, "spaces_between_special_tokens": True, "priority": 0},
        {"detokenize": "true", "priority": "0"},
    ):
        assert read(given).options == read(None, given).options == read().options
    for given in ({"detokenize": False}, {"spaces_between_special_tokens": False}, {"priority": 1}):
        with pytest.raises(ValueError, match=f"^option {next(iter(given))} is not supported"):
            read(given)


def test_the_model_has_the_tensors_of_the_backend_that_it_supports() -> None:
    task = TextGeneration()
    inputs = {tensor.name: (tensor.dtype, tensor.dims) for tensor in (*task.inputs(), *task.optional_inputs())}
    outputs = {tensor.name: (tensor.dtype, tensor.dims) for tensor in task.outputs()}
    texts, flags = ("text_input", "sampling_parameters"), ("stream", "exclude_input_in_output")
    returned = ("finish_reason", "num_input_tokens", "num_output_tokens", "logprobs", "cumulative_logprob")
    assert inputs == dict.fromkeys(texts, ("TYPE_STRING", (1,))) | dict.fromkeys(
        (*flags, *(f"return_{name}" for name in returned)), ("TYPE_BOOL", (1,))
    )
    assert outputs["num_input_tokens"] == ("TYPE_UINT32", (1,)) and outputs["num_output_tokens"] == ("TYPE_UINT32", (-1,))
    by_hand = from_pbtxt(CONFIG % "x")
    assert [tensor["name"] for tensor in by_hand["input"]] == list(inputs)
    assert [tensor["name"] for tensor in by_hand["output"]] == [*outputs, "DIGEST"]


def asking(generating: Generating, protocol: str) -> Callable[..., list[dict[str, Any]]]:
    """How the server is asked, whose answers have lists in place of single elements."""

    def ask(inputs: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
        url = generating.url(protocol)
        if protocol == "grpc":
            return ask_grpc(url, "stories", inputs, **more)
        return [
            {name: value if isinstance(value, list) else [value] for name, value in answer.items()}
            for answer in ask_http(url, "stories", inputs, **more)
        ]

    return ask


def text_of(answers: list[dict[str, Any]]) -> str:
    texts = [answer["text_output"][0] for answer in answers]
    return "".join(text.decode() if isinstance(text, bytes) else text for text in texts)


@pytest.mark.server
@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("kind", FRONT_END)
def test_requests_of_the_openai_front_end_are_answered(generating: Generating, kind: str, protocol: str) -> None:
    ask, prompt = asking(generating, protocol), "Once upon a time"
    prompt_tokens = len(generating.pipelines["stories"].tokenizer(prompt).input_ids)
    (whole,) = ask(front_end_inputs(kind, prompt, stream=False, seed=7))
    pieces = ask(front_end_inputs(kind, prompt, stream=True, seed=7))
    assert len(pieces) > 1 and text_of(pieces) == text_of([whole])
    for answer in (whole, *pieces):
        assert answer["num_input_tokens"] == [prompt_tokens]
        assert len(answer["num_output_tokens"]) == 1
    assert sum(piece["num_output_tokens"][0] for piece in pieces) == whole["num_output_tokens"][0] == 16
    assert ask(front_end_inputs(kind, prompt, stream=False))[0]["num_output_tokens"] == [16]
    greedy = {"temperature": 0, "stop": ["girl"], "min_tokens": 2, "max_tokens": 20}
    (stopped,) = ask(front_end_inputs(kind, prompt, stream=False, **greedy))
    assert "girl" not in text_of([stopped]) and stopped["num_output_tokens"][0] < 20


@pytest.mark.server
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_log_probabilities_for_the_openai_front_end_are_refused(generating: Generating, protocol: str, *, stream: bool) -> None:
    ask, inputs = asking(generating, protocol), front_end_inputs("chat of 26.06", "Once", stream=stream)
    refused = [
        (inputs | {"return_logprobs": True}, "return_logprobs cannot be true: this model gives no log probabilities"),
        (front_end_inputs("chat of 26.06", "Once", stream=stream, logprobs=1), "option logprobs is not supported"),
        (front_end_inputs("chat of 26.06", "Once", stream=stream, lora_name="dolly"), "option lora_name is unknown"),
    ]
    for given, message in refused:
        if protocol == "grpc":
            with pytest.raises(InferenceServerException, match=message):
                ask(given)
        else:
            (answer,) = ask(given)
            assert message in answer["error"][0]


@pytest.mark.server
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_requests_of_the_sample_client_of_the_backend_are_answered(generating: Generating, protocol: str, *, stream: bool) -> None:
    ask, numbers = asking(generating, protocol), {"temperature": 0.1, "top_p": 0.95, "max_tokens": 10}
    inputs = sample_client_inputs("Once upon a time", stream=stream)
    assert text_of(ask(inputs, parameters=SAMPLE_CLIENT))
    seeded = ask(inputs, parameters=SAMPLE_CLIENT | {"seed": "5"})
    plain = ask(inputs | {"sampling_parameters": json.dumps(numbers | {"seed": 5})})
    assert text_of(seeded) == text_of(plain)
