"""Prompts of a model that continues texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.generation.tokenized_texts import TokenizedTexts
from serving.bundle import Bundle
from serving.runtime.generation.prompt_reader import PromptReader
from serving.runtime.tasks.text_generation import TextGeneration
from serving.runtime.types import JsonValue


class Prompts(TokenizedTexts):
    """Tokenizes prompts, and decodes answers, as the server does.

    Args:
        bundle: The bundle of a model that generates text.
        capacity: Most tokens of a prompt and its answer.
        options: Options of every request.
    """

    def __init__(self, bundle: Bundle, capacity: int, options: Mapping[str, JsonValue]) -> None:
        assert isinstance(bundle.task, TextGeneration)
        self.task = bundle.task.with_options(options)
        split = bundle.manifest.split_special_tokens
        self._reader = PromptReader(bundle.folder, bundle.task, capacity=capacity, split_special_tokens=split)
        self.tokenizer = self._reader.tokenizer

    def tokens(self, text: str) -> list[int]:
        """Tokenize a prompt.

        Raises:
            ValueError: It has no tokens, or is far too long.
        """
        found: list[int] = self._reader.read(text.encode(), self.task).tokens.tolist()
        return found

    def decode(self, tokens: Sequence[int]) -> str:
        """Decode an answer."""
        text: str = self.tokenizer.decode(list(tokens))
        return text
