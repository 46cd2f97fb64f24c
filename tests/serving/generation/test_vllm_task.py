"""What the client sends to a model that vLLM runs: names and values of vLLM, for the options of the pipeline."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from serving.call_options import parse_call_options
from serving.generation_request import TextRequest
from serving.pipeline_call import PipelineCall
from serving.runtime.tasks.text_generation import TextGeneration
from serving.served_ensemble import ServedEnsemble
from serving.vllm_task import VllmTextGeneration
from tests.helpers.text_generation import TASK
from tests.serving.generation.conftest import Generating

SAMPLING_PARAMETERS = {
    "n", "presence_penalty", "frequency_penalty", "repetition_penalty", "temperature", "top_p", "top_k", "min_p", "seed", "stop",
    "stop_token_ids", "bad_words", "include_stop_str_in_output", "ignore_eos", "max_tokens", "min_tokens", "logprobs",
    "prompt_logprobs", "detokenize", "skip_special_tokens", "spaces_between_special_tokens", "truncate_prompt_tokens",
}  # fmt: skip
"""Fields of vLLM's ``SamplingParams``, as its documentation and the backend name them; the backend does not answer to others."""
DEFAULTS = {
    "max_tokens": 256,
    "min_tokens": 0,
    "repetition_penalty": 1.0,
    "n": 1,
    "temperature": 0.7,
    "top_k": 50,
    "top_p": 1.0,
    "min_p": 0.0,
    "ignore_eos": True,
    "stop_token_ids": [2],
    "include_stop_str_in_output": True,
}


def served(task: TextGeneration = TASK, *, backend: str = "vllm") -> VllmTextGeneration:
    """The task as the client reads it from the configuration of a packaged model."""
    description = json.dumps({"config": {}, "tokenizer": {}, "device": "cuda"})
    values = {"task": task.name, "settings": json.dumps(task.to_settings()), "description": description}
    parameters = {key: {"string_value": value} for key, value in values.items()}
    found = ServedEnsemble.of("lily", {"backend": backend, "parameters": parameters}).task
    assert isinstance(found, TextGeneration)
    return found  # type: ignore[return-value]


def sent(inputs: object, task: TextGeneration | None = None, **options: object) -> dict[str, Any]:
    """The body that the client sends for a call."""
    task = task or served()
    parsed, call = PipelineCall.read(task, (inputs,), options, {})
    tensors, parameters = call.request(task.parse_inputs(parsed))
    body: dict[str, Any] = json.loads(TextRequest.of("lily", tensors["text_input"], parameters).as_json())
    return body


def asked(**options: object) -> dict[str, Any]:
    """The parameters that the client sends with those options."""
    found: dict[str, Any] = json.loads(sent("Hi", **options)["sampling_parameters"])
    assert found.keys() <= SAMPLING_PARAMETERS
    return found


def test_the_tensors_are_those_of_the_backend() -> None:
    body = sent("Hi")
    assert json.loads(body.pop("sampling_parameters")) == DEFAULTS
    flags = {"stream": False, "exclude_input_in_output": True, "return_finish_reason": True, "return_num_output_tokens": True}
    assert body == {"text_input": "Hi", **flags}


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({"max_new_tokens": 5, "min_new_tokens": 2}, {"max_tokens": 5, "min_tokens": 2}),
        ({"max_tokens": 5}, {"max_tokens": 5}),
        (
            {"temperature": 1.5, "top_k": 0, "top_p": 0.9, "min_p": 0.1},
            {"temperature": 1.5, "top_k": -1, "top_p": 0.9, "min_p": 0.1},
        ),
        ({"num_return_sequences": 3, "seed": 7}, {"n": 3, "seed": 7}),
        ({"repetition_penalty": 1.2}, {"repetition_penalty": 1.2}),
        ({"stop_strings": ["The end"]}, {"stop": ["The end"]}),
        ({"stop": ["The end"]}, {"stop": ["The end"], "include_stop_str_in_output": False}),
        ({"eos_token_id": [3, 4]}, {"stop_token_ids": [3, 4]}),
        ({"ignore_eos": True}, {"stop_token_ids": []}),
        ({"truncation": False, "add_special_tokens": True, "no_repeat_ngram_size": 0, "num_beams": 1}, {}),
    ],
)
def test_options_have_the_names_of_vllm(options: dict[str, object], changed: dict[str, object]) -> None:
    assert asked(**options) == {**DEFAULTS, **changed}


def test_without_sampling_the_most_likely_token_is_taken() -> None:
    greedy = asked(do_sample=False)
    assert greedy["temperature"] == 0
    assert not greedy.keys() & {"top_k", "top_p", "min_p"}


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"num_beams": 4, "do_sample": False}, "num_beams"),
        ({"no_repeat_ngram_size": 2}, "no_repeat_ngram_size"),
        ({"bad_words_ids": [[3]]}, "bad_words_ids"),
        ({"suppress_tokens": [3]}, "suppress_tokens"),
        ({"forced_eos_token_id": 2}, "forced_eos_token_id"),
        ({"min_length": 4}, "min_length"),
        ({"max_new_tokens": None, "max_length": 9}, "max_length"),
        ({"stop_sequence": "x"}, "stop_sequence"),
        ({"truncation": True}, "truncation"),
        ({"prefix": "x"}, "prefix"),
        ({"handle_long_generation": "hole"}, "handle_long_generation"),
        ({"return_tensors": True}, "return_tensors"),
    ],
)
def test_what_vllm_does_not_have_is_refused(options: dict[str, object], name: str) -> None:
    with pytest.raises(ValueError, match=f"option {name} is not supported by vLLM"):
        sent("Hi", **options)
    if name != "return_tensors":
        sent("Hi", task=served(backend="python"), **options)


def test_predict_refuses_them_before_it_asks() -> None:
    with pytest.raises(ValueError, match="option num_beams is not supported by vLLM"):
        parse_call_options(served(), {"num_beams": "4", "do_sample": "false"})
    assert parse_call_options(served(), {"max_new_tokens": "4"}) == {"max_new_tokens": 4}


def test_a_default_that_vllm_does_not_have_is_refused() -> None:
    task = served(replace(TASK, generation={"max_length": 40}))
    with pytest.raises(ValueError, match=r"option max_length is not supported by vLLM.*: give max_new_tokens"):
        sent("Hi", task=task)
    assert sent("Hi", task=task, max_new_tokens=4)


def test_chats_are_refused_and_a_prefix_is_sent() -> None:
    with pytest.raises(ValueError, match="vLLM takes no messages here: turn them into text"):
        sent([{"role": "user", "content": "Hi"}], task=served(replace(TASK, chat=True)))
    assert sent("Hi", task=served(replace(TASK, prefix="Say: ")))["text_input"] == "Say: Hi"


def test_an_answer_without_token_ids_is_read() -> None:
    task = served()
    texts = np.array([b" there", b" you"], dtype=np.object_)
    answers = task.format_answers({"text_output": texts, "num_output_tokens": np.array([1, 1])})
    (shown,) = task.add_inputs(answers, [("Hi",)])
    assert shown == [{"generated_text": "Hi there"}, {"generated_text": "Hi you"}]


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_package_is_served_by_a_backend_of_that_name(generating: Generating, protocol: str) -> None:
    """The real server with a stand-in for the backend, which finds the checkpoint and answers with what it was asked."""
    with generating.client(protocol, "lily") as pipe:
        ((answer,), _) = pipe(["Hi", "Ho"], max_new_tokens=5, do_sample=False)
        told = json.loads(answer["generated_text"].removeprefix("Hi"))
        pieces = list(pipe.stream_text("Hi", max_new_tokens=5, do_sample=False))
        assert (pipe.task, str(pipe.device)) == ("text-generation", "cuda")
    assert (told["kind"], told["dtype"]) == ("MODEL", "float16")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(told["files"])
    assert told["sampling_parameters"] == asked(max_new_tokens=5, do_sample=False)
    assert len(pieces) == 2 and json.loads("".join(pieces)) == told
