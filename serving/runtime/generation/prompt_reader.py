"""From the text or the messages of a request to the tokens of its prompt, as the pipeline of ``transformers`` makes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer

from ..types import Integers
from .engine_settings import TextSettings

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
        settings: Of the model's text.
        capacity: Most tokens of a row.
    """

    def __init__(self, folder: Path, settings: TextSettings, *, capacity: int) -> None:
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        if settings.split_special_tokens:
            self.tokenizer.encode_special_tokens = True
        self._settings, self._capacity = settings, capacity
        self._template = _template(folder / CHAT_TEMPLATE, settings)

    def read(self, raw: bytes, *, messages: bool) -> Prompt:
        """Read the input of a request.

        Args:
            raw: A text, or messages in JSON; UTF-8.
            messages: Whether it is messages.

        Raises:
            ValueError: It is not UTF-8, too long, or has no tokens; or it is not messages, or the model has no chat template.
        """
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"text_input: byte {error.start} is not valid UTF-8") from None
        self._require_short(text)
        if messages:
            text = self._rendered(text)
            self._require_short(text)
        tokens = self.tokenizer.encode(text, add_special_tokens=not messages).ids
        if not tokens:
            if self._settings.bos_token_id is None:
                raise ValueError("text_input has no tokens, and this model has no token with which a text begins: send some text")
            tokens = [self._settings.bos_token_id]
        return Prompt(text, np.array(tokens, dtype=np.int64))

    def _rendered(self, text: str) -> str:
        if self._template is None:
            raise ValueError("this model has no chat template: send a text, without the parameter messages")
        from .chat_template import read_messages

        return self._template.prompt(read_messages(text))

    def _require_short(self, text: str) -> None:
        if len(text) > CHARACTERS_PER_TOKEN * self._capacity:
            raise ValueError(
                f"text_input has {len(text)} characters, but this model reads {CHARACTERS_PER_TOKEN * self._capacity} at most, "
                f"as it holds {self._capacity} tokens: send a shorter text"
            )


def _template(path: Path, settings: TextSettings) -> PromptTemplate | None:
    """Read the chat template. Only a model that has one needs jinja2."""
    if not path.exists():
        return None
    from .chat_template import PromptTemplate

    return PromptTemplate(path.read_text(encoding="utf-8"), settings.template_tokens)
