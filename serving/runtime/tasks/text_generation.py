"""Text generation: a text, or a chat → its continuation.

The answers are those of ``transformers.pipeline("text-generation")``. The tensors are those of Triton's vLLM backend without
images, embeddings and log probabilities. The model is decoupled: it answers a request as often as the request's ``stream`` makes
it. One request is one text.

* ``sampling_parameters`` is a JSON object of options; request parameters are options too.
* Without ``exclude_input_in_output``, the text of the input stands in front of ``text_output``, and its tokens in front of
  ``token_ids``, for each of the sequences. For chats that must be asked for; a stream has only what is new.
* ``token_ids`` holds the tokens of the sequences one after the other; ``num_output_tokens`` counts those that were generated, and
  ``num_input_tokens`` those of the prompt.
* There are no log probabilities: ``return_logprobs`` and ``return_cumulative_logprob`` may be false only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import numpy as np

from ..generation.option_lists import flat, require_tokens
from ..types import UNWRITABLE, Arrays, JsonValue, OptionTypeError, Setting, Tensor
from ._clean_up import TextCleaner
from ._generation import MOST_NEW, GenerationTask, return_type
from ._given_config import chosen_config, config_entries
from ._template_variables import ENCODE_KWARGS, TEMPLATE_KWARGS, template_variables

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
        chat_template_kwargs: Variables of the chat template by name, such as ``enable_thinking``. A text that is no chat has none.
        stop_sequence: Text each of whose tokens ends a sequence. None: the end-of-sequence tokens do.
    """

    chat: bool = False
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    model_max_length: int | None = None
    messages: bool = False
    continue_final_message: bool | None = None
    add_special_tokens: bool = True
    handle_long_generation: str | None = None
    chat_template_kwargs: Mapping[str, object] = field(default_factory=dict)

    name: ClassVar[str] = "text-generation"
    streams: ClassVar[bool] = True
    options: ClassVar[Mapping[str, Setting]] = {
        "prefix": Setting(str, help="Text in front of the input."),
        "messages": Setting(bool, help="The input is a JSON list of messages."),
        "continue_final_message": Setting(bool, help="Continue the last message."),
        "add_special_tokens": Setting(bool, help="Add special tokens to the input."),
        "handle_long_generation": Setting(str, choices=("hole",), help="Drop the beginning of an input that is too long."),
        "chat_template_kwargs": Setting(str, help="Variables of the chat template: a JSON object."),
        "bos_token_id": Setting(int, minimum=0, help="Token that stands for an input without tokens."),
        **GenerationTask.options,
    }
    request_only: ClassVar[frozenset[str]] = GenerationTask.request_only | {
        "messages",
        "continue_final_message",
        "add_special_tokens",
        "handle_long_generation",
        "chat_template_kwargs",
        "bos_token_id",
    }
    client_options: ClassVar[tuple[str, ...]] = (
        "return_full_text",
        *GenerationTask.client_options,
        "padding",
        "skip_special_tokens",
        ENCODE_KWARGS,
    )
    presentation_options: ClassVar[frozenset[str]] = frozenset({"continue_final_message", "prefix", "pad_token_id", "eos_token_id"})
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
            Tensor("return_num_input_tokens", "TYPE_BOOL"),
            Tensor("return_num_output_tokens", "TYPE_BOOL"),
            Tensor("return_logprobs", "TYPE_BOOL"),
            Tensor("return_cumulative_logprob", "TYPE_BOOL"),
        )

    def outputs(self) -> tuple[Tensor, ...]:
        """Return one text per sequence, and what belongs to it."""
        return (
            Tensor("text_output", "TYPE_STRING", (-1,)),
            Tensor("finish_reason", "TYPE_STRING", (-1,)),
            Tensor("num_input_tokens", "TYPE_UINT32"),
            Tensor("num_output_tokens", "TYPE_UINT32", (-1,)),
            Tensor("token_ids", "TYPE_INT64", (-1,)),
        )

    @property
    def example(self) -> dict[str, str]:
        """Return a beginning."""
        return {"text_input": "Once upon a time"}

    def is_text(self, name: str) -> bool:
        """Return whether the value of an own option is a text. Variables of the template are an object."""
        return name != TEMPLATE_KWARGS and super().is_text(name)

    def own_value(self, name: str, value: object) -> object:
        """Return the value of an option that says what the model reads."""
        if name == TEMPLATE_KWARGS:
            return template_variables(value, self.special_tokens)
        checked = super().own_value(name, value)
        if name == "bos_token_id":
            require_tokens(name, flat(checked), self.vocab_size)
        return checked

    @property
    def call_options(self) -> tuple[str, ...]:
        """Return the names of the options that a pipeline call takes: whether the input is a chat follows from its form."""
        return tuple(name for name in super().call_options if name != MESSAGES)

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
        try:
            return json.dumps(messages, ensure_ascii=False), MESSAGES
        except (ValueError, RecursionError):
            raise ValueError(f"a chat {UNWRITABLE}") from None

    def request_rows(self, rows: Sequence[tuple[str, ...]]) -> tuple[Sequence[tuple[str, ...]], dict[str, JsonValue]]:
        """Return the text of a row, and whether it is a list of messages."""
        return [row[:1] for row in rows], ({MESSAGES: True} if any(len(row) > 1 for row in rows) else {})

    def expand_options(
        self, defaults: Mapping[str, object], given: Mapping[str, object]
    ) -> tuple[Mapping[str, object], Mapping[str, object]]:
        """Replace ``generation_config``, and the pipeline's name of ``chat_template_kwargs``."""
        if (config := chosen_config(defaults, given)) is not None:
            self._require_lengths(config, {**defaults, **given})
        usual, own = super().expand_options(defaults, given)
        return self._with_variables(usual), self._with_variables(own)

    def _with_variables(self, options: Mapping[str, object]) -> Mapping[str, object]:
        """Give variables of the chat template their name on the server.

        Raises:
            ValueError: They are given by both names, or are not allowed.
        """
        if ENCODE_KWARGS not in options:
            return options
        rest = {name: value for name, value in options.items() if name != ENCODE_KWARGS}
        if options[ENCODE_KWARGS] is None:
            return rest
        if rest.get(TEMPLATE_KWARGS) is not None:
            raise ValueError(f"options {ENCODE_KWARGS} and {TEMPLATE_KWARGS} are the same: give one")
        return {**rest, TEMPLATE_KWARGS: template_variables(options[ENCODE_KWARGS], self.special_tokens, name=ENCODE_KWARGS)}

    def _require_lengths(self, config: object, options: Mapping[str, object]) -> None:
        """Check that a generation config says how long an answer is if there is a prefix, which the pipeline adds to other lengths.

        Raises:
            ValueError: It does not.
        """
        entries = config_entries(config)
        limits = [one.get(name) for one in (entries, options) for name in MOST_NEW]
        has_limit = any(limit is not None for limit in limits)
        if (options.get("prefix") or self.prefix) and ("min_length" in entries or not has_limit):
            raise ValueError("option generation_config needs max_new_tokens, and no min_length, where there is a prefix")

    def request_parameters(self, given: Mapping[str, object]) -> dict[str, JsonValue]:
        """Convert options to request parameters.

        As in the pipeline, ``add_special_tokens`` of None is the tokenizer's own choice, and ``max_length`` of None is left out.

        Raises:
            OptionTypeError: As in the base class.
        """
        options = {name: value for name, value in given.items() if name != "max_length" or value is not None}
        if (variables := options.pop(TEMPLATE_KWARGS, None)) is not None:
            options[TEMPLATE_KWARGS] = _json_object(TEMPLATE_KWARGS, variables)
        if options.get("add_special_tokens", True) is None:
            options["add_special_tokens"] = True
        return super().request_parameters(options)

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
        return found

    def format_answers(self, answers: Arrays, **options: object) -> Sequence[object]:
        """Return the sequences of the one row: a list of ``{"generated_text"}``, or of ``{"generated_token_ids"}``.

        The text is the new one. :meth:`add_inputs` puts the input in front.
        """
        if options.get("return_type") == TENSORS:
            return [[{"generated_token_ids": tokens} for tokens in _padded(answers, self._padding(options))]]
        return [[{"generated_text": text.decode()} for text in answers["text_output"].reshape(-1).tolist()]]

    def _padding(self, options: Mapping[str, object]) -> int:
        """Return the token behind shorter sequences: as in ``generate``, the first that ends one if there is none for it."""
        padding = options.get("pad_token_id", self.pad_token_id)
        if padding is None:
            ends: Any = options.get("eos_token_id", self.generation_options.eos_token_id)
            padding = next(iter(np.reshape([] if ends is None else ends, -1)), 0)
        return int(cast("int", padding))

    def add_inputs(self, answers: Sequence[object], rows: Sequence[tuple[str, ...]], **options: object) -> Sequence[object]:
        """Put the text, or the messages, in front of the new text, unless only that is wanted, and clean up its spaces."""
        if options.get("return_type") == TENSORS:
            return answers
        return [
            [{"generated_text": self._shown(row, record["generated_text"], options)} for record in records]
            for row, records in zip(rows, cast("Sequence[list[dict[str, str]]]", answers), strict=True)
        ]

    def _shown(self, row: tuple[str, ...], text: str, options: Mapping[str, object]) -> object:
        if (cleaner := self.cleaner(row, **options)) is not None:
            text = cleaner.clean(text, final=True)
        return _with_input(row, text, options) if options.get("return_type", FULL_TEXT) == FULL_TEXT else text

    def cleaner(self, row: tuple[str, ...], **options: object) -> TextCleaner | None:
        """Return what cleans up the spaces of the text that continues a row; None: nothing does.

        Args:
            row: The row, as :meth:`parse_inputs` gave it.
            options: What :meth:`sanitize_parameters` gave for it.
        """
        if not options.get("clean_up_tokenization_spaces", True):
            return None
        if len(row) == 1:
            prefix = options.get("prefix")
            return TextCleaner(f"{self.prefix if prefix is None else prefix}{row[0]}")
        messages = json.loads(row[0])
        return TextCleaner(str(messages[-1]["content"]) if _continues(messages, options) else "")

    def format_result(self, inputs: object, answers: Sequence[object], options: Mapping[str, object]) -> object:  # noqa: ARG002
        """Return the sequences of a text or a chat, or a list of these for a list of texts or chats."""
        is_chat = isinstance(inputs, list | tuple) and isinstance(inputs[0], dict)
        return answers if isinstance(inputs, list | tuple) and not is_chat else answers[0]


def _padded(answers: Arrays, padding: int) -> list[list[int]]:
    """Return the tokens of each sequence, with padding at the end of the shorter ones as ``generate`` gives them."""
    counts = answers["num_output_tokens"].reshape(-1).tolist()
    tokens = answers["token_ids"].reshape(-1).tolist()
    prompt = (len(tokens) - sum(counts)) // len(counts)
    found, start = [], 0
    for count in counts:
        end = start + prompt + count
        found.append(tokens[start:end] + [padding] * (max(counts) - count))
        start = end
    return found


def _with_input(row: tuple[str, ...], text: str, options: Mapping[str, object]) -> object:
    """Return a text behind its input, or the messages with one more, or with the last one continued."""
    if len(row) == 1:
        return row[0] + text
    messages = json.loads(row[0])
    last = messages[-1]
    if _continues(messages, options):
        return [*messages[:-1], {"role": last["role"], "content": f"{last['content']}{text}"}]
    return [*messages, {"role": "assistant", "content": text}]


def _continues(messages: Sequence[Mapping[str, JsonValue]], options: Mapping[str, object]) -> bool:
    """Return whether an answer continues the last message."""
    continues = options.get("continue_final_message")
    return bool(messages[-1]["role"] == "assistant" if continues is None else continues)


def _json_object(name: str, value: object) -> object:
    """Return an object as JSON; a string is JSON already."""
    if not isinstance(value, Mapping):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except TypeError as error:
        raise OptionTypeError(f"option {name} must be an object of JSON values: {error}") from None
    except (ValueError, RecursionError):
        raise OptionTypeError(f"option {name} {UNWRITABLE}") from None


def _text(text: object) -> tuple[str, ...]:
    if not isinstance(text, str):
        raise TypeError(f"each input must be a string or a list of messages, not {text!r:.80}")
    return (text,)


TASK = TextGeneration
