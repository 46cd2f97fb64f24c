"""Text generation: a text, or a chat → its continuation.

The answers are those of ``transformers.pipeline("text-generation")``. The tensors are those of Triton's vLLM backend, and the model
is decoupled: it answers a request as often as the request's ``stream`` makes it. One request is one text.

* ``sampling_parameters`` is a JSON object of options; request parameters are options too.
* Without ``exclude_input_in_output``, the text of the input stands in front of ``text_output``, unless the input is a chat or the
  request asks for a stream.
* ``token_ids`` holds the tokens of the sequences one after the other; ``num_output_tokens`` counts those that were generated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, cast

from ..types import Arrays, JsonValue, Setting, Tensor
from ._generation import GenerationTask, return_type

MESSAGES = "messages"
"""Request parameter, and second string of a row: the text is a JSON list of messages."""
FULL_TEXT, NEW_TEXT, TENSORS = "FULL_TEXT", "NEW_TEXT", "TENSORS"
"""What an answer shows: names of the pipeline's ``ReturnType``."""


@dataclass(frozen=True, kw_only=True)
class TextGeneration(GenerationTask):
    """Serves text-generation.

    Attributes:
        chat: Whether the checkpoint has a chat template.
        special_tokens: The tokenizer's special tokens by their names, such as ``eos_token``: chat templates use them.
        model_max_length: Maximum tokens that the tokenizer knows of the model, for ``handle_long_generation``.
        messages: Whether ``text_input`` is a JSON list of messages.
        continue_final_message: Whether the answer continues the last message. None: if an assistant wrote it.
        add_special_tokens: Whether the tokenizer adds special tokens to a text that is no chat.
        handle_long_generation: ``hole``: if the text and its continuation are too long, the beginning of the text is dropped.
        stop_sequence: Text each of whose tokens ends a sequence. None: the end-of-sequence tokens do.
        clean_up_tokenization_spaces: Whether spaces in front of punctuation are removed from the generated text.
        return_prompt_tokens: Whether the tokens of the input stand in front of ``token_ids``, for each of the sequences.
    """

    chat: bool = False
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    model_max_length: int | None = None
    messages: bool = False
    continue_final_message: bool | None = None
    add_special_tokens: bool = True
    handle_long_generation: str | None = None
    clean_up_tokenization_spaces: bool = True
    return_prompt_tokens: bool = False

    name: ClassVar[str] = "text-generation"
    options: ClassVar[Mapping[str, Setting]] = {
        "prefix": Setting(str, help="Text in front of the input."),
        "messages": Setting(bool, help="The input is a JSON list of messages."),
        "continue_final_message": Setting(bool, help="Continue the last message."),
        "add_special_tokens": Setting(bool, help="Add special tokens to the input."),
        "handle_long_generation": Setting(str, choices=("hole",), help="Drop the beginning of an input that is too long."),
        "clean_up_tokenization_spaces": Setting(bool, help="Remove spaces in front of punctuation."),
        "return_prompt_tokens": Setting(bool, help="Put the tokens of the input in front of those of the answer."),
        **GenerationTask.options,
    }
    request_only: ClassVar[frozenset[str]] = GenerationTask.request_only | {
        "messages",
        "continue_final_message",
        "add_special_tokens",
        "handle_long_generation",
        "return_prompt_tokens",
    }
    client_options: ClassVar[tuple[str, ...]] = (
        "return_full_text",
        "return_tensors",
        "return_text",
        "return_type",
        "padding",
        "skip_special_tokens",
        "tokenizer_encode_kwargs",
    )
    presentation_options: ClassVar[frozenset[str]] = frozenset({"continue_final_message"})
    decoupled: ClassVar[bool] = True
    positional: ClassVar[tuple[str, ...]] = ("text_inputs",)
    text_keys: ClassVar[tuple[str, ...]] = ("text",)

    def inputs(self) -> tuple[Tensor, ...]:
        """Return the text; the other inputs are :meth:`optional_inputs`."""
        return (Tensor("text_input", "TYPE_STRING"),)

    def optional_inputs(self) -> tuple[Tensor, ...]:
        """Return the tensors that a request may leave out."""
        return (
            Tensor("stream", "TYPE_BOOL"),
            Tensor("sampling_parameters", "TYPE_STRING"),
            Tensor("exclude_input_in_output", "TYPE_BOOL"),
            Tensor("return_finish_reason", "TYPE_BOOL"),
            Tensor("return_num_output_tokens", "TYPE_BOOL"),
        )

    def outputs(self) -> tuple[Tensor, ...]:
        """Return one text per sequence, and what belongs to it."""
        return (
            Tensor("text_output", "TYPE_STRING", (-1,)),
            Tensor("finish_reason", "TYPE_STRING", (-1,)),
            Tensor("num_output_tokens", "TYPE_UINT32", (-1,)),
            Tensor("token_ids", "TYPE_INT64", (-1,)),
        )

    @property
    def example(self) -> dict[str, str]:
        """Return a beginning."""
        return {"text_input": "Once upon a time"}

    @property
    def call_options(self) -> tuple[str, ...]:
        """Return the names of the options that a pipeline call takes: the others follow from its inputs and options."""
        return tuple(name for name in super().call_options if name not in (MESSAGES, "return_prompt_tokens"))

    # -- the client -----------------------------------------------------------------------------------------------------------

    def parse_call(self, arguments: tuple[object, ...], given: Mapping[str, object]) -> tuple[object, dict[str, object]]:
        """Split the arguments of a call; the inputs are called ``text_inputs``."""
        options = dict(given)
        inputs = (*arguments, options.pop("text_inputs")) if "text_inputs" in options else arguments
        if len(inputs) != 1:
            raise TypeError(f"{self.name} takes its inputs as one argument, not {len(inputs)}")
        return inputs[0], options

    def parse_inputs(self, inputs: object) -> list[tuple[str, ...]]:
        """Take a text, a list of texts, a chat or a list of chats. A chat is a list of messages with ``role`` and ``content``.

        Returns:
            ``(text,)`` per text, and ``(JSON list of messages, "messages")`` per chat.

        Raises:
            TypeError: The inputs have another form.
            IndexError: A list is empty.
            ValueError: A chat has another form, or the checkpoint has no chat template.
        """
        if isinstance(inputs, list | tuple):
            if not inputs:
                raise IndexError("there are no inputs: the list is empty")
            if isinstance(inputs[0], dict):
                return [self._chat(inputs)]
            if isinstance(inputs[0], list | tuple):
                return [self._chat(chat) for chat in inputs]
        if isinstance(inputs, tuple):
            raise TypeError("texts must be in a list, not in a tuple")
        return [_text(text) for text in (inputs if isinstance(inputs, list) else [inputs])]

    def parse_items(self, items: object) -> list[tuple[str, ...]]:
        """Convert items of inputs that are read one by one: each is a text or a chat."""
        return [row for item in (items if isinstance(items, list) else [items]) for row in self.parse_inputs(item)]

    def _chat(self, messages: object) -> tuple[str, ...]:
        if not isinstance(messages, list | tuple):
            raise ValueError(f"a chat must be a list of messages, not {messages!r:.80}")
        if not messages:
            raise IndexError("a chat has no messages")
        if not all(isinstance(message, dict) and "role" in message and "content" in message for message in messages):
            raise ValueError("each message of a chat must be a dict with the keys 'role' and 'content'")
        if not self.chat:
            raise ValueError("the checkpoint has no chat template, so it takes texts and no messages")
        return json.dumps(messages, ensure_ascii=False), MESSAGES

    def request_rows(self, rows: Sequence[tuple[str, ...]]) -> tuple[Sequence[tuple[str, ...]], dict[str, JsonValue]]:
        """Return the text of a row, and whether it is a list of messages."""
        return [row[:1] for row in rows], ({MESSAGES: True} if any(len(row) > 1 for row in rows) else {})

    def sanitize_parameters(self, given: Mapping[str, object]) -> tuple[dict[str, JsonValue], dict[str, object]]:
        """Convert the options as the base class does. Answers that show tokens show those of the input too."""
        parameters, formatting = super().sanitize_parameters(given)
        if formatting.get("return_type") == TENSORS:
            parameters["return_prompt_tokens"] = True
        return parameters, formatting

    def answer_format(self, given: Mapping[str, object]) -> dict[str, object]:
        """Return what an answer shows, and whether its spaces are cleaned up, as the pipeline decides that.

        As in the pipeline, ``return_tensors`` of any value gives tokens.

        Raises:
            ValueError: Two options exclude each other, or one is not supported.
        """
        found = super().answer_format(given)
        full, tensors, text, kind = (
            given.get(name) for name in ("return_full_text", "return_tensors", "return_text", "return_type")
        )
        if kind is None and text is not None and (full is not None or tensors is not None):
            raise ValueError("return_text excludes return_full_text and return_tensors")
        if kind is None and full is not None and tensors is not None:
            raise ValueError("return_full_text excludes return_tensors")
        if kind is not None:
            found["return_type"] = return_type(kind, (FULL_TEXT, NEW_TEXT, TENSORS))
        elif full is not None:
            found["return_type"] = FULL_TEXT if full else NEW_TEXT
        elif tensors is not None:
            found["return_type"] = TENSORS
        if given.get("padding") not in (None, False, True, "longest", "do_not_pad"):
            raise ValueError(f"option padding is not supported with {given['padding']!r:.80}")
        if given.get("skip_special_tokens") not in (None, True):
            raise ValueError("option skip_special_tokens is not supported with false: the server leaves special tokens out")
        if given.get("tokenizer_encode_kwargs"):
            raise ValueError("option tokenizer_encode_kwargs is not supported: the server tokenizes")
        return found

    def format_answers(self, answers: Arrays, **options: object) -> Sequence[object]:
        """Return the sequences of the one row: a list of ``{"generated_text"}``, or of ``{"generated_token_ids"}``.

        The text is the new one. :meth:`add_inputs` puts the input in front.
        """
        if options.get("return_type") == TENSORS:
            return [[{"generated_token_ids": tokens} for tokens in self._padded(answers)]]
        return [[{"generated_text": text.decode()} for text in answers["text_output"].reshape(-1).tolist()]]

    def _padded(self, answers: Arrays) -> list[list[int]]:
        """Return the tokens of each sequence, with padding at the end of the shorter ones as ``generate`` gives them."""
        counts = answers["num_output_tokens"].reshape(-1).tolist()
        tokens = answers["token_ids"].reshape(-1).tolist()
        prompt = (len(tokens) - sum(counts)) // len(counts)
        padding = self.pad_token_id
        if padding is None:
            padding = next(iter(self.generation_options.eos_token_id), 0)
        found, start = [], 0
        for count in counts:
            end = start + prompt + count
            found.append(tokens[start:end] + [padding] * (max(counts) - count))
            start = end
        return found

    def add_inputs(self, answers: Sequence[object], rows: Sequence[tuple[str, ...]], **options: object) -> Sequence[object]:
        """Put the text, or the messages, in front of the new text, unless only that is wanted."""
        if options.get("return_type", FULL_TEXT) != FULL_TEXT:
            return answers
        return [
            [{"generated_text": _with_input(row, record["generated_text"], options)} for record in records]
            for row, records in zip(rows, cast("Sequence[list[dict[str, str]]]", answers), strict=True)
        ]

    def format_result(self, inputs: object, answers: Sequence[object], options: Mapping[str, object]) -> object:  # noqa: ARG002
        """Return the sequences of a text or a chat, or a list of these for a list of texts or chats."""
        is_chat = isinstance(inputs, list | tuple) and isinstance(inputs[0], dict)
        return answers if isinstance(inputs, list | tuple) and not is_chat else answers[0]


def _with_input(row: tuple[str, ...], text: str, options: Mapping[str, object]) -> object:
    """Return a text behind its input, or the messages with one more, or with the last one continued."""
    if len(row) == 1:
        return row[0] + text
    messages = json.loads(row[0])
    last = messages[-1]
    continues = options.get("continue_final_message")
    if last["role"] == "assistant" if continues is None else continues:
        return [*messages[:-1], {"role": last["role"], "content": f"{last['content']}{text}"}]
    return [*messages, {"role": "assistant", "content": text}]


def _text(text: object) -> tuple[str, ...]:
    if not isinstance(text, str):
        raise TypeError(f"each input must be a string or a list of messages, not {text!r:.80}")
    return (text,)


TASK = TextGeneration
