"""From messages to a prompt: the checkpoint's own template, in a sandbox, with the functions that ``transformers`` gives it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any

import jinja2
from jinja2 import ext, nodes, parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..types import JsonValue, parse_client_json

CONTINUED = "CONTINUE_FINAL_MESSAGE_TAG "
"""Marks the end of a message that the model continues, while the template is applied."""
NO_VARIABLES: Mapping[str, object] = MappingProxyType({})


class _GenerationBlock(ext.Extension):
    """The block ``{% generation %}``, with which templates mark what a model should learn. Here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: parser.Parser) -> nodes.Node:
        """Return what is in the block, in a scope of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class PromptTemplate:
    """The template of one checkpoint.

    Args:
        template: The template, in the language of jinja2.
        tokens: The special tokens that templates may name: ``bos_token``, ``eos_token`` …

    Raises:
        jinja2.TemplateSyntaxError: The template is wrong.
    """

    def __init__(self, template: str, tokens: Mapping[str, JsonValue]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, "jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        self._template = environment.from_string(template)
        self._tokens = dict(tokens)

    def prompt(
        self,
        messages: Sequence[Mapping[str, JsonValue]],
        *,
        continues: bool | None = None,
        variables: Mapping[str, object] = NO_VARIABLES,
    ) -> str:
        """Return the prompt for the next message, or for the continuation of the last one.

        Args:
            messages: Each with ``role`` and ``content``.
            continues: Continue the last message. None: if it is the assistant's.
            variables: Further variables of the template by name, none of which it has otherwise.

        Raises:
            ValueError: The template refuses the messages, or cannot use them.
        """
        continued = messages[-1]["role"] == "assistant" if continues is None else continues
        chat = _marked(messages) if continued else messages
        try:
            prompt = self._rendered(chat, variables, add_generation_prompt=not continued)
        except RecursionError:
            raise ValueError("the chat template of this model cannot use the messages: they are nested too deeply") from None
        except Exception as error:  # whatever a template makes of messages that it does not expect
            raise ValueError(self._problem(error, messages, variables)[:500]) from None
        return _cut_at_mark(prompt) if continued else prompt

    def _rendered(
        self, messages: Sequence[Mapping[str, JsonValue]], variables: Mapping[str, object], *, add_generation_prompt: bool
    ) -> str:
        given = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": add_generation_prompt}
        return self._template.render({**variables, **given, **self._tokens})

    def _problem(self, error: Exception, messages: Sequence[Mapping[str, JsonValue]], variables: Mapping[str, object]) -> str:
        """Say why the template failed: where it takes texts only, which content is none."""
        place = next((number for number, message in enumerate(messages) if not isinstance(message["content"], str)), None)
        if place is not None and self._takes(
            [{**message, "content": _as_text(message["content"])} for message in messages], variables
        ):
            return f"content of message {place} must be a text for the chat template of this model"
        verb = "refuses" if isinstance(error, jinja2.TemplateError) else "cannot use"
        return f"the chat template of this model {verb} the messages: {error}"

    def _takes(self, messages: Sequence[Mapping[str, JsonValue]], variables: Mapping[str, object]) -> bool:
        try:
            self._rendered(messages, variables, add_generation_prompt=True)
        except Exception:  # whatever a template makes of messages that it does not expect
            return False
        return True


def _as_text(content: JsonValue) -> str:
    return content if isinstance(content, str) else "text"


def read_messages(text: str) -> list[dict[str, JsonValue]]:
    """Read the messages of a conversation.

    Args:
        text: JSON, a list of objects with ``role`` and ``content``.

    Raises:
        ValueError: It is something else.
    """
    messages = parse_client_json("text_input", text, remark=", though messages is true")
    if not isinstance(messages, list) or not messages:
        raise ValueError("text_input must be a list of messages, one or more, as messages is true")
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str) or "content" not in message:
            raise ValueError(f"message {number} must be an object with role, a string, and content")
    return messages


def _marked(messages: Sequence[Mapping[str, JsonValue]]) -> list[dict[str, Any]]:
    """Mark the end of the last message, or of its last text.

    Raises:
        ValueError: It has no text.
    """
    *before, last = map(dict, messages)
    content = last["content"]
    if isinstance(content, str):
        return [*before, last | {"content": content + CONTINUED}]
    parts = list(content) if isinstance(content, list) else []
    for place in reversed(range(len(parts))):
        part = parts[place]
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            parts[place] = part | {"text": part["text"] + CONTINUED}
            return [*before, last | {"content": parts}]
    raise ValueError("the last message has no text to continue")


def _cut_at_mark(prompt: str) -> str:
    place = prompt.rfind(CONTINUED.strip())
    if place < 0:
        raise ValueError("the chat template of this model leaves the last message out, so that it cannot be continued")
    keeps_spaces = prompt[place : place + len(CONTINUED)] == CONTINUED
    return prompt[:place] if keeps_spaces else prompt[:place].rstrip()


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON without the HTML escapes of jinja2's own filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
