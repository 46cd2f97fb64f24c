"""From the text or the messages of a request to the tokens of its prompt, as the pipeline of ``transformers`` makes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer

from ..tasks._template_variables import TEMPLATE_KWARGS
from ..tasks.text_generation import MESSAGES, TextGeneration
from ..types import Integers, require_text

if TYPE_CHECKING:
    from .chat_template import PromptTemplate

CHAT_TEMPLATE = "chat_template.jinja"
CHARACTERS_PER_TOKEN = 64
"""Longest text that is tokenized, in characters for each token that the model holds: tokenizing takes time."""


@dataclass(frozen=True)
class Prompt:
    """The prompt of a request.

    Attributes:
        text: What stands before the answer, if it is wanted there.
        tokens: INT64 ``[length]``, one or more.
    """

    text: str
    tokens: Integers


class PromptReader:
    """Makes the prompts of one model.

    Args:
        folder: Version folder of the model, with its tokenizer, and its chat template if it has one.
        task: The task with the model's settings.
        capacity: Most tokens of a row.
        split_special_tokens: Tokenize the names of special tokens in a text like other words.
    """

    def __init__(self, folder: Path, task: TextGeneration, *, capacity: int, split_special_tokens: bool) -> None:
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._side = (self.tokenizer.truncation or {}).get("direction", "right")
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.tokenizer.encode_special_tokens = split_special_tokens
        self._capacity, self._prefix = capacity, task.prefix
        self._template = _template(folder / CHAT_TEMPLATE, task)

    def read(self, raw: bytes, task: TextGeneration) -> Prompt:
        """Read the input of a request.

        Args:
            raw: A text, or messages in JSON; UTF-8.
            task: The task with the options of the request.

        Raises:
            ValueError: It is not UTF-8, too long, or has no tokens; or it is not messages, or the model has no chat template.
        """
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"text_input: byte {error.start} is not valid UTF-8") from None
        self._require_short(text)
        if task.chat_template_kwargs and not task.messages:
            raise ValueError(f"option {TEMPLATE_KWARGS} needs {MESSAGES}: a text alone has no chat template")
        whole = self._rendered(text, task) if task.messages else task.prefix + text
        self._require_short(whole)
        require_text("text_input", whole)  # messages are JSON, which can hold what is no text
        tokens = self._tokens(whole, task)
        if not tokens:
            if task.bos_token_id is None:
                raise ValueError("text_input has no tokens, and this model has no token with which a text begins: send some text")
            tokens = [task.bos_token_id]
        return Prompt(whole if task.messages else text, np.array(tokens, dtype=np.int64))

    def prefix_length(self, task: TextGeneration, *, special: bool) -> int:
        """Return how many tokens the prefix has. As in the pipeline, that of the model counts where the request has an empty one.

        Args:
            task: The task with the options of the request.
            special: Whether the tokens that the tokenizer adds to a text count.

        Raises:
            ValueError: The prefix is too long.
        """
        prefix = task.prefix or self._prefix
        self._require_short(prefix, "option prefix")
        return len(self._encoded(prefix, special=special)) if prefix else 0

    def ids(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text alone."""
        return tuple(self._encoded(text, special=False))

    def _tokens(self, text: str, task: TextGeneration) -> list[int]:
        special = task.add_special_tokens and not task.messages
        if not task.truncation:
            return self._without_hole(self._encoded(text, special=special), task)
        room = task.generation_options.prompt_room(capacity=self._capacity)
        self.tokenizer.enable_truncation(min(room, task.model_max_length or room), direction=self._side)
        try:
            return self._encoded(text, special=special)
        finally:
            self.tokenizer.no_truncation()

    def _encoded(self, text: str, *, special: bool) -> list[int]:
        """Tokenize a text as a batch: the library then lets other threads run meanwhile."""
        tokens: list[int] = self.tokenizer.encode_batch_fast([text], add_special_tokens=special)[0].ids
        return tokens

    def _without_hole(self, tokens: list[int], task: TextGeneration) -> list[int]:
        """Drop the beginning of a prompt that is too long, if the request asks for it (``handle_long_generation``).

        Raises:
            ValueError: It is not known how long the answer will be, or it alone is too long.
        """
        if task.handle_long_generation is None:
            return tokens
        options = task.generation_options
        new = options.max_new_tokens if options.limit_requested and options.max_new_tokens else options.max_length - len(tokens)
        most = min(task.model_max_length or self._capacity, self._capacity)
        if new < 0 or new >= most:
            limit = options.client_name("max_new_tokens")
            raise ValueError(f"option handle_long_generation needs {limit} from 1 to {most - 1}")
        return tokens[new - most :] if len(tokens) + new > most else tokens

    def _rendered(self, text: str, task: TextGeneration) -> str:
        if self._template is None:
            raise ValueError(f"this model has no chat template: send a text, without the parameter {MESSAGES}")
        from .chat_template import read_messages

        variables = task.chat_template_kwargs
        return self._template.prompt(read_messages(text), continues=task.continue_final_message, variables=variables)

    def _require_short(self, text: str, what: str = "text_input") -> None:
        if len(text) > CHARACTERS_PER_TOKEN * self._capacity:
            raise ValueError(
                f"{what} has {len(text)} characters, but this model reads {CHARACTERS_PER_TOKEN * self._capacity} at most, "
                f"as it holds {self._capacity} tokens: send a shorter text"
            )


def _template(path: Path, task: TextGeneration) -> PromptTemplate | None:
    """Read the chat template. Only a model that has one needs jinja2."""
    if not path.exists():
        return None
    from .chat_template import PromptTemplate

    return PromptTemplate(path.read_text(encoding="utf-8"), task.special_tokens)
