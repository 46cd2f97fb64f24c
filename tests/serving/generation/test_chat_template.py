"""Prompts of conversations, held against ``apply_chat_template`` of transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
from transformers import PreTrainedTokenizerFast

from serving.runtime.generation.chat_template import PromptTemplate, read_messages
from serving.runtime.tasks._template_variables import template_variables
from serving.runtime.types import JsonValue
from tests.helpers.checkpoints import make_tokenizer

CHATML = """{%- if messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\\nYou are a helpful assistant<|im_end|>\\n' }}
{%- endif %}
{% for message in messages %}
    {% if loop.index0 == 99 %}{% break %}{% endif %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{% endif %}"""
LLAMA = """{{ bos_token }}{% for message in messages %}
{% if message['role'] == 'user' %}[INST] {{ message['content'] | trim }} [/INST]
{% elif message['role'] == 'assistant' %}{% generation %}{% set said = message['content'] %} {{ said | trim }} {{ eos_token }}{% endgeneration %}
{% else %}{{ raise_exception('Only user and assistant roles are supported, not <' + message['role'] + '>') }}{% endif %}
{% endfor %}{{ said is defined }}"""  # noqa: E501
TOOLS = """{%- set ns = namespace(last=0) %}{% for message in messages %}{% set ns.last = loop.index %}
  {{ message | tojson }} {{ message.content | tojson(indent=2) }}
{% endfor %}{{ ns.last }} {{ tools is none }} {{ documents is none }} {{ strftime_now('%Y') | length }} {{ unk_token }}"""
PARTS = """{% for message in messages %}{{ message.role }}:{% if message.content is string %}{{ message.content }}{% else %}
{%- for part in message.content %}{{ part.text }}{% endfor %}{% endif %};{% endfor %}"""
CHATS = [
    [{"role": "user", "content": "Hi <b>there</b> & 'you'\n"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "你好 🎉"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": " b "}, {"role": "user", "content": "c"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "The answer is "}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}],
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer("bpe", **dict.fromkeys(["bos_token", "eos_token"], "<s>"))


@pytest.mark.parametrize("chat", CHATS, ids=lambda chat: "-".join(message["role"] for message in chat))
@pytest.mark.parametrize("template", [CHATML, LLAMA, TOOLS, PARTS], ids=["chatml", "llama", "tools", "parts"])
def test_prompts_are_those_of_transformers(tokenizer: PreTrainedTokenizerFast, template: str, chat: list[dict[str, str]]) -> None:
    ours = PromptTemplate(template, tokenizer.special_tokens_map)
    continued = chat[-1]["role"] == "assistant"
    try:
        expected = tokenizer.apply_chat_template(
            chat,
            chat_template=template,
            tokenize=False,
            add_generation_prompt=not continued,
            continue_final_message=continued,
        )
    except Exception as error:
        with pytest.raises(ValueError, match="chat template of this model") as refused:
            ours.prompt(chat)
        assert "Only user" not in str(error) or "Only user and assistant" in str(refused.value)
    else:
        assert ours.prompt(chat) == expected


def test_parts_of_a_message_can_be_continued(tokenizer: PreTrainedTokenizerFast) -> None:
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": [{"type": "text", "text": "b "}, {"type": "image"}]}]
    ours = PromptTemplate(PARTS, {})
    expected = tokenizer.apply_chat_template(chat, chat_template=PARTS, tokenize=False, continue_final_message=True)
    assert ours.prompt(chat) == expected == "user:a;assistant:b "
    assert chat[1]["content"][0]["text"] == "b ", "the messages are not changed"
    with pytest.raises(ValueError, match="no text to continue"):
        ours.prompt([{"role": "assistant", "content": [{"type": "image"}]}])
    with pytest.raises(ValueError, match="leaves the last message out"):
        PromptTemplate("{{ messages[0].role }}", {}).prompt([{"role": "assistant", "content": "b"}])


def test_the_sandbox_holds() -> None:
    message = [{"role": "user", "content": "{{ 7 * 7 }}"}]
    assert PromptTemplate("{{ messages[0].content }}", {}).prompt(message) == "{{ 7 * 7 }}", "text is not a template"
    assert PromptTemplate("{{ raise_exception.__globals__ }}", {}).prompt(message) == ""
    for attempt in ("{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}"):
        with pytest.raises(ValueError, match="chat template of this model refuses"):
            PromptTemplate(attempt, {}).prompt(message)
    for attempt in ("{{ 1 + messages[0].content }}", "{{ range(10**9) | list }}", "{{ messages[0].content.items() }}"):
        with pytest.raises(ValueError, match="chat template of this model"):
            PromptTemplate(attempt, {}).prompt(message)


@pytest.mark.parametrize("content", [5, None, [{"type": "text", "text": "a"}], {"text": "a"}], ids=str)
@pytest.mark.parametrize("template", ["{{ '<' + messages[1].content + '>' }}", "{{ messages[1].content.strip() }}"])
def test_a_template_that_takes_texts_only_says_so(template: str, content: JsonValue) -> None:
    chat: list[Mapping[str, JsonValue]] = [{"role": "user", "content": "a"}, {"role": "user", "content": content}]
    with pytest.raises(ValueError, match=r"^content of message 1 must be a text for the chat template of this model$"):
        PromptTemplate(template, {}).prompt(chat)
    with pytest.raises(ValueError, match=r"cannot use the messages: division by zero$"):
        PromptTemplate("{{ 1 / 0 }}", {}).prompt(chat)
    with pytest.raises(ValueError, match=r"refuses the messages: no$"):
        PromptTemplate("{{ raise_exception('no') }}", {}).prompt(chat)


def test_messages_that_are_nested_too_deeply_for_a_template_are_refused() -> None:
    content: list[JsonValue] = []
    for _ in range(5_000):
        content = [content]
    with pytest.raises(ValueError, match=r"cannot use the messages: they are nested too deeply$"):
        PromptTemplate("{{ messages | tojson }}", {}).prompt([{"role": "user", "content": content}])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("hello", "^text_input is not JSON, though messages is true: Expecting value"),
        ("[" * 100_000, "^text_input is nested too deeply$"),
        ("9" * 5000, "^text_input has a number with too many digits$"),
        ("{}", "list of messages"),
        ("[]", "list of messages"),
        ('["a"]', "message 0"),
        ('[{"role": "user", "content": "a"}, {"role": 3, "content": "a"}]', "message 1"),
        ('[{"role": "user"}]', "message 0"),
    ],
)
def test_what_is_no_conversation_is_refused(text: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        read_messages(text)


def test_messages_are_read() -> None:
    assert read_messages(json.dumps(CHATS[2])) == CHATS[2]


VARIABLES = """{% for message in messages %}{{ message.content }};{% endfor %}{{ enable_thinking is defined }} {{ enable_thinking }}
{{- self is defined }}{{ x }}"""


@pytest.mark.parametrize("variables", [{}, {"enable_thinking": False}, {"enable_thinking": None, "x": 1.5}, {"x": "é'\n"}], ids=str)
def test_variables_are_those_of_transformers(tokenizer: PreTrainedTokenizerFast, variables: dict[str, JsonValue]) -> None:
    chat = [{"role": "user", "content": "a"}]
    expected = tokenizer.apply_chat_template(chat, chat_template=VARIABLES, tokenize=False, add_generation_prompt=True, **variables)
    assert PromptTemplate(VARIABLES, tokenizer.special_tokens_map).prompt(chat, variables=variables) == expected
    assert template_variables(json.dumps(variables), ()) == template_variables(variables, ()) == variables


def test_a_variable_replaces_nothing_of_the_template(tokenizer: PreTrainedTokenizerFast) -> None:
    ours = PromptTemplate("{{ messages[0].content }}{{ bos_token }}", {"bos_token": "<s>"})
    assert ours.prompt([{"role": "user", "content": "a"}], variables={"messages": 3, "bos_token": "x", "self": 1}) == "a<s>"


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("enable_thinking", "is not JSON"),
        ("[1]", r"must be a JSON object, not \[1\]"),
        ([1], "must be a JSON object"),
        ('{"a b": 1}', "has a name that is no identifier: 'a b'"),
        ({1: 1}, "has a name that is no identifier: 1"),
        ({"messages": []}, "cannot set messages, which is no variable of the template"),
        ({"add_generation_prompt": True}, "cannot set add_generation_prompt"),
        ({"bos_token": "x"}, "cannot set bos_token"),
        ({"truncation": True}, "cannot set truncation"),
        ({"tools": None}, "cannot set tools"),
        ({"x": [1]}, r"x must be a string, a number, true, false or null, not \[1\]"),
        ({"x": {"y": 1}}, "x must be a string"),
        ({"x" * 10_000: [1]}, "x{80} must be"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_other_variables_are_refused(value: object, named: str) -> None:
    with pytest.raises(ValueError, match=f"^option chat_template_kwargs:? ?.*{named}") as refused:
        template_variables(value, ("bos_token",))
    assert len(str(refused.value)) < 300
