"""Conversations as training rows: lists of messages, rendered by the chat template of the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from serving.runtime.types import JsonValue

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerFast

Message = Mapping[str, JsonValue]
"""A message: ``role``, ``content``, and whatever else the chat template reads."""
CharacterSpan = Sequence[int]
"""First character of a part of a text, and the first one behind it."""

ASSISTANT = "assistant"
"""The role of the model."""


def read_messages(cell: Sequence[object]) -> list[dict[str, JsonValue]]:
    """Check the messages of a row. Keys without a value, which parquet adds, are left out.

    Args:
        cell: The cell of the row.

    Returns:
        The messages.

    Raises:
        ValueError: They are not a list of messages with text, or the assistant says nothing.
    """
    messages = []
    for number, message in enumerate(cell, start=1):
        match message:
            case {"role": str(role), "content": str(content), **others} if role:
                given = {str(key): cast(JsonValue, value) for key, value in others.items() if value is not None}
                messages.append({"role": role, "content": content, **given})
            case _:
                raise ValueError(f'message {number} must be {{"role": "…", "content": "…"}} with two texts, not {message!r:.80}')
    if not any(message["role"] == ASSISTANT for message in messages):
        raise ValueError(f"no message has the role {ASSISTANT!r}, so there is nothing to learn to answer")
    return messages


def transcript(messages: Sequence[Message]) -> str:
    """Return a conversation as plain text, to compare rows by."""
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


class ChatTemplate:
    """Renders conversations as the checkpoint's tokenizer does."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Take the template of a tokenizer.

        Args:
            tokenizer: The checkpoint's tokenizer.

        Raises:
            ValueError: It has no chat template.
        """
        if not tokenizer.chat_template:
            raise ValueError("its tokenizer has no chat template, which rows of messages need")
        self._tokenizer = tokenizer

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """Return the text of a conversation, special tokens included.

        Args:
            messages: The messages.
            add_generation_prompt: Add what stands before an answer.

        Raises:
            ValueError: The template refuses the messages.
        """
        from jinja2 import TemplateError

        try:
            return cast(
                str,
                self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=add_generation_prompt),
            )
        except TemplateError as error:
            raise ValueError(f"the chat template refuses the messages: {error}") from error

    def assistant_spans(self, messages: Sequence[Message]) -> list[CharacterSpan]:
        """Find what the assistant writes in the text of a conversation: its messages, each with the token that ends it.

        Args:
            messages: The messages.

        Returns:
            One span for each message of the assistant.

        Raises:
            ValueError: The template renders the beginning of a conversation differently when more messages follow.
        """
        whole = self.render(messages)
        spans: list[CharacterSpan] = []
        for position, message in enumerate(messages):
            if message["role"] != ASSISTANT:
                continue
            before = self.render(messages[:position], add_generation_prompt=True)
            through = self.render(messages[: position + 1])
            if not (through.startswith(before) and whole.startswith(through)):
                raise ValueError(
                    "the chat template does not render a conversation message by message, so the assistant's part cannot be "
                    "found: leave out --setting assistant_only_loss=true"
                )
            end = through.rstrip()  # the line break behind the end token is no part of the answer
            spans.append((len(before), len(end if end.endswith(str(self._tokenizer.eos_token)) else through)))
        return spans


@contextmanager
def without_special_tokens(tokenizer: Tokenizer) -> Iterator[None]:
    """Let a tokenizer add no special tokens in the block: a chat template writes them into the text."""
    processor = tokenizer.post_processor
    tokenizer.post_processor = None
    try:
        yield
    finally:
        tokenizer.post_processor = processor


def tokens_within(encoding: Encoding, spans: Sequence[CharacterSpan]) -> list[bool]:
    """Return for each token whether a part of it is in one of the spans."""
    return [any(start < end and start < last and first < end for first, last in spans) for start, end in encoding.offsets]
