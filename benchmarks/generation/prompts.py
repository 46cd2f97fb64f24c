"""Prompts as the server tokenizes them, and prompts of a given length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from serving.bundle import Bundle
from serving.runtime.generation.prompt_reader import PromptReader
from serving.runtime.tasks.text_generation import TextGeneration
from serving.runtime.types import JsonValue


class Prompts:
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

    def tokens(self, prompt: str) -> list[int]:
        """Tokenize a prompt.

        Raises:
            ValueError: It has no tokens, or is far too long.
        """
        found: list[int] = self._reader.read(prompt.encode(), self.task).tokens.tolist()
        return found

    def decode(self, tokens: Sequence[int]) -> str:
        """Decode an answer."""
        text: str = self.tokenizer.decode(list(tokens))
        return text

    def of_length(self, texts: Sequence[str], length: int, *, count: int) -> list[str]:
        """Make prompts of ``length`` tokens, or a few less, by appending the following texts and truncating at the end of a token.

        There are at most ``count``, and none that truncation makes longer or much shorter.
        """
        made = []
        for place in range(min(count, len(texts))):
            text, step = texts[place], 1
            while len(self.tokenizer.encode(text).ids) <= length and step < len(texts):
                text, step = f"{text} {texts[(place + step) % len(texts)]}", step + 1
            for end in reversed(self.tokenizer.encode(text).offsets[:length]):
                found = len(self.tokens(text[: end[1]])) if end[1] else 0
                if found <= length:
                    break
            if length - max(2, length // 10) <= found <= length:
                made.append(text[: end[1]])
        return made
